"""Heads and sequences over two processes against one process, forward and backward."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing

from tests.fast_weights.tolerances import RTOL_EXACT, relative_max
from tttabpfn.lact import LaCTSwiGLU
from tttabpfn.lact.parallel import heads_parallel, join_sequence, split_sequence, sum_gradients

F64 = RTOL_EXACT[torch.float64]
HEADS = {
    "set": {"mode": "set"},
    "causal, window": {"mode": "causal", "chunk_size": 4, "window_size": 3, "momentum": True},
    "last layer": {"mode": "causal", "chunk_size": 4, "updated": "last", "weight_norm": False, "muon": False},
}
SEQUENCES = {
    "set": {"mode": "set"},
    "set, chunks": {"mode": "set", "chunk_size": 4, "momentum": True},
    "causal": {"mode": "causal", "chunk_size": 4, "momentum": True},
    "causal-prenorm": {"mode": "causal-prenorm", "chunk_size": 4, "muon": False},
    "last layer": {"mode": "causal", "chunk_size": 4, "updated": "last", "weight_norm": False, "muon": False},
}


def layer(**options):
    return LaCTSwiGLU(8, n_heads=2, generator=torch.Generator().manual_seed(0), **options).double()


def tokens():
    return torch.randn(2, 12, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def loss_of(y):
    return (y * torch.linspace(-1.0, 1.0, y.numel(), dtype=y.dtype).reshape(y.shape)).sum()


def gradients(net):
    return {name: parameter.grad.clone() for name, parameter in net.named_parameters()}


def alone(options):
    net, x = layer(**options), tokens().requires_grad_()
    y = net(x)
    loss_of(y).backward()
    return {"y": y.detach(), "x": x.grad, **gradients(net)}


def run_heads(options):
    net, x = layer(**options), tokens().requires_grad_()
    y = heads_parallel(net, x)
    loss_of(y).backward()
    sum_gradients(net)
    return {"y": y.detach(), "x": x.grad, **gradients(net)}


def run_sequence(options):
    net, x = layer(**options), tokens()
    part = split_sequence(x, net.chunk_size).detach().requires_grad_()
    y = net(part, group=distributed.group.WORLD)
    weights = split_sequence(torch.linspace(-1.0, 1.0, x.numel(), dtype=x.dtype).reshape(x.shape), net.chunk_size)
    (y * weights).sum().backward()
    sum_gradients(net)
    return {"y": y.detach(), "x": part.grad, **gradients(net)}


def process(rank, folder):
    torch.set_num_threads(1)
    store = (Path(folder) / "store").as_uri()
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    try:
        found = {f"heads, {name}": run_heads(options) for name, options in HEADS.items()}
        found |= {f"sequence, {name}": run_sequence(options) for name, options in SEQUENCES.items()}
        found["refused"] = refusals()
        torch.save(found, Path(folder) / f"{rank}.pt")
    finally:
        distributed.destroy_process_group()


def refusals():
    """Messages of calls that do not fit two processes; none may leave a process waiting."""
    group, x, rank = distributed.group.WORLD, tokens(), distributed.get_rank()
    uneven = x[:, : 4 + rank]
    calls = {
        "heads": lambda: heads_parallel(LaCTSwiGLU(8, n_heads=1).double(), x),
        "chunk": lambda: layer(mode="causal", chunk_size=3)(x, group=group),
        "window": lambda: layer(mode="causal", chunk_size=4, window_size=2)(x, group=group),
        "uneven": lambda: layer()(uneven, group=group),
        "split": lambda: split_sequence(x, 5),
        "packed": lambda: layer()(x, group=group, lengths=[6, 6]),
    }
    messages = {}
    for name, call in calls.items():
        with pytest.raises(ValueError) as error:
            call()
        messages[name] = str(error.value)
    return messages


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(process, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("name", HEADS)
def test_heads_over_two_processes_equal_one(found, name):
    wanted = alone(HEADS[name])
    for one in found:
        for key, value in wanted.items():
            assert relative_max(one[f"heads, {name}"][key], value) < F64, key


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_sequence_over_two_processes_equals_one(found, name):
    wanted = alone(SEQUENCES[name])
    parts = [one[f"sequence, {name}"] for one in found]
    for key, value in wanted.items():
        if key in ("x", "y"):
            joined = join_sequence([part[key] for part in parts], SEQUENCES[name].get("chunk_size"))
            assert relative_max(joined, value) < F64, key
        else:
            assert all(relative_max(part[key], value) < F64 for part in parts), key


def test_what_does_not_fit_the_processes_is_refused_by_all(found):
    for messages in (one["refused"] for one in found):
        assert "n_heads must be a multiple of the 2 processes, got 1" in messages["heads"]
        assert "chunk_size must be a multiple of the 2 processes, got 3" in messages["chunk"]
        assert "window_size must be None where processes share a sequence, got 2" in messages["window"]
        assert "must be the same on every process" in messages["uneven"]
        assert "every chunk must divide by the 2 processes, got one of 5 tokens" in messages["split"]
        assert "lengths must be None with a group of processes" in messages["packed"]
