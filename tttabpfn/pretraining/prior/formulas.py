"""Random closed-form functions: short formulas, and rules that combine ratings level by level."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

_TERMS: tuple[Callable[[Array, Array], NDArray[Any]], ...] = (
    lambda a, b: a * b,
    lambda a, b: a * b,
    lambda a, b: a - b,
    lambda a, b: np.minimum(a, b),
    lambda a, b: np.maximum(a, b),
    lambda a, b: np.abs(a - b),
    lambda a, b: a / (np.abs(b) + np.float32(0.3)),
    lambda a, b: np.sign(a - a.mean()) * np.sign(b - b.mean()),
    lambda a, b: np.hypot(a, b),
)


def formulas(rng: np.random.Generator, values: Array, n_out: int) -> Array:
    """Signed sums of a few terms of two columns each: products, ratios, differences, extremes, or exclusive-or.

    Columns are shifted first, so that a product also holds linear effects, as lengths and weights have them.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of the formulas.
    values : ndarray of shape (n_rows, n_in)
        Causes, standardised.
    n_out : int
        Effects to compute.

    Returns
    -------
    ndarray of shape (n_rows, n_out)
        Effects, in any unit.
    """
    if values.shape[1] == 1:
        values = np.concatenate([values, np.ones_like(values)], axis=1)
    n_rows, n_in = values.shape
    shifted = values + rng.choice([0.0, 2.0]) * np.abs(rng.normal(size=n_in)).astype(np.float32)
    alike = rng.random() < 0.5
    out = np.zeros((n_rows, n_out), dtype=np.float32)
    for effect in range(n_out):
        kind = int(rng.integers(len(_TERMS)))
        columns = rng.permutation(n_in)
        for term in range(int(rng.integers(1, 4))):
            left, right = columns[(2 * term) % n_in], columns[(2 * term + 1) % n_in]
            function = _TERMS[kind if alike else int(rng.integers(len(_TERMS)))]
            weight = np.float32(rng.choice([-1.0, 1.0]) * (1.0 if alike else np.exp(0.5 * rng.normal())))
            out[:, effect] += weight * function(shifted[:, left], shifted[:, right])
    return out


def _levels(column: Array, count: int) -> NDArray[np.int64]:
    cuts = np.quantile(column, np.arange(1, count) / count)
    return np.searchsorted(cuts, column)


def _combine(rng: np.random.Generator, items: list[NDArray[np.int64]], count: int) -> NDArray[np.int64]:
    """Combine ratings into one of `count` levels."""
    kind = rng.random()
    stacked = np.stack(items)
    if kind < 0.25:
        joined = stacked.min(axis=0)
    elif kind < 0.4:
        joined = stacked.max(axis=0)
    elif kind < 0.65:
        joined = np.rint(rng.dirichlet(np.full(len(items), 3.0)) @ stacked).astype(np.int64)
    elif kind < 0.8:  # one rating at its lowest overrules the others
        veto = stacked[int(rng.integers(len(items)))]
        joined = np.where(veto == 0, 0, 1 + stacked.sum(axis=0) * (count - 1) // max(1, int(stacked.sum(axis=0).max())))
    else:
        code = np.zeros(stacked.shape[1], dtype=np.int64)
        for item in items:
            code = code * (int(item.max()) + 1) + item
        joined = rng.integers(count, size=int(code.max()) + 1)[code]
    return np.minimum(joined, count - 1)


def rules(rng: np.random.Generator, values: Array, n_out: int) -> Array:
    """Ratings combined two or three at a time, by minimum, maximum, mean, veto or table, until one is left.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of the rules.
    values : ndarray of shape (n_rows, n_in)
        Causes; each is cut into two to five levels of equal share.
    n_out : int
        Effects to compute.

    Returns
    -------
    ndarray of shape (n_rows, n_out)
        Effects, a few distinct values each.
    """
    n_in = values.shape[1]
    out = np.empty((len(values), n_out), dtype=np.float32)
    for effect in range(n_out):
        used = rng.permutation(n_in)[: int(rng.integers(min(2, n_in), min(n_in, 8) + 1))]
        items = [_levels(values[:, column], int(rng.integers(2, 6))) for column in used]
        while len(items) > 1:
            taken = min(len(items), int(rng.integers(2, 4)))
            items = [*items[taken:], _combine(rng, items[:taken], int(rng.integers(3, 7)))]
        out[:, effect] = items[0]
    return out
