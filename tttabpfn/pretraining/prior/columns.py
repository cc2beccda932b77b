"""Where the columns of a synthetic table come from, and how they end up looking like those of a real one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tttabpfn.pretraining.prior.mechanisms import Array, activate, apply, standardise

if TYPE_CHECKING:
    from tttabpfn.pretraining.config import PriorConfig


def sample_causes(rng: np.random.Generator, n_rows: int, n_columns: int) -> Array:
    """Draw root causes: columns of one random family, independent, correlated or in clusters.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of all draws.
    n_rows, n_columns : int
        Shape of the table.

    Returns
    -------
    ndarray of shape (n_rows, n_columns)
        Standardised columns.
    """
    shape = (n_rows, n_columns)
    kind = rng.random()
    if kind < 0.45:
        values = rng.normal(size=shape)
    elif kind < 0.65:
        values = rng.uniform(-1.7, 1.7, size=shape)
    elif kind < 0.75:
        values = rng.standard_t(4, size=shape)
    else:
        count = int(rng.integers(2, 9))
        member = rng.choice(count, size=n_rows, p=rng.dirichlet(np.full(count, 2.0)))
        values = rng.normal(size=(count, n_columns))[member] * rng.uniform(0.5, 3.0) + rng.normal(size=shape)
    if n_columns > 1 and rng.random() < 0.6:
        rank = int(rng.integers(1, n_columns + 1))
        shared = rng.normal(size=(n_rows, rank)) @ rng.normal(size=(rank, n_columns)) / np.sqrt(rank)
        share = rng.uniform(0.1, 0.9)
        values = np.sqrt(1 - share) * values + np.sqrt(share) * shared
    return standardise(values.astype(np.float32))


def _to_category(rng: np.random.Generator, column: Array, ordered: bool) -> Array:
    """Cut a column into a few levels, coded 0, 1, ... in their order or in a random one."""
    levels = int(rng.choice([2, 2, 2, 3, 3, 4, 5, 6, 8, 12]))
    if rng.random() < 0.5:
        cuts = np.quantile(column, np.sort(rng.random(levels - 1)))
    else:
        cuts = np.quantile(column, np.arange(1, levels) / levels)
    codes = np.searchsorted(cuts, column)
    return (codes if ordered else rng.permutation(levels)[codes]).astype(np.float32)


def rare_levels(rng: np.random.Generator, column: Array) -> Array:
    """Turn a column into 50 to 2,000 levels in random order, most of them rare, that still carry some of its effect.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of the levels.
    column : ndarray of shape (n_rows,)
        Standardised effect.

    Returns
    -------
    ndarray of shape (n_rows,)
        Level numbers, at most as many as there are rows.
    """
    n_rows = len(column)
    levels = min(int(np.exp(rng.uniform(np.log(50), np.log(2000)))), n_rows)
    share = rng.uniform(0.2, 1.0)
    effect = share * column + np.sqrt(1 - share * share) * rng.normal(size=n_rows)
    sizes = rng.dirichlet(np.full(levels, rng.choice([0.3, 1.0, 10.0])))
    bins = np.searchsorted(np.cumsum(sizes)[:-1], (np.argsort(np.argsort(effect)) + 0.5) / n_rows)
    return rng.permutation(levels)[bins].astype(np.float32)


def coarsen(rng: np.random.Generator, values: Array) -> Array:
    """Replace every column by a few ordered levels, as in tables of ratings and counts."""
    out = np.empty_like(values)
    for column in range(values.shape[1]):
        out[:, column] = _to_category(rng, values[:, column], ordered=True)
    return out


def mix(rng: np.random.Generator, values: Array) -> Array:
    """Observe rotated columns of unequal variance, so that what matters can lie in a direction of little variance.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of the rotations.
    values : ndarray of shape (n_rows, n_columns)
        Standardised columns.

    Returns
    -------
    ndarray of shape (n_rows, n_columns)
        Correlated standardised columns, from which the given ones follow by a linear map.
    """
    n_columns = values.shape[1]
    first, _ = np.linalg.qr(rng.normal(size=(n_columns, n_columns)))
    second, _ = np.linalg.qr(rng.normal(size=(n_columns, n_columns)))
    spread = np.exp(rng.uniform(0.0, 1.0) * rng.normal(size=n_columns))
    return standardise((values @ ((first * spread) @ second)).astype(np.float32))


def _warp(rng: np.random.Generator, values: Array) -> Array:
    """Change the marginal of columns monotonically: skewed, heavy-tailed, bounded, or in few distinct values."""
    kind = rng.random()
    if kind < 0.25:
        return np.exp(np.clip(values * np.float32(rng.uniform(0.3, 1.5)), -8.0, 8.0)).astype(np.float32)
    if kind < 0.4:
        return np.asarray(np.tanh(values * rng.uniform(0.5, 2.0)), dtype=np.float32)
    if kind < 0.55:
        return np.asarray(np.sign(values) * np.abs(values) ** rng.uniform(0.4, 2.5), dtype=np.float32)
    if kind < 0.65:
        return np.asarray(np.maximum(values - rng.normal(), 0.0), dtype=np.float32)
    steps = np.float32(rng.choice([1.0, 2.0, 4.0, 10.0]))
    return np.asarray(np.round(values * steps) / steps, dtype=np.float32)


def dress(rng: np.random.Generator, values: Array, config: PriorConfig) -> Array:
    """Turn standardised effects into observed columns: noise, warps, categories and rounding.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of all draws.
    values : ndarray of shape (n_rows, n_columns)
        The columns as the causal model made them.
    config : PriorConfig
        How often categories occur.

    Returns
    -------
    ndarray of shape (n_rows, n_columns)
        Observed columns, without missing cells.
    """
    out = values.copy()
    n_columns = out.shape[1]
    if rng.random() < 0.4:
        out += np.float32(np.exp(rng.uniform(-4.0, 0.0))) * rng.normal(size=out.shape).astype(np.float32)
    if rng.random() < 0.5:
        warped = rng.random(n_columns) < rng.random()
        for column in np.flatnonzero(warped):
            out[:, column] = _warp(rng, out[:, column])
    if rng.random() < config.categorical:
        share = rng.choice([0.2, 0.5, 0.8, 1.0])
        ordered = rng.random()
        for column in np.flatnonzero(rng.random(n_columns) < share):
            out[:, column] = _to_category(rng, out[:, column], rng.random() < ordered)
    if config.rare and rng.random() < config.rare:
        for column in rng.permutation(n_columns)[: int(rng.integers(1, 4))]:
            out[:, column] = rare_levels(rng, values[:, column])
    return out


def junk(rng: np.random.Generator, informative: Array, n_columns: int) -> Array:
    """Draw columns that say nothing about the target: noise, shuffled copies, or both.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of all draws.
    informative : ndarray of shape (n_rows, n_informative)
        Columns whose marginals the shuffled copies have.
    n_columns : int
        Junk columns wanted.

    Returns
    -------
    ndarray of shape (n_rows, n_columns)
    """
    n_rows = informative.shape[0]
    if rng.random() < 0.5:
        return activate(rng, sample_causes(rng, n_rows, n_columns))
    copies = informative[:, rng.integers(informative.shape[1], size=n_columns)]
    return rng.permuted(copies, axis=0)


def redundant(rng: np.random.Generator, informative: Array, n_columns: int) -> Array:
    """Columns computed from the informative ones: noisy linear or nonlinear functions of a few of them."""
    effects = apply(rng, str(rng.choice(["linear", "mlp"])), informative, n_columns)
    noise = np.float32(np.exp(rng.uniform(-3.0, 0.5)))
    return standardise(effects + noise * rng.normal(size=effects.shape).astype(np.float32))


def products_of_pairs(rng: np.random.Generator, values: Array, n_columns: int) -> Array:
    """Products of two standardised observed columns, as TabPFN's preprocessing can append them.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of the pairs.
    values : ndarray of shape (n_rows, n_observed)
        Observed columns.
    n_columns : int
        Products wanted.

    Returns
    -------
    ndarray of shape (n_rows, n_columns)
    """
    scaled = standardise(values)
    left, right = rng.integers(values.shape[1], size=(2, n_columns))
    return (scaled[:, left] * scaled[:, right]).astype(np.float32)


def scale_like_inference(rng: np.random.Generator, values: Array, n_train: int) -> Array:
    """Scale columns as the ensemble members do at inference: not at all, to uniform quantiles, or squashed.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of the choice.
    values : ndarray of shape (n_rows, n_columns)
        Observed columns.
    n_train : int
        Leading rows that form the context; the scalers see only these.

    Returns
    -------
    ndarray of shape (n_rows, n_columns)
    """
    kind = rng.random()
    context = values[:n_train]
    if kind < 0.6:
        centre, spread = context.mean(axis=0), context.std(axis=0) + 1e-6
        return (centre + spread * np.clip((values - centre) / spread, -12.0, 12.0)).astype(np.float32)
    if kind < 0.8:
        out = np.empty_like(values)
        grid = np.linspace(0.0, 1.0, n_train, dtype=np.float32)
        for column in range(values.shape[1]):
            ordered = np.sort(context[:, column])
            left = np.interp(values[:, column], ordered, grid)
            right = 1.0 - np.interp(-values[:, column], -ordered[::-1], grid)
            out[:, column] = 0.5 * (left + right)
        return out
    low, middle, high = np.quantile(context, [0.25, 0.5, 0.75], axis=0)
    reach = high - low
    reach = np.where(reach > 0, reach, np.maximum(context.max(axis=0) - context.min(axis=0), 1e-6) / 2)
    scaled = (values - middle) / reach
    return (scaled / np.sqrt(1.0 + (scaled / 3.0) ** 2)).astype(np.float32)


def hide_cells(rng: np.random.Generator, values: Array) -> Array:
    """Make cells missing (NaN): at random, or more often where the value is high, in some or all columns.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of all draws.
    values : ndarray of shape (n_rows, n_columns)
        Complete table.

    Returns
    -------
    ndarray of shape (n_rows, n_columns)
        Copy with missing cells; the first row's cells are kept, so that no column is missing altogether.
    """
    n_columns = values.shape[1]
    columns = rng.random(n_columns) < rng.choice([0.2, 0.5, 1.0])
    rate = np.exp(rng.uniform(np.log(0.01), np.log(0.4)))
    chance = np.full(values.shape, rate)
    if rng.random() < 0.3:
        chance *= 2.0 * (values > np.median(values, axis=0))
    hidden = (rng.random(values.shape) < chance) & columns
    hidden[0] = False
    return np.where(hidden, np.float32(np.nan), values)
