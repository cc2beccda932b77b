"""Nothing imports upwards, and importing the package loads nothing that it does not need."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tttabpfn

ROOT = Path(tttabpfn.__file__).parent
LEAVES = {
    "fast_weights.dispatch",
    "fast_weights.newton_schulz",
    "fast_weights.step_options",
}  # import nothing of the package
BACKEND = {"fast_weights", "fast_weights.kernels", *LEAVES}
ALLOWED = {
    **{leaf: set() for leaf in LEAVES},
    "fast_weights.kernels": LEAVES,
    "fast_weights": BACKEND,
    "lact": BACKEND,
    "theory": set(),
    "report": set(),
    "progress": set(),
    "row_order": set(),
    "checkpoints": set(),
    "pretraining": {"checkpoints", *BACKEND},
    "tabpfn_adapter": {"checkpoints", *BACKEND},
    "adaptation": {"tabpfn_adapter", "lact", "report", *BACKEND},
    "predictor": {"adaptation", "tabpfn_adapter", *BACKEND},
    "parameters": BACKEND,
    "validation": set(),
    "store": {"adaptation", "tabpfn_adapter", "report", *BACKEND},
}
"""What the lower layers may import from the package; everything else lies above them."""


def layer_of(module: str) -> str:
    """The longest named layer that a dotted module name (without the package) lies in."""
    names = [layer for layer in ALLOWED if module == layer or module.startswith(layer + ".")]
    return max(names, key=len) if names else module.partition(".")[0]


def imports_of(path: Path) -> set[str]:
    """Modules of the package that a file imports anywhere, as dotted names without the package."""
    here = path.relative_to(ROOT).with_suffix("").parts
    package = here[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("tttabpfn.")}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                start = ".".join(package[: len(package) - node.level + 1])
            elif (node.module or "").partition(".")[0] == "tttabpfn":
                start = None
            else:
                continue
            module = node.module or ""
            full = module.partition(".")[2] if start is None else ".".join(filter(None, [start, module]))
            for alias in node.names:
                inner = ".".join(filter(None, [full, alias.name]))
                is_module = (ROOT / Path(*inner.split("."))).with_suffix(".py").exists() or (
                    ROOT / Path(*inner.split("."))
                ).is_dir()
                found.add(inner if is_module else full)
    return {name for name in found if name}


FILES = sorted(ROOT.rglob("*.py"))


# Seen to fail: with `from tttabpfn.report import AdaptationReport` written into tabpfn_adapter/base.py.
@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_imports_upwards(path):
    layer = layer_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if layer not in ALLOWED:
        assert layer in {"__init__", "__main__", "classifier", "display", "cli", "cli_tables", "comparison"}
        return
    above = {name for name in imports_of(path) if layer_of(name) not in {layer, *ALLOWED[layer]}}
    assert above == set()


def test_the_scan_sees_imports():
    assert {"store", "parameters", "validation", "adaptation"} <= {
        layer_of(name) for name in imports_of(ROOT / "classifier.py")
    }
    assert "fast_weights.selection" in imports_of(ROOT / "parameters.py")


def test_only_the_adapter_and_the_doors_know_tabpfn():
    # The classifier and what keeps its entries name TabPFNClassifier as a type; internals stay in the adapter.
    for path in FILES:
        if {"tabpfn_adapter", "pretraining"} & set(path.parts):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "tabpfn":
                assert node.module == "tabpfn", path


def test_importing_the_package_loads_neither_torch_nor_tabpfn():
    code = (
        "import sys, tttabpfn; print(sorted({'torch', 'tabpfn', 'sklearn', 'matplotlib', 'triton'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_public_names_exist_and_others_do_not():
    for name in tttabpfn.__all__:
        assert getattr(tttabpfn, name) is not None
    assert set(tttabpfn.__all__) <= set(dir(tttabpfn))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = tttabpfn.nothing
