"""Nothing imports upwards, and importing the package loads nothing that it does not need."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import tttabpfn

ROOT = Path(tttabpfn.__file__).parent
LAYERS = (
    {"cache", "checkpoints", "choices", "fast_weights", "report", "theory"},
    {"display", "inputs", "lact", "memory", "pretraining", "tabpfn_adapter"},
    {"adaptation"},
    {"prediction"},
    {"classifier"},
    {"compare"},
    {"__init__", "__main__"},
)
"""From the ground up; whatever lies in one layer imports only itself and what lies in layers before it."""
MAX_LINES, MAX_LOOSE_FILES = 400, 6


def room_of(module: str) -> str:
    """The folder or loose file at the package's top that a dotted module name (without the package) lies in."""
    return module.partition(".")[0]


def height_of(module: str) -> int:
    """Number of a module's layer."""
    (height,) = [height for height, rooms in enumerate(LAYERS) if room_of(module) in rooms]
    return height


def module_of(path: Path) -> str:
    """Dotted name of a file without the package; a folder's `__init__` has the folder's name."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


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


def test_every_file_has_a_layer_and_there_are_at_most_seven():
    assert len(LAYERS) <= 7
    assert {room_of(module_of(path)) for path in FILES} == set.union(*LAYERS)
    assert sum(map(len, LAYERS)) == len(set.union(*LAYERS))


# Seen to fail: with `from tttabpfn.report import AdaptationReport` in cache/files.py, and with a lazy import of
# compare.measure in classifier.py.
@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_imports_upwards_or_sideways(path):
    own = module_of(path)
    wrong = {
        name
        for name in imports_of(path)
        if room_of(name) != room_of(own) and height_of(name) >= height_of(own) and own != "__init__"
    }
    assert wrong == set()


# Seen to fail: with `if TYPE_CHECKING: from tttabpfn.adaptation.gradient import GradientOutcome` in session.py.
def test_no_file_imports_itself_through_others():
    graph = {module_of(path): imports_of(path) - {module_of(path)} for path in FILES}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises with the circle's names
    assert {"adaptation.session", "adaptation.gradient"} <= set(order)


def test_files_are_short_and_few_lie_loose_at_the_top():
    assert [str(path) for path in FILES if len(path.read_text().splitlines()) > MAX_LINES] == []
    assert len(list(ROOT.glob("*.py"))) <= MAX_LOOSE_FILES


# Seen to fail: with `from base_quality import METRICS` in benchmarks/_estimators.py.
def test_no_helper_of_the_benchmarks_imports_a_script():
    folder = Path(__file__).parents[1] / "benchmarks"
    scripts = {path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")}
    for path in folder.glob("*.py"):
        imported = {
            name.partition(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
        }
        assert imported & scripts == set(), path


def test_the_scan_sees_imports():
    assert {"prediction.lookup", "inputs.parameters", "inputs.data", "adaptation"} <= imports_of(ROOT / "classifier.py")
    assert "compare.measure" in imports_of(ROOT / "compare" / "command.py")  # inside a function
    assert "classifier" in imports_of(ROOT / "__init__.py")  # for type checkers alone


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
