"""Tasks of discrete logic: parity, look-up tables, conjunctions, shallow trees, and products of signs.

Their columns are cheap to read one at a time and tell little that way: what counts is how levels go together.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tttabpfn.pretraining.prior.labels import Labels
from tttabpfn.pretraining.prior.mechanisms import Array

Levels = NDArray[np.int64]

KINDS = {"xor": 0.25, "parity": 0.2, "lookup": 0.2, "logic": 0.15, "tree": 0.2}


def _shares(rng: np.random.Generator, count: int, balanced: bool) -> NDArray[np.float64]:
    return np.full(count, 1.0 / count) if balanced else rng.dirichlet(np.full(count, 4.0))


def _draw_levels(rng: np.random.Generator, n_rows: int, counts: list[int], balanced: bool) -> Levels:
    """Draw independent levels, `counts[i]` of them in column i."""
    return np.stack([rng.choice(c, size=n_rows, p=_shares(rng, c, balanced)) for c in counts], axis=1)


def sum_of_levels(rng: np.random.Generator, levels: Levels, n_classes: int) -> Labels:
    """Sum of randomly renumbered levels, modulo the number of classes: parity for two classes and two levels."""
    total = np.zeros(len(levels), dtype=np.int64)
    for column in levels.T:
        total += rng.permutation(int(column.max()) + 1)[column]
    return total % n_classes


def lookup(rng: np.random.Generator, levels: Levels, n_classes: int) -> Labels:
    """Random table over all combinations of levels, with every class equally often in it."""
    code, size = np.zeros(len(levels), dtype=np.int64), 1
    for column in levels.T:
        count = int(column.max()) + 1
        code, size = code * count + column, size * count
    return rng.permutation(np.arange(size) % n_classes)[code]


def logic(rng: np.random.Generator, levels: Levels, n_classes: int) -> Labels:
    """Number of conditions that hold, each a conjunction or disjunction of tests of single columns."""
    total = np.zeros(len(levels), dtype=np.int64)
    for _ in range(n_classes - 1):
        used = rng.permutation(levels.shape[1])[: int(rng.integers(1, min(3, levels.shape[1]) + 1))]
        tests = np.stack([levels[:, c] == rng.integers(int(levels[:, c].max()) + 1) for c in used])
        tests ^= rng.random((len(used), 1)) < 0.3
        total += tests.all(axis=0) if rng.random() < 0.5 else tests.any(axis=0)
    return total


def tree(rng: np.random.Generator, levels: Levels, n_classes: int) -> Labels:
    """Decision tree of two to five questions on the way, another one at each node; leaves of random class."""
    depth = int(rng.integers(2, 6))
    node = np.zeros(len(levels), dtype=np.int64)
    for _ in range(depth):
        nodes = int(node.max()) + 1
        column = rng.integers(levels.shape[1], size=nodes)[node]
        answer = levels[np.arange(len(levels)), column]
        node = 2 * node + (answer > rng.integers(3, size=nodes)[node] * (levels.max() > 1))
    return rng.permutation(np.arange(max(int(node.max()) + 1, n_classes)) % n_classes)[node]


def _label(rng: np.random.Generator, kind: str, levels: Levels, n_classes: int) -> Labels:
    if kind in ("xor", "parity"):
        return sum_of_levels(rng, levels, n_classes)
    return {"lookup": lookup, "logic": logic, "tree": tree}[kind](rng, levels, n_classes)


def _drivers(rng: np.random.Generator, kind: str, n_columns: int) -> int:
    """How many columns a rule reads."""
    most = {"xor": 2, "parity": 5, "lookup": 4, "logic": 6, "tree": 8}[kind]
    return min(n_columns, int(rng.integers(2, most + 1)))


def _noisy(rng: np.random.Generator, labels: Labels, n_classes: int) -> Labels:
    wrong = rng.random(len(labels)) < rng.choice([0.0, rng.uniform(0.0, 0.15)])
    return np.where(wrong, rng.integers(n_classes, size=len(labels)), labels)


def _observe(rng: np.random.Generator, levels: Levels, counts: list[int]) -> Array:
    """Show levels as they are, or as numbers of a continuous column whose quantiles they are."""
    out = levels.astype(np.float32)
    if rng.random() < 0.5:
        return out
    for column, count in enumerate(counts):
        place = (levels[:, column] + rng.random(len(levels))) / count
        place = np.clip(place, 1e-4, 1 - 1e-4)
        out[:, column] = np.log(place / (1 - place)) if rng.random() < 0.5 else place
    return out


def rule_task(rng: np.random.Generator, n_rows: int, n_columns: int, n_classes: int) -> tuple[Array, Labels]:
    """Exclusive-or, parity, look-up, logic or tree of a few of the columns, with up to 15 % of wrong labels.

    In exclusive-or and parity the levels are balanced, so that no single column tells anything.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of all draws.
    n_rows, n_columns, n_classes : int
        Shape of the table and classes wanted.

    Returns
    -------
    values : ndarray of shape (n_rows, n_columns), float32
        The columns read come first.
    labels : ndarray of shape (n_rows,), int64
    """
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    used = _drivers(rng, kind, n_columns)
    blind = kind in ("xor", "parity")
    most = n_classes if blind else int(rng.choice([2, 3, 4]))
    counts = [most if blind else int(rng.integers(2, most + 1)) for _ in range(used)]
    others = [int(rng.integers(2, 5)) for _ in range(n_columns - used)]
    levels = _draw_levels(rng, n_rows, counts + others, blind or rng.random() < 0.5)
    labels = _noisy(rng, _label(rng, kind, levels[:, :used], n_classes), n_classes)
    return _observe(rng, levels, counts + others), labels


def categorical_task(rng: np.random.Generator, n_rows: int, n_columns: int, n_classes: int) -> tuple[Array, Labels]:
    """All columns categorical, correlated or not; the label by parity, look-up, logic, tree, or sums of level effects.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of all draws.
    n_rows, n_columns, n_classes : int
        Shape of the table and classes wanted.

    Returns
    -------
    values : ndarray of shape (n_rows, n_columns), float32
        Level numbers.
    labels : ndarray of shape (n_rows,), int64
    """
    most = int(rng.choice([2, 3, 3, 4, 5, 8]))
    counts = [int(rng.integers(2, most + 1)) for _ in range(n_columns)]
    levels = _draw_levels(rng, n_rows, counts, rng.random() < 0.5)
    if n_columns > 2 and rng.random() < 0.4:  # columns that repeat a neighbour's level most of the time
        for column in range(1, n_columns):
            same = rng.random(n_rows) < rng.uniform(0.0, 0.7)
            levels[:, column] = np.where(same, levels[:, column - 1] % counts[column], levels[:, column])
    kind = str(rng.choice(["effects", "parity", "lookup", "logic", "tree"], p=[0.35, 0.1, 0.2, 0.15, 0.2]))
    if kind == "effects":
        labels = _by_effects(rng, levels, counts, n_classes)
    else:
        used = rng.permutation(n_columns)[: _drivers(rng, kind, n_columns)]
        labels = _label(rng, kind, levels[:, used], n_classes)
    return levels.astype(np.float32), _noisy(rng, labels, n_classes)


def _by_effects(rng: np.random.Generator, levels: Levels, counts: list[int], n_classes: int) -> Labels:
    """Largest of one score a class: effects of levels, and of pairs of levels of some pairs of columns."""
    scores = np.zeros((len(levels), n_classes))
    for column, count in enumerate(counts):
        scores += np.exp(0.7 * rng.normal()) * rng.normal(size=(count, n_classes))[levels[:, column]]
    share = rng.choice([0.0, 0.5, 2.0])
    for _ in range(int(rng.integers(1, 4))):
        left, right = rng.integers(len(counts), size=2)
        table = rng.normal(size=(counts[left], counts[right], n_classes))
        scores += share * table[levels[:, left], levels[:, right]]
    return np.argmax(scores + rng.choice([0.0, 0.5, 1.0]) * rng.gumbel(size=scores.shape), axis=1).astype(np.int64)
