"""Writing linear and SwiGLU weights on given keys: gradients, order, folds, norms, sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tttabpfn.fast_weights.reference.step import row_norms
from tttabpfn.memory import linear
from tttabpfn.memory import rows as rows_module
from tttabpfn.memory.linear import BIAS_PENALTY, linear_loss_gradient, read_linear, write_linear
from tttabpfn.memory.rows import KeyScale, MemoryRows
from tttabpfn.memory.settings import MemoryRecipe, MemorySettings
from tttabpfn.memory.swiglu import read_swiglu, start_swiglu, swiglu_loss_gradients, write_swiglu

# Checkpointing makes torch import its compiler, which looks at every loaded module, and tabpfn warns when looked at.
pytestmark = pytest.mark.filterwarnings("ignore:Importing from 'tabpfn:DeprecationWarning")

KINDS = ("linear", "swiglu")
MEMBERS, WIDTH, CLASSES = 2, 6, 3
F64_RTOL = 1e-10
ORDER_RTOL = 2e-4
"""Float32 sums in another order, after 40 updates."""


def settings(**changes) -> MemorySettings:
    recipe = MemoryRecipe(hidden=16, **changes)
    return MemorySettings(n_steps=40, step_size=None, update_rule="muon", backend="torch", seed=0, recipe=recipe)


def write(kind, rows, values, settings, until=None):
    """Write one memory for each value (penalty or step size), fold and member; return weights by name and losses."""
    if kind == "linear":
        steps = settings.n_steps if until is None else until
        weight, losses = write_linear(rows, torch.tensor(values), steps, momentum=0.7, backend="torch")
        return {"w": weight}, losses
    return write_swiglu(
        rows,
        torch.tensor(values),
        settings.n_steps,
        until=until,
        rule=settings.update_rule,
        hidden=settings.recipe.hidden,
        restore=settings.restores_norms,
        seed=settings.seed,
        backend="torch",
    )


def drawn(n_rows: int, n_folds: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32) -> MemoryRows:
    """Rows whose label is the largest of three linear functions of the embedding, which the offsets know nothing of."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(MEMBERS, n_rows, WIDTH, generator=generator, dtype=dtype)
    embeddings[1] = embeddings[0] @ torch.randn(WIDTH, WIDTH, generator=generator, dtype=dtype)
    labels = embeddings[0, :, :CLASSES].argmax(dim=1)
    fold = torch.arange(n_rows) % max(2, n_folds)
    written = torch.stack([(fold != f).to(dtype) for f in range(n_folds)]) if n_folds > 1 else torch.ones(1, n_rows)
    keys = KeyScale.of(embeddings).keys(embeddings).to(dtype)
    return MemoryRows(
        keys, 0.1 * torch.randn(MEMBERS, n_rows, CLASSES, generator=generator, dtype=dtype), labels, written
    )


def permuted(rows: MemoryRows, order: torch.Tensor) -> MemoryRows:
    return MemoryRows(rows.keys[:, order], rows.offsets[:, order], rows.labels[order], rows.written[:, order])


def plain_loss(read: torch.Tensor, rows: MemoryRows) -> torch.Tensor:
    """Cross-entropy of each fold and member in the plainest way, of shape (C, F, M)."""
    values = [
        F.cross_entropy((read[c, f, m] + rows.offsets[m])[on], rows.labels[on])
        for c in range(read.shape[0])
        for f, on in enumerate(rows.written.bool())
        for m in range(read.shape[2])
    ]
    return torch.stack(values).reshape(read.shape[:3])


# Seen to fail: with the penalty's pull left out of the gradient; with the folds' rows not weighted.
def test_linear_gradient_against_autograd():
    rows = drawn(40, n_folds=3, dtype=torch.float64)
    penalties = torch.tensor([0.01, 0.5], dtype=torch.float64)
    weight = torch.randn(2 * 3 * MEMBERS, CLASSES, WIDTH + 1, dtype=torch.float64, generator=torch.manual_seed(1))
    weight.requires_grad_()
    columns = torch.tensor([1.0] * WIDTH + [BIAS_PENALTY], dtype=torch.float64)
    read = read_linear(weight, rows.keys).reshape(2, 3, MEMBERS, 40, CLASSES)
    per_memory = (weight.square() * columns).sum((-1, -2)).reshape(2, 3, MEMBERS)
    expected_loss = plain_loss(read, rows) + 0.5 * penalties[:, None, None] * per_memory
    (expected,) = torch.autograd.grad(expected_loss.sum(), weight)
    parts = [linear_loss_gradient(weight.detach(), rows, penalties, *ends) for ends in ((0, 17), (17, 40))]
    torch.testing.assert_close(sum(loss for loss, _ in parts), expected_loss.detach(), rtol=F64_RTOL, atol=1e-12)
    torch.testing.assert_close(sum(part for _, part in parts), expected, rtol=F64_RTOL, atol=1e-12)


# Seen to fail: with `values = derivative`, the sign of LaCT's loss forgotten.
def test_swiglu_gradients_against_autograd():
    rows = drawn(40, n_folds=3, dtype=torch.float64)
    weights = start_swiglu(rows, 2 * 3, hidden=5, seed=0)
    generator = torch.Generator().manual_seed(2)
    weights["w1"] = torch.randn(weights["w1"].shape, dtype=torch.float64, generator=generator)
    leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
    expected_loss = plain_loss(read_swiglu(leaves, rows.keys).unflatten(0, (2, 3)), rows)
    expected = torch.autograd.grad(expected_loss.sum(), list(leaves.values()))
    parts = [swiglu_loss_gradients(weights, rows, *ends) for ends in ((0, 23), (23, 40))]
    torch.testing.assert_close(sum(loss for loss, _ in parts), expected_loss.detach(), rtol=F64_RTOL, atol=1e-12)
    for name, gradient in zip(leaves, expected, strict=True):
        torch.testing.assert_close(sum(part[name] for _, part in parts), gradient, rtol=F64_RTOL, atol=1e-12)


# Seen to fail: with the curvature's bound taken as a hundredth of what it is.
def test_linear_steps_without_momentum_never_raise_the_loss():
    rows = drawn(200)
    _, losses = write_linear(rows, torch.tensor([1e-3]), 30, momentum=0.0, backend="torch")
    assert np.all(np.diff(losses) <= 1e-6)
    assert losses[-1] < 0.5 * losses[0]


def test_linear_memory_reaches_the_minimum():
    rows = drawn(200)
    weight, _ = write_linear(rows, torch.tensor([0.03]), 200, momentum=0.7, backend="torch")
    _, gradient = linear_loss_gradient(weight, rows, torch.tensor([0.03]), 0, 200)
    assert gradient.abs().max() < 1e-5


# Seen to fail: with rows cut into consecutive chunks of 64, one update each.
@pytest.mark.parametrize("kind", KINDS)
def test_order_of_rows_does_not_matter(kind):
    rows = drawn(150)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(3))
    value = (0.01,) if kind == "linear" else (0.03,)
    first, _ = write(kind, rows, value, settings())
    second, _ = write(kind, permuted(rows, order), value, settings())
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=ORDER_RTOL, atol=ORDER_RTOL)


# Seen to fail: with the slice's share of the penalty forgotten.
@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_change_memory_and_not_the_weights(kind, monkeypatch):
    rows = drawn(150, n_folds=2)
    value = (0.01, 0.1) if kind == "linear" else (0.01, 0.03)
    whole, _ = write(kind, rows, value, settings())
    monkeypatch.setattr(rows_module, "STACK_BYTES", 20_000)
    assert rows.micro_batch(8, 3 * CLASSES) < 150
    sliced, _ = write(kind, rows, value, settings())
    for name in whole:
        torch.testing.assert_close(whole[name], sliced[name], rtol=ORDER_RTOL, atol=ORDER_RTOL)


@pytest.mark.parametrize("kind", KINDS)
def test_stacked_memories_do_not_influence_each_other(kind):
    rows = drawn(90, n_folds=3)
    values = (0.01, 0.3) if kind == "linear" else (0.01, 0.05)
    stacked, _ = write(kind, rows, values, settings())
    for fold in range(3):
        on = rows.written[fold].bool().nonzero().flatten()
        alone = permuted(MemoryRows(rows.keys, rows.offsets, rows.labels, torch.ones(1, 90)), on)
        single, _ = write(kind, alone, values[1:], settings())
        for name, value in stacked.items():
            mine = value.unflatten(0, (2, 3, MEMBERS))[1, fold]
            torch.testing.assert_close(mine, single[name], rtol=ORDER_RTOL, atol=ORDER_RTOL)


# Seen to fail: with `restore=False` for muon in `MemorySettings.restores_norms`.
def test_muon_restores_the_input_weights_row_norms():
    rows = drawn(100)
    start = start_swiglu(rows, 1, 16, 0)
    kept, _ = write("swiglu", rows, (0.03,), settings())
    for name in ("w0", "w2"):
        torch.testing.assert_close(row_norms(kept[name]), row_norms(start[name]), rtol=1e-6, atol=0)
        assert not torch.allclose(kept[name], start[name], atol=1e-3)


@pytest.mark.parametrize("rule", ["sgd", "momentum", "muon", "adamw"])
def test_every_update_rule_writes_the_swiglu_memory(rule):
    rows = drawn(200)
    made = MemorySettings(40, None, rule, "torch", 0, MemoryRecipe(hidden=16))
    _, losses = write("swiglu", rows, (made.swiglu_step_size,), made)
    assert losses[-1] < 0.8 * losses[0]


def test_a_constant_coordinate_is_left_out_of_the_keys():
    embeddings = torch.randn(1, 50, 3, generator=torch.Generator().manual_seed(0))
    embeddings[..., 1] = 1234.5
    scale = KeyScale.of(embeddings)
    keys = scale.keys(embeddings + torch.tensor([0.0, 1e-3, 0.0]))
    assert torch.equal(keys[..., 1], torch.zeros(1, 50))
    torch.testing.assert_close(keys[..., [0, 2]].std(dim=1, correction=0), torch.ones(1, 2), rtol=1e-5, atol=0)
    assert torch.equal(keys[..., 3], torch.ones(1, 50))


def test_preconditioner_inverts_the_bound():
    rows = drawn(80, n_folds=2)
    inverse = linear._preconditioner(rows, torch.tensor([0.1]))
    on = rows.written[1].bool()
    keys = rows.keys[0, on]
    bound = 0.5 * keys.T @ keys / on.sum() + 0.1 * torch.diag(torch.tensor([1.0] * WIDTH + [BIAS_PENALTY]))
    torch.testing.assert_close(inverse[MEMBERS] @ bound, torch.eye(WIDTH + 1), rtol=0, atol=1e-4)


def test_write_swiglu_stops_on_the_way_of_the_whole_schedule():
    rows = drawn(80)
    seen = {}
    write_swiglu(
        rows,
        torch.tensor([0.03]),
        10,
        rule="adamw",
        hidden=8,
        restore=False,
        seed=0,
        backend="torch",
        observer=lambda step, weights: seen.update({step: weights["w1"]}),
    )
    made = MemorySettings(10, 0.03, "adamw", "torch", 0, MemoryRecipe(hidden=8))
    stopped, losses = write("swiglu", rows, (0.03,), made, until=4)
    assert len(losses) == 4
    assert torch.equal(stopped["w1"], seen[4])
