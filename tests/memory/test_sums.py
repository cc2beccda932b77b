"""Sums: against autograd's own gradient and curvature, and that they add up in any order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from tttabpfn.memory.sums import MIN_CURVATURE, Sums, curvature


def rows(n_rows=60, n_classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(2, n_rows, 4, generator=generator, dtype=torch.float64)
    keys[..., -1] = 1.0
    start = torch.randn(2, n_rows, n_classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(n_classes, (n_rows,), generator=generator)
    folds = torch.randint(3, (n_rows,), generator=generator)
    weights = torch.rand(n_rows, generator=generator, dtype=torch.float64) + 0.5
    return keys, start, labels, folds, weights


def some(parts, kept):
    keys, start, labels, folds, weights = parts
    return keys[:, kept], start[:, kept], labels[kept], folds[kept], weights[kept]


def test_gradients_are_those_of_the_cross_entropy():
    keys, start, labels, folds, weights = rows()
    sums = Sums.of(keys, start, labels, folds, weights, 3)
    weight = torch.zeros(2, 3, 4, dtype=torch.float64, requires_grad=True)
    logits = start + keys @ weight.mT
    loss = sum((cross_entropy(member, labels, reduction="none") * weights).sum() for member in logits)
    (gradient,) = torch.autograd.grad(loss, weight)
    torch.testing.assert_close(sums.gradients.sum(dim=0), -gradient)


# Seen to fail: without the factor.
def test_weights_are_a_newton_step_for_two_classes():
    keys, start, labels, folds, weights = rows(n_classes=2)
    sums = Sums.of(keys[:1], start[:1], labels, folds, weights, 3)
    # The difference of the two classes' weights is what counts: logistic regression.
    offset = (start[0, :, 1] - start[0, :, 0]).numpy()
    share = 1 / (1 + np.exp(-offset))
    k, w, y = keys[0].numpy(), weights.numpy(), labels.numpy()
    hessian = (k * (w * np.maximum(share * (1 - share), MIN_CURVATURE))[:, None]).T @ k
    penalty = 0.01 * w.sum() * np.diag([1, 1, 1, 0.01])
    step = np.linalg.solve(hessian + penalty, k.T @ (w * (y - share)))
    found = sums.weights(0.01)[0]
    # Shrinkage to zero acts on each class's weights, so that on their difference the penalty is the same.
    np.testing.assert_allclose((found[1] - found[0]).numpy(), step, rtol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_sums_add_up_over_any_split_and_order(seed):
    parts = rows()
    whole = Sums.of(*parts, 3)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    cuts = sorted(np.random.default_rng(seed).integers(0, 61, size=4).tolist())
    found = Sums.zero(3, 2, 3, 4)
    for piece in torch.tensor_split(order, cuts):
        found = found.plus(Sums.of(*some(parts, piece), 3))
    for name, value in whole.tensors().items():
        torch.testing.assert_close(found.tensors()[name], value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.weights(0.1), whole.weights(0.1))
    gone = order[:25]
    left = whole.plus(Sums.of(*some(parts, gone), 3), -1.0)
    expected = Sums.of(*some(parts, order[25:]), 3)
    for name, value in expected.tensors().items():
        torch.testing.assert_close(left.tensors()[name], value, rtol=1e-10, atol=1e-10)


def test_a_fold_left_out_has_no_say():
    parts = rows()
    sums, folds = Sums.of(*parts, 3), parts[3]
    others = Sums.of(*some(parts, folds != 1), 3)
    torch.testing.assert_close(sums.weights(0.1, without=1), others.weights(0.1))
    assert (sums.weights(0.1, without=1) - sums.weights(0.1)).abs().max() > 1e-3


def test_weights_of_rows_are_repetitions():
    keys, start, labels, folds, _ = rows()
    twice = torch.cat([torch.arange(60), torch.arange(20)])
    weights = torch.ones(60, dtype=torch.float64)
    weights[:20] = 2.0
    weighted = Sums.of(keys, start, labels, folds, weights, 3)
    repeated = Sums.of(*some((keys, start, labels, folds, torch.ones(60, dtype=torch.float64)), twice), 3)
    for name, value in weighted.tensors().items():
        torch.testing.assert_close(repeated.tensors()[name], value, rtol=1e-12, atol=1e-12)


def test_no_rows_give_no_weights():
    assert not Sums.zero(3, 2, 3, 4).weights(0.1).any()


def test_a_sure_row_keeps_some_curvature():
    assert curvature(torch.tensor([1.0, 0.0])) == MIN_CURVATURE
    assert curvature(torch.tensor([0.5, 0.5])) == 0.25
