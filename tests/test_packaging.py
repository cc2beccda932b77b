"""What is installed is whole: data files, types, entry points, and README's examples."""

import re
import sys
from fnmatch import fnmatch
from importlib.metadata import entry_points, requires, version
from pathlib import Path

from tabpfn import TabPFNClassifier

import tttabpfn

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGE = Path(tttabpfn.__file__).parent
ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


# Seen to fail: with "checkpoints/*.safetensors" taken out of package-data.
def test_every_data_file_of_the_package_is_installed_with_it():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["tttabpfn"]
    source = ROOT / "tttabpfn"
    files = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
    data = [name for name in files if not name.endswith((".py", ".pyc"))]
    assert {"py.typed", "checkpoints/tttabpfn-base-v1.safetensors"} <= set(data)
    assert [name for name in data if not any(fnmatch(name, pattern) for pattern in patterns)] == []


def test_the_installed_package_has_its_checkpoint_and_types():
    assert (PACKAGE / "py.typed").is_file()
    assert tttabpfn.bundled_model_path().parent == PACKAGE / "checkpoints"
    assert (PACKAGE / "checkpoints" / "MODEL_CARD.md").read_text().startswith("# ")


def test_versions_and_entry_point_agree():
    assert tttabpfn.__version__ == version("tttabpfn") == PROJECT["project"]["version"]
    (script,) = entry_points(group="console_scripts", name="tttabpfn")
    assert script.value == "tttabpfn.cli:main"
    assert any(requirement.startswith("tabpfn") for requirement in requires("tttabpfn") or [])


def test_plain_tabpfn_loads_the_bundled_path(table):
    X, y, X_new, y_new = table
    plain = TabPFNClassifier(model_path=str(tttabpfn.bundled_model_path()), n_estimators=1).fit(X, y)
    assert (plain.predict(X_new) == y_new).mean() > 0.5


def test_constraints_pin_what_the_requirements_allow():
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"
    )
    assert {"torch", "tabpfn", "scikit-learn"} <= pins.keys()
    assert version("tabpfn").startswith("9.")


def test_the_code_in_readme_is_python_that_names_real_parameters():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert blocks
    allowed = set(tttabpfn.TTTTabPFNClassifier().get_params())
    for block in blocks:
        compile(block, "README.md", "exec")
        for call in re.findall(r"TTTTabPFNClassifier\(([^()]*)\)", block):
            assert set(re.findall(r"(\w+)=", call)) <= allowed
