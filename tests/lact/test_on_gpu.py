"""benchmarks/on_gpu.sh on a CPU: every command runs, and a run that is cut off leaves its results."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "on_gpu.sh"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the script needs bash")


def run(out, *arguments, **environment):
    given = {**os.environ, "PYTHON": sys.executable, **environment}
    done = subprocess.run(["bash", str(SCRIPT), str(out), *arguments], env=given, capture_output=True, text=True)
    status = out / "status.json"
    lines = status.read_text().splitlines() if status.exists() else []
    return done, {line["part"]: line for line in map(json.loads, lines)}


def logs(out):
    return {path.name: path.read_text()[-1500:] for path in out.glob("*.log")}


def test_every_part_runs_on_a_cpu(tmp_path):
    _, status = run(tmp_path, "--dry-run")
    parts = ["machine", "tests", "lact", "newton_schulz", "adaptation", "pretraining", "parallel"]
    assert list(status) == parts
    assert {name: line["rc"] for name, line in status.items()} == dict.fromkeys(parts, 0), logs(tmp_path)
    rows = {name: json.loads((tmp_path / f"{name}.json").read_text())["rows"] for name in parts if name != "tests"}
    assert all(rows.values())
    assert rows["parallel"][0]["processes"] == 2
    assert rows["parallel"][0]["largest_difference"] < 1e-4
    assert rows["pretraining"][0]["steps"] > 0
    assert [row["adaptation"] for row in rows["adaptation"]] == ["gradient", "memory"]


def test_a_part_that_runs_into_its_limit_does_not_stop_the_others(tmp_path):
    slow = tmp_path / "python"
    slow.write_text(f'#!/usr/bin/env bash\ncase "$*" in *machine*) sleep 30;; esac\nexec {sys.executable} "$@"\n')
    slow.chmod(0o755)
    script = SCRIPT.read_text().replace("part machine 60", "part machine 1")
    copy = tmp_path / "benchmarks"
    copy.mkdir()
    (copy / "on_gpu.sh").write_text(script)
    for name in ("_on_gpu.py", "_common.py"):
        shutil.copy(SCRIPT.parent / name, copy / name)
    environment = {"PYTHON": str(slow), "PARTS": "machine parallel", "PYTHONPATH": str(SCRIPT.parents[1])}
    given = {**os.environ, **environment}
    command = ["bash", str(copy / "on_gpu.sh"), str(tmp_path / "out"), "--dry-run"]
    subprocess.run(command, env=given, capture_output=True, check=True)
    lines = [json.loads(line) for line in (tmp_path / "out" / "status.json").read_text().splitlines()]
    assert [(line["part"], line["rc"]) for line in lines] == [("machine", 124), ("parallel", 0)]
    assert (tmp_path / "out" / "parallel.json").exists()


def test_an_unknown_argument_is_refused(tmp_path):
    done, status = run(tmp_path, "--quick")
    assert done.returncode == 2
    assert "must be --dry-run or nothing, got --quick" in done.stderr
    assert status == {}
