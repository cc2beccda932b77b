"""Which demonstrations play which part: held-back rows, and a context and queries for every step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RowIndices = NDArray[np.int64]
"""Positions of demonstrations."""

ROWS_BRANCH = 13
FEW_QUERIES = 0.35
"""Share of the demonstrations outside the context below which the rows of the context are queries too."""


def stratified_rows(
    labels: NDArray[np.int64],
    pool: RowIndices,
    size: int,
    rng: np.random.Generator,
    *,
    every_class: bool = True,
    weights: NDArray[np.float64] | None = None,
) -> RowIndices:
    """Draw rows of a pool without replacement, class shares kept and no class left out that fits.

    Parameters
    ----------
    labels : ndarray of shape (N,), int
        Class codes of all demonstrations.
    pool : ndarray of shape (P,), int
        RowIndices to draw from.
    size : int
        RowIndices to draw, at most ``P``.
    rng : Generator
        Source of randomness.
    every_class : bool, default=True
        Take at least one row of every class while `size` allows it.
    weights : ndarray of shape (N,), optional
        Above 0. A class then has its share of them, as far as its rows reach, and its heavy rows come first more often.

    Returns
    -------
    ndarray of shape (size,), int
        Sorted rows.

    References
    ----------
    Efraimidis and Spirakis 2006, "Weighted random sampling with a reservoir", for the draw by weight.

    Examples
    --------
    >>> labels = np.array([0] * 8 + [1] * 2)
    >>> rows = stratified_rows(labels, np.arange(10), 5, np.random.default_rng(0))
    >>> np.bincount(labels[rows]).tolist()
    [4, 1]
    """
    if size >= len(pool):
        return np.sort(pool)
    classes, inverse, counts = np.unique(labels[pool], return_inverse=True, return_counts=True)
    if weights is None:
        quota = _quotas(counts, size, every_class)
        shuffled = rng.permutation(len(pool))
    else:
        totals = np.bincount(inverse, weights=weights[pool]).astype(np.float64)
        quota = _quotas(counts, size, every_class, totals)
        shuffled = np.argsort(rng.exponential(size=len(pool)) / weights[pool], kind="stable")
    taken = [pool[shuffled[inverse[shuffled] == position]][: quota[position]] for position in range(len(classes))]
    return np.sort(np.concatenate(taken))


def _quotas(
    counts: NDArray[np.int64], size: int, every_class: bool, totals: NDArray[np.float64] | None = None
) -> NDArray[np.int64]:
    """RowIndices per class: proportional to counts (or totals), largest remainders first."""
    floor = np.minimum(1, counts) if every_class and size >= len(counts) else np.zeros_like(counts)
    ideal = size * counts / counts.sum() if totals is None else _within(counts, size, totals)
    quota = np.maximum(np.floor(ideal).astype(np.int64), floor)
    while quota.sum() < size:
        quota[np.argmax(np.where(quota < counts, ideal - quota, -np.inf))] += 1
    while quota.sum() > size:
        quota[np.argmax(np.where(quota > floor, quota - ideal, -np.inf))] -= 1
    return quota


def _within(counts: NDArray[np.int64], size: int, totals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares of `size` proportional to totals, none above its count: what one class cannot fill goes to the others."""
    full = np.zeros(len(counts), dtype=bool)
    while True:
        left = size - counts[full].sum()
        ideal = np.where(full, counts, left * totals / totals[~full].sum())
        over = (ideal > counts) & ~full
        if not over.any():
            return ideal
        full |= over


def rows_to_read(labels: NDArray[np.int64], context: RowIndices, max_rows: int, seed: int) -> RowIndices:
    """Rows that the network reads: the context, and as many others as it may, drawn by class.

    Parameters
    ----------
    labels : ndarray of shape (N,), int
        Class codes.
    context : ndarray of shape (n,), int
        Rows kept as context.
    max_rows : int
        Rows outside the context at most.
    seed : int
        Root of the seed tree.

    Returns
    -------
    ndarray of int
        Sorted.
    """
    if len(labels) - len(context) <= max_rows:
        return np.arange(len(labels))
    outside = np.setdiff1d(np.arange(len(labels)), context)
    drawn = stratified_rows(labels, outside, max_rows, seeded(seed, ROWS_BRANCH), every_class=False)
    return np.union1d(context, drawn)


@dataclass(frozen=True)
class Split:
    """The parts that demonstrations play throughout one adaptation.

    Parameters
    ----------
    context : ndarray of int
        RowIndices kept as context at predict.
    pool : ndarray of int
        RowIndices from which the steps' contexts and queries are drawn.
    held_back : ndarray of int
        RowIndices that no step before the guard's decision sees.
    guard_context : ndarray of int
        The context that the held-back rows are scored with: the predicting one, less the held-back rows.
    folds : tuple of ndarray of int
        Where the context leaves few rows: parts of the pool that are queries by turns, the rest of it their context.
        Empty where the rows outside the context are the queries.
    """

    context: RowIndices
    pool: RowIndices
    held_back: RowIndices
    guard_context: RowIndices
    folds: tuple[RowIndices, ...] = ()

    @property
    def held_back_in_context(self) -> bool:
        """Whether held-back rows are context at predict, so that they are judged with a smaller one."""
        return len(np.intersect1d(self.held_back, self.context)) > 0


def split_demonstrations(
    labels: NDArray[np.int64],
    context: RowIndices,
    *,
    share: float,
    max_held_back: int,
    rng: np.random.Generator,
    n_folds: int = 3,
) -> Split:
    """Set held-back rows aside, from outside the context where there are rows outside it.

    Parameters
    ----------
    labels : ndarray of shape (N,), int
        Class codes.
    context : ndarray of shape (n,), int
        RowIndices kept as context at predict.
    share : float
        Share of the rows outside the context (of all rows, if the context is everything) to hold back.
    max_held_back : int
        RowIndices to hold back at most.
    rng : Generator
        Source of randomness.
    n_folds : int, default=3
        Parts that are queries by turns where the rows outside the context are fewer than `FEW_QUERIES` of all.

    Returns
    -------
    Split
        `held_back` is empty if `share` is 0 or there are too few rows.
    """
    everything = np.arange(len(labels))
    outside = np.setdiff1d(everything, context)
    source = outside if len(outside) >= max(8, share * len(labels) / 2) else everything
    # One context row of every class stays in the context: no row is scored without an example of its class.
    _, first = np.unique(labels[context], return_index=True)
    source = np.setdiff1d(source, context[first])
    size = min(max_held_back, round(share * len(source)))
    held_back = np.empty(0, dtype=np.int64)
    if size >= 4:
        held_back = stratified_rows(labels, source, size, rng, every_class=False)
    pool = np.setdiff1d(everything, held_back)
    few = len(outside) < FEW_QUERIES * len(labels)
    folds = query_folds(labels, pool, n_folds, rng) if few else ()
    return Split(context, pool, held_back, np.setdiff1d(context, held_back), folds)


def query_folds(
    labels: NDArray[np.int64],
    pool: RowIndices,
    n_folds: int,
    rng: np.random.Generator,
    *,
    keep_out: RowIndices | None = None,
) -> tuple[RowIndices, ...]:
    """Parts of the pool that are queries by turns; one row of each class is in none of them.

    Parameters
    ----------
    labels : ndarray of shape (N,), int
        Class codes.
    pool : ndarray of shape (P,), int
        RowIndices that may be used.
    n_folds : int
        Parts at most.
    rng : Generator
        Source of randomness.
    keep_out : ndarray of int, optional
        RowIndices from which that one row of each class is taken; by default the pool.

    Returns
    -------
    tuple of ndarray of int
        None of them empty.
    """
    keep_out = pool if keep_out is None else keep_out
    _, first = np.unique(labels[keep_out], return_index=True)
    queries = np.setdiff1d(pool, keep_out[first])
    parts = stratified_parts(labels[queries], n_folds, rng)
    return tuple(fold for part in range(n_folds) if len(fold := queries[parts == part]))


def stratified_parts(labels: NDArray[np.int64], n_parts: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Deal rows out to parts, class by class in turn, so that each part has its share of every class.

    Parameters
    ----------
    labels : ndarray of shape (N,), int
        Class codes.
    n_parts : int
        Number of parts.
    rng : Generator
        Source of randomness.

    Returns
    -------
    ndarray of shape (N,), int
        Each row's part.

    Examples
    --------
    >>> parts = stratified_parts(np.array([0] * 6 + [1] * 3), 3, np.random.default_rng(0))
    >>> np.bincount(parts[:6]).tolist(), np.bincount(parts[6:]).tolist()
    ([2, 2, 2], [1, 1, 1])
    """
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    parts = np.empty(len(labels), dtype=np.int64)
    parts[by_class] = np.arange(len(labels)) % n_parts
    return parts


def draw_episode(
    split: Split, *, step: int, chunk_size: int, rng: np.random.Generator
) -> tuple[RowIndices, RowIndices]:
    """Draw one step's context and queries.

    Parameters
    ----------
    split : Split
        The rows that may be used.
    step : int
        Number of the step, from 0; folds take turns by it.
    chunk_size : int
        Query rows at most.
    rng : Generator
        Source of randomness.

    Returns
    -------
    context, query : ndarray of int
        Disjoint rows of the pool: the predicting context and rows outside it, or a fold and the rows outside the fold.
    """
    if split.folds:
        query = split.folds[step % len(split.folds)]
        context = np.setdiff1d(split.pool, query)
    else:
        context = np.intersect1d(split.guard_context, split.pool)
        query = np.setdiff1d(split.pool, context)
    return context, np.sort(rng.permutation(query)[:chunk_size])


def seeded(seed: int, *branch: int) -> np.random.Generator:
    """A generator of the seed tree: the same for the same root and branch (purpose, step), apart from all others."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=branch))
