"""Processes that train together."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tttabpfn.pretraining.config import load_config, parse_config
from tttabpfn.pretraining.parallel import Team, launch
from tttabpfn.pretraining.prior import sample_batch
from tttabpfn.pretraining.train import Trainer


@pytest.fixture
def pair(config):
    """A configuration of a few steps for two processes."""
    plan = dataclasses.replace(config.schedule, steps=3)
    return dataclasses.replace(config, schedule=plan, workers=0, processes=2)


def train_and_keep(team, config, out):
    trainer = Trainer(config, f"{out}/{team.rank}", team=team)
    trainer.run(report=lambda record: None)
    torch.save({"weights": trainer.model.state_dict(), "seconds": trainer.seconds}, f"{out}/{team.rank}.pt")


# Seen to fail: with gradients that are not summed, and with seconds of one's own.
def test_members_of_a_team_end_with_the_same_weights_and_the_same_clock(pair, tmp_path):
    launch(2, train_and_keep, pair, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["seconds"] == second["seconds"]
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]), name
    assert (tmp_path / "0" / "model.safetensors").exists()
    assert not (tmp_path / "1" / "model.safetensors").exists()


def gradients_of_parts(team, config, out):
    trainer = Trainer(config, f"{out}/{team.rank}", team=team)
    trainer.train_step(sample_batch(config, 0, 0.0, team.rank))
    torch.save([p.grad for p in trainer.model.parameters()], f"{out}/{team.rank}.pt")


# Seen to fail: with gradients that are not summed.
def test_the_gradient_of_a_team_is_that_of_its_parts_together(pair, tmp_path):
    launch(2, gradients_of_parts, pair, str(tmp_path))
    found = torch.load(tmp_path / "0.pt", weights_only=True)
    parts = [sample_batch(pair, 0, 0.0, part) for part in (0, 1)]
    whole = dataclasses.replace(
        parts[0],
        X=np.concatenate([part.X for part in parts], axis=1),
        y=np.concatenate([part.y for part in parts], axis=1),
    )
    alone = Trainer(pair, tmp_path / "alone")
    alone.train_step(whole)
    for gradient, parameter in zip(found, alone.model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-6)


def test_parts_of_a_batch_have_one_shape_and_their_own_tables():
    three = dataclasses.replace(load_config("cpu"), processes=3)
    parts = [sample_batch(three, 4, 0.5, part) for part in range(3)]
    assert len({part.X.shape for part in parts}) == 1
    assert len({part.n_train for part in parts}) == 1
    assert not np.array_equal(parts[1].y, parts[2].y)


def test_one_process_is_a_team_of_itself():
    team = Team()
    assert team.leads
    assert team.leaders(3.5) == 3.5


def test_too_few_processes_are_refused(values):
    with pytest.raises(ValueError, match="processes must be >= 1, got 0"):
        parse_config({**values, "processes": 0})
