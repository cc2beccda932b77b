"""Configuration files: the shipped ones load, wrong ones say what is wrong."""

import runpy
from pathlib import Path

import pytest

from tttabpfn.pretraining.__main__ import main as train
from tttabpfn.pretraining.config import load_config, parse_config
from tttabpfn.pretraining.export import build_model


@pytest.mark.parametrize("name", ["cpu", "cpu_v2", "gpu"])
def test_shipped_configurations_build_their_model(name):
    config = load_config(name)
    model = build_model(config.architecture, config.model, config.seed)
    size = sum(p.numel() for p in model.parameters())
    assert 500_000 < size < 8_000_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nonsense": 1}, "unknown setting 'nonsense'"),
        ({"prior": {"misssing": 0.1}}, "prior: unknown setting 'misssing'"),
        ({"prior": {"missing": 1.5}}, r"`missing` must be in \[0, 1\], got 1.5"),
        ({"prior": {"families": {"graph": 1.0}}}, "`families` needs the keys"),
        ({"precision": "float8"}, "precision must be one of 'float32', 'bfloat16', 'bfloat16_products', got 'float8'"),
        ({"workers": -1}, "workers must be >= 0, got -1"),
        ({"schedule": {"minutes": 0}}, "`minutes` > 0"),
        ({"phases": []}, "phases: at least one"),
        ({"phases": [{"until": 0.5, "rows": [40, 60], "columns": [1, 4], "max_classes": 3}]}, "exactly 1"),
        ({"phases": [{"until": 1.0, "rows": [60, 40], "columns": [1, 4], "max_classes": 3}]}, "`rows` must be"),
        ({"phases": [{"until": 1.0, "rows": [40, 60], "columns": [1, 4], "max_classes": 11}]}, "`max_classes`"),
        ({"phases": [{"until": 1.0}]}, "phases, number 1"),
    ],
)
def test_a_wrong_setting_is_named(values, change, message):
    with pytest.raises(ValueError, match=message):
        parse_config({**values, **change})


def test_unknown_architectures_and_model_settings_are_named(values):
    with pytest.raises(ValueError, match=r"architecture must be one of .* got 'tabpfn_v9'"):
        build_model("tabpfn_v9", values["model"], 0)
    with pytest.raises(ValueError, match="tabpfn_v3 has no setting 'width'"):
        build_model("tabpfn_v3", {**values["model"], "width": 3}, 0)


def test_files_that_are_missing_or_not_toml_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"shipped are: cpu, .*gpu"):
        load_config(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("architecture = ")
    with pytest.raises(ValueError, match="not valid TOML"):
        load_config(broken)


def compare_architectures(arguments):
    script = Path(__file__).parents[2] / "benchmarks" / "base_architectures.py"
    runpy.run_path(str(script))["main"](arguments)


@pytest.mark.parametrize("main", [train, compare_architectures], ids=["train", "architectures"])
def test_the_command_lines_report_a_bad_configuration_and_exit_with_2(main, tmp_path, capsys):
    broken = tmp_path / "broken.toml"
    broken.write_text("nonsense = 1\n")
    with pytest.raises(SystemExit) as stopped:
        main(["--config", str(broken), "--out", str(tmp_path / "run")])
    assert stopped.value.code == 2
    assert "nonsense" in capsys.readouterr().err
