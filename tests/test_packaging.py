"""What is installed is whole: data files, types, entry points, and README's examples."""

import re
import shutil
import subprocess
import sys
import zipfile
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


# Seen to fail: with "checkpoints/*.md" taken out of package-data, and with `include` taken out of packages.find.
def test_the_wheel_holds_the_package_whole_and_nothing_else(tmp_path):
    leave_out = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "runs", "data")
    shutil.copytree(ROOT, tmp_path / "source", ignore=leave_out)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=tmp_path / "source", check=True, capture_output=True
    )
    (wheel,) = tmp_path.glob("tttabpfn-*-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = {name.partition(".dist-info/")[2] for name in archive.namelist() if ".dist-info/" in name}
    source = ROOT / "tttabpfn"
    files = (path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert names == {path.relative_to(ROOT).as_posix() for path in files}
    checkpoints = {"tttabpfn/checkpoints/tttabpfn-base-v1.safetensors", "tttabpfn/checkpoints/MODEL_CARD.md"}
    assert checkpoints | {"tttabpfn/py.typed"} <= names
    assert any(name.startswith("tttabpfn/pretraining/configs/") for name in names)
    assert {"METADATA", "entry_points.txt", "licenses/LICENSE"} <= metadata


def test_the_installed_package_has_its_checkpoint_and_types():
    assert (PACKAGE / "py.typed").is_file()
    assert tttabpfn.bundled_model_path().parent == PACKAGE / "checkpoints"
    assert (PACKAGE / "checkpoints" / "MODEL_CARD.md").read_text().startswith("# ")


def test_versions_and_entry_point_agree():
    assert tttabpfn.__version__ == version("tttabpfn") == PROJECT["project"]["version"]
    (script,) = entry_points(group="console_scripts", name="tttabpfn")
    assert script.value == "tttabpfn.compare.command:main"
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
