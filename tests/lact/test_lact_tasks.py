"""benchmarks/lact_tasks.py in its smallest size, its ray tracer, and who sees whom in its video task."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark_module(monkeypatch):
    """A function that imports a helper of the benchmarks by name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.mark.parametrize("task", ["text", "views", "video"])
def test_a_task_writes_its_rows_and_plot(task, tmp_path):
    pytest.importorskip("matplotlib")
    out, plot = tmp_path / "out.json", tmp_path / "out.png"
    command = [sys.executable, str(FOLDER / "lact_tasks.py"), "--task", task, "--smoke", "--seeds", "1"]
    given = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(FOLDER.parent), os.environ.get("PYTHONPATH")])),
    }
    subprocess.run([*command, "--out", str(out), "--plot", str(plot)], env=given, check=True, capture_output=True)
    record = json.loads(out.read_text())
    assert record["settings"]["rows_missing"] == 0
    assert {row["kind"] for row in record["rows"]} >= {"lact", "full"}
    assert plot.stat().st_size > 0
    assert (tmp_path / "out.gif").exists() == (task == "video")


def test_the_ray_tracer_hits_what_is_in_front(benchmark_module):
    scenes = benchmark_module("_lact_tasks_scenes")
    objects = {
        "kind": np.array([0, 1]),
        "centre": np.array([[0.0, 0.0, 0.5], [0.0, 0.0, -0.5]]),
        "size": np.array([0.3, 0.3]),
        "colour": np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
        "background": np.array([0.1, 0.1, 0.1]),
    }
    rays = np.array([[0.0, 0.0, -1.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    origins = np.array([[0.0, 0.0, 3.0], [0.0, 0.0, -3.0], [2.0, 0.0, 0.0]])
    found = scenes.render(objects, origins, rays)
    assert found[0, 0] > 0.3
    assert found[0, 1] == 0.0  # the ball hides the box
    assert found[1, 1] > 0.3
    assert found[1, 0] == 0.0  # from behind, the box hides the ball
    assert np.allclose(found[2], 0.3)  # past both: the sky


def test_cameras_look_at_the_middle_with_unit_rays(benchmark_module):
    origin, rays = benchmark_module("_lact_tasks_scenes").cameras(np.random.default_rng(0), 3, 4)
    assert np.allclose(np.linalg.norm(rays, axis=-1), 1.0)
    middle = rays.mean(axis=(1, 2))
    assert np.allclose(middle / np.linalg.norm(middle, axis=1, keepdims=True), -origin / 2.6)


def test_a_noisy_frame_sees_itself_and_earlier_clean_ones_alone(benchmark_module):
    seen = benchmark_module("_lact_tasks_video").copies_seen(3, None)
    assert seen[4].tolist() == [False, True, False, True, True, False]
    assert benchmark_module("_lact_tasks_video").copies_seen(3, 1)[4].tolist() == [False] * 3 + [True, True, False]


@pytest.mark.parametrize("kind", ["lact", "full", "window"])
def test_a_video_model_does_not_see_the_frame_it_draws(benchmark_module, kind):
    video = benchmark_module("_lact_tasks_video")
    options = benchmark_module("lact_tasks").options_of(["--task", "video", "--smoke", "--out", "none"])
    torch.manual_seed(0)
    model = video.VideoModel({"kind": kind, "rule": "muon"}, options)
    clean = torch.randn(1, 3, 16, 16)
    noisy, level = torch.randn(1, 3, 16, 16), torch.full((1, 3), 0.5)
    changed = clean.clone()
    changed[:, 1] += 1.0
    before, after = model(noisy, clean, level), model(noisy, changed, level)
    assert torch.equal(before[:, :2], after[:, :2])
    assert (before[:, 2] - after[:, 2]).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["lact", "linear", "window", "full"])
def test_a_byte_model_is_causal(benchmark_module, kind):
    models = benchmark_module("_lact_tasks_models")
    torch.manual_seed(0)
    model = models.ByteModel(kind, dim=16, heads=2, layers=2, window=4, chunk=8)
    tokens = torch.randint(256, (1, 24))
    changed = tokens.clone()
    changed[:, 17] = (tokens[:, 17] + 1) % 256
    assert torch.allclose(model(tokens)[:, :17], model(changed)[:, :17], atol=1e-5)
    assert (model(tokens)[:, 17:] - model(changed)[:, 17:]).abs().max() > 1e-3
