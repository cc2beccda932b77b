"""Training: it learns, it resumes bit for bit, and what it writes is a TabPFN checkpoint."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from tabpfn import TabPFNClassifier

from tttabpfn.pretraining import state
from tttabpfn.pretraining.__main__ import main
from tttabpfn.pretraining.config import load_config, parse_config
from tttabpfn.pretraining.muon import MuonAdamW
from tttabpfn.pretraining.schedule import annealed, step_scale
from tttabpfn.pretraining.train import Trainer


def weights(trainer):
    return {**trainer.model.state_dict(), **{f"ema.{k}": v for k, v in trainer.ema.items()}}


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(config, tmp_path):
    whole = Trainer(config, tmp_path / "whole")
    whole.run(report=lambda record: None)
    Trainer(config, tmp_path / "parts").run(stop_after=2, report=lambda record: None)
    parts = Trainer(config, tmp_path / "parts", resume=True)
    assert parts.step == 2
    parts.run(report=lambda record: None)
    assert parts.step == whole.step == 6
    for (name, ours), theirs in zip(weights(parts).items(), weights(whole).values(), strict=True):
        assert torch.equal(ours, theirs), name
    assert parts.progress == 1.0


@pytest.mark.parametrize("architecture", ["tabpfn_v3", "tabpfn_v3_5"])
def test_the_exported_file_loads_in_plain_tabpfn_and_predicts(values, tmp_path, architecture):
    config = parse_config({**values, "architecture": architecture})
    path = Trainer(config, tmp_path).run(stop_after=1, report=lambda record: None)
    X, y = load_iris(return_X_y=True)
    model = TabPFNClassifier(model_path=str(path), device="cpu", n_estimators=2, random_state=0)
    probabilities = model.fit(X[::2], y[::2]).predict_proba(X[1::2])
    assert probabilities.shape == (75, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-5)
    assert model.inference_config_.FINGERPRINT_FEATURE is False
    assert model.softmax_temperature_ == 1.0


def test_the_loss_falls_on_one_batch_seen_again_and_again(config, tmp_path):
    from tttabpfn.pretraining.prior import sample_batch

    plan = dataclasses.replace(config.schedule, steps=60, warmup=0.05, decay_from=1.0)
    trainer = Trainer(dataclasses.replace(config, schedule=plan), tmp_path)
    batch = sample_batch(config, 0, 0.0)
    losses = [trainer.train_step(batch)[0] for _ in range(50)]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_training_leaves_the_global_generator_alone(config, tmp_path):
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    Trainer(config, tmp_path).run(stop_after=1, report=lambda record: None)
    assert torch.equal(torch.rand(1), expected)


def test_initial_weights_can_come_from_another_run(config, tmp_path):
    first = Trainer(config, tmp_path / "first")
    first.run(stop_after=2, report=lambda record: None)
    second = Trainer(config, tmp_path / "second", init=state.path(tmp_path / "first"))
    assert second.step == 0
    for name, value in second.model.state_dict().items():
        assert torch.equal(value, first.ema[name]), name
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        Trainer(config, tmp_path / "third", init=tmp_path / "missing.pt")


def test_a_decaying_branch_goes_on_from_a_run_and_leaves_it_alone(values, tmp_path):
    toml = tmp_path / "tiny.toml"
    toml.write_text(_toml({**values, "schedule": {"minutes": 100, "cells": 4000, "warmup": 0.0, "decay_from": 1.0}}))
    config = parse_config({**values, "schedule": {"minutes": 100, "cells": 4000, "warmup": 0.0, "decay_from": 1.0}})
    Trainer(config, tmp_path / "run").run(stop_after=4, report=lambda record: None)
    source = state.path(tmp_path / "run")
    before = source.read_bytes()
    arguments = ["--config", str(toml), "--init", str(source), "--out", str(tmp_path / "end")]
    assert main([*arguments, "--decay-minutes", "0.02", "--log", str(tmp_path / "log.jsonl")]) == 0
    assert source.read_bytes() == before
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps[0] == 5
    ended = state.read(state.path(tmp_path / "end"), torch.device("cpu"))
    started = state.read(source, torch.device("cpu"))
    assert ended["seconds"] >= started["seconds"] + 1.2
    assert any(not torch.equal(value, started["model"][name]) for name, value in ended["model"].items())


def test_a_decay_needs_the_run_it_branches_off(values, tmp_path, capsys):
    toml = tmp_path / "tiny.toml"
    toml.write_text(_toml(values))
    with pytest.raises(SystemExit) as stopped:
        main(["--config", str(toml), "--out", str(tmp_path / "end"), "--decay-minutes", "1"])
    assert stopped.value.code == 2
    assert "--decay-minutes needs --init" in capsys.readouterr().err


@pytest.mark.parametrize("minutes", [10.0, 3.0])
def test_annealing_keeps_the_phase_and_falls_from_one_to_zero(minutes):
    config = load_config("cpu")
    spent = 0.1 * 60 * config.schedule.minutes
    plan = annealed(config, spent, minutes)
    assert dataclasses.replace(plan.phases[0], until=0.15) == config.phases[2]
    now = spent / (60 * plan.schedule.minutes)
    scales = [
        step_scale(now + share * (1 - now), warmup=0.0, decay_from=plan.schedule.decay_from) for share in (0, 0.5, 1)
    ]
    assert scales == pytest.approx([1.0, 0.5, 0.0], abs=1e-6)
    with pytest.raises(ValueError, match="minutes must be > 0, got 0"):
        annealed(config, spent, 0)


def test_a_run_goes_on_with_another_prior_and_another_precision(values, tmp_path):
    first = Trainer(parse_config(values), tmp_path)
    first.run(stop_after=2, report=lambda record: None)
    changed = parse_config({**values, "prior": {"missing": 1.0}, "precision": "bfloat16_products", "kernels": True})
    second = Trainer(changed, tmp_path, resume=True)
    assert second.step == 2
    second.run(stop_after=1, report=lambda record: None)
    assert second.step == 3


def test_a_loss_that_is_not_finite_stops_the_run_before_the_weights_change(config, tmp_path):
    from tttabpfn.pretraining.prior import sample_batch

    trainer = Trainer(config, tmp_path)
    with torch.no_grad():
        trainer.model.many_class_decoder.q_projection.bias.fill_(float("nan"))
    trainer.model._nan_safe_output = False
    before = trainer.model.x_embed.weight.clone()
    with pytest.raises(FloatingPointError, match="step 1"):
        trainer.train_step(sample_batch(config, 0, 0.0))
    assert torch.equal(trainer.model.x_embed.weight, before)


def test_a_killed_run_resumes_from_its_last_checkpoint(values, tmp_path):
    toml = tmp_path / "tiny.toml"
    toml.write_text(_toml({**values, "workers": 1, "schedule": {"steps": 100_000, "cells": 4000}}))
    out, log = tmp_path / "run", tmp_path / "log.jsonl"
    command = [sys.executable, "-m", "tttabpfn.pretraining", "--config", str(toml), "--out", str(out)]
    process = subprocess.Popen([*command, "--log", str(log), "--save-every", "0.01"], env={**os.environ})
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (log.exists() and log.read_text().count("\n") >= 3):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    config = parse_config({**values, "schedule": {"steps": 100_000, "cells": 4000}})
    trainer = Trainer(config, out, resume=True)
    last = json.loads([line for line in log.read_text().splitlines() if line.endswith("}")][-1])
    assert 2 <= trainer.step <= last["step"] + 1
    trainer.run(stop_after=1, report=lambda record: None)
    assert (out / "model.safetensors").exists()


def test_the_command_line_trains_to_the_end_of_a_time_budget(values, tmp_path):
    toml = tmp_path / "tiny.toml"
    toml.write_text(_toml(values))
    arguments = ["--config", str(toml), "--out", str(tmp_path / "run"), "--minutes", "0.02"]
    assert main([*arguments, "--log", str(tmp_path / "log.jsonl")]) == 0
    assert (tmp_path / "run" / "model.safetensors").exists()
    progress = [json.loads(line)["progress"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert progress == sorted(progress)
    assert progress[-1] == 1.0


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32)])
def test_a_muon_update_is_nearly_orthogonal_with_the_spectral_norm_promised(shape):
    draw = torch.Generator().manual_seed(0)
    parameters = {name: torch.nn.Parameter(torch.zeros(shape)) for name in ("a", "b")}
    for parameter in parameters.values():
        parameter.grad = torch.randn(shape, generator=draw)
    MuonAdamW(parameters.items(), muon_lr=0.1, adamw_lr=0.01).step()
    for parameter in parameters.values():
        values = torch.linalg.svdvals(parameter.detach()) / (0.1 * max(1.0, shape[0] / shape[1]) ** 0.5)
        assert values.max() < 1.4
        assert values[: len(values) // 2].min() > 0.6


def test_muon_takes_matrices_and_adamw_takes_tables_and_vectors(config, tmp_path):
    trainer = Trainer(config, tmp_path)
    adamw = set(trainer.optimizer.others)
    muon = {name for group in trainer.optimizer.matrices.values() for name in group}
    assert "icl_blocks.0.icl_attention.q_projection.weight" in muon
    assert {"icl_y_encoder.embedding.weight", "x_embed.weight", "icl_blocks.0.layernorm.weight"} <= adamw
    assert not adamw & muon
    assert adamw | muon == {name for name, p in trainer.model.named_parameters() if p.requires_grad}


def test_adamw_follows_its_recursion_on_a_vector():
    target = np.linspace(-1, 1, 4)
    parameter = torch.nn.Parameter(torch.zeros(4))
    optimizer = MuonAdamW([("bias", parameter)], muon_lr=0.1, adamw_lr=0.01)
    value, mean, square = np.zeros(4), np.zeros(4), np.zeros(4)
    for count in range(1, 21):
        optimizer.zero_grad()
        ((parameter - torch.from_numpy(target).float()) ** 2).sum().backward()
        optimizer.step(scale=0.5)
        gradient = 2 * (value - target)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.98 * square + 0.02 * gradient**2
        value = value - 0.005 * (mean / (1 - 0.9**count)) / (np.sqrt(square / (1 - 0.98**count)) + 1e-8)
    np.testing.assert_allclose(parameter.detach().numpy(), value, atol=1e-6)


def _toml(values):
    """Nested plain values as TOML; JSON's notation of scalars and lists is valid TOML."""
    top = [f"{k} = {json.dumps(v)}" for k, v in values.items() if k not in ("model", "inference", "schedule", "phases")]
    tables = [
        "\n".join([f"[{name}]", *(f"{k} = {json.dumps(v)}" for k, v in values[name].items())])
        for name in ("model", "inference", "schedule")
    ]
    phases = ["\n".join(["[[phases]]", *(f"{k} = {json.dumps(v)}" for k, v in p.items())]) for p in values["phases"]]
    return "\n".join([*top, *tables, *phases]) + "\n"
