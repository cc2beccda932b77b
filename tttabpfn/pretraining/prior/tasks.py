"""Synthetic classification tasks: a table, its labels, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from tttabpfn.pretraining.prior import columns as cols
from tttabpfn.pretraining.prior.labels import (
    Labels,
    class_count,
    class_shares,
    flip,
    labels_from_score,
    labels_from_scores,
    tidy,
)
from tttabpfn.pretraining.prior.mechanisms import Array, activate, apply, standardise
from tttabpfn.pretraining.prior.rules import categorical_task, rule_task

if TYPE_CHECKING:
    from tttabpfn.pretraining.config import PriorConfig

Task = tuple[Array, Labels]

# How often each mechanism computes the label in the family "function".
MECHANISM_SHARES = {
    "linear": 0.21,
    "mlp": 0.16,
    "trees": 0.19,
    "prototypes": 0.06,
    "waves": 0.06,
    "additive": 0.1,
    "products": 0.06,
    "formulas": 0.09,
    "rules": 0.07,
}


def function_task(rng: np.random.Generator, n_rows: int, n_columns: int, n_classes: int) -> Task:
    """Columns first, then a label that a random function computes from some of them (columns cause the label)."""
    values = cols.sample_causes(rng, n_rows, n_columns)
    if rng.random() < 0.3:
        values = activate(rng, values)
    if rng.random() < 0.25:
        values = standardise(cols.coarsen(rng, values))
    relevant = values[:, : max(1, int(np.ceil(n_columns * rng.uniform(0.3, 1.0))))]
    name = str(rng.choice(list(MECHANISM_SHARES), p=list(MECHANISM_SHARES.values())))
    if name == "rules" and rng.random() < 0.7:
        relevant = values[:] = standardise(cols.coarsen(rng, values))
    labels = _label_from(rng, name, relevant, n_classes)
    if n_columns > 2 and rng.random() < 0.2:
        values = cols.mix(rng, values)
    return values, labels


def _label_from(rng: np.random.Generator, name: str, causes: Array, n_classes: int) -> Labels:
    if n_classes > 2 and rng.random() < 0.6:
        return labels_from_scores(rng, apply(rng, name, causes, n_classes))
    score = apply(rng, name, causes, 1)[:, 0]
    if n_classes == 3 and name in ("linear", "formulas") and rng.random() < 0.3:
        return np.searchsorted(np.median(score) + np.array([-1.0, 1.0]) * np.exp(rng.uniform(-4.0, -1.0)), score)
    if rng.random() < 0.5:
        score = score + np.exp(rng.uniform(-3.5, 0.0)) * rng.normal(size=score.shape)
    return labels_from_score(rng, score.astype(np.float32), n_classes)


def graph_task(rng: np.random.Generator, n_rows: int, n_columns: int, n_classes: int) -> Task:
    """Structural causal model in layers; columns and label are nodes of it, in any causal direction."""
    width = int(np.clip(n_columns * rng.uniform(0.5, 1.5), 3, 32))
    layers = [cols.sample_causes(rng, n_rows, int(rng.integers(1, width + 1)))]
    noise = np.exp(rng.uniform(-4.0, -0.5))
    names = ["linear", "mlp", "trees", "waves", "additive", "activation"]
    share = rng.dirichlet([1.0, 1.0, 1.0, 0.3, 0.7, 2.0])
    for _ in range(int(rng.integers(1, 5))):
        name = str(rng.choice(names, p=share))
        if name == "activation":
            layer = activate(rng, apply(rng, "linear", layers[-1], width))
        else:
            layer = apply(rng, name, layers[-1], width)
        layers.append(standardise(layer + noise * rng.normal(size=layer.shape).astype(np.float32)))
    nodes = np.concatenate(layers, axis=1)
    late = nodes.shape[1] - layers[-1].shape[1] - layers[-2].shape[1]
    n_scores = n_classes if n_classes > 2 and rng.random() < 0.4 else 1
    n_scores = min(n_scores, nodes.shape[1] - late, nodes.shape[1] - 1)
    targets = late + rng.choice(nodes.shape[1] - late, size=n_scores, replace=False)
    others = np.setdiff1d(np.arange(nodes.shape[1]), targets)
    picked = rng.choice(others, size=n_columns, replace=len(others) < n_columns)
    if len(targets) == n_classes and n_classes > 2:
        return nodes[:, picked], labels_from_scores(rng, nodes[:, targets])
    return nodes[:, picked], labels_from_score(rng, nodes[:, targets[0]], n_classes)


def cluster_task(rng: np.random.Generator, n_rows: int, n_columns: int, n_classes: int) -> Task:
    """Label first, then columns that depend on it (the label causes the columns): clusters, one or more per class."""
    labels = rng.choice(n_classes, size=n_rows, p=class_shares(rng, n_classes)).astype(np.int64)
    per_class = int(rng.choice([1, 1, 1, 2, 3, 4]))
    cluster = labels * per_class + rng.integers(per_class, size=n_rows)
    n_clusters = n_classes * per_class
    distance = np.exp(rng.uniform(-0.7, 1.6)) / n_columns ** rng.uniform(0.15, 0.5)
    weight = np.exp(0.8 * rng.normal(size=n_columns))
    centres = rng.normal(size=(n_clusters, n_columns)) * weight * distance
    spread = np.exp(rng.uniform(0.0, 0.6) * rng.normal(size=(n_clusters, n_columns)))
    noise = rng.normal(size=(n_rows, n_columns))
    if n_columns > 1 and rng.random() < 0.6:
        rank = int(rng.integers(1, n_columns + 1))
        mixing = rng.normal(size=(n_clusters if rng.random() < 0.45 else 1, rank, n_columns)) / np.sqrt(rank)
        factors = rng.normal(size=(n_rows, rank))
        shared = np.empty((n_rows, n_columns))
        for number, loadings in enumerate(mixing):
            members = cluster % len(mixing) == number
            shared[members] = factors[members] @ loadings
        share = rng.uniform(0.2, 0.95)
        noise = np.sqrt(1 - share) * noise + np.sqrt(share) * shared
    values = centres[cluster] + spread[cluster] * noise
    values = standardise(values.astype(np.float32))
    if rng.random() < 0.4:
        values = apply(rng, str(rng.choice(["mlp", "linear", "additive"])), values, n_columns)
    return values, labels


FAMILIES: dict[str, Callable[[np.random.Generator, int, int, int], Task]] = {
    "function": function_task,
    "graph": graph_task,
    "cluster": cluster_task,
    "rule": rule_task,
    "categorical": categorical_task,
}

DISCRETE = ("rule", "categorical")
"""Families whose columns are observed as they are: noise and warps would only hide the rule."""


def sample_task(
    rng: np.random.Generator, n_rows: int, n_columns: int, n_train: int, config: PriorConfig, max_classes: int
) -> Task:
    """Draw one classification task.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of all draws; the same state gives the same task.
    n_rows, n_columns : int
        Shape of the table.
    n_train : int
        Leading rows that form the context; the others are queries.
    config : PriorConfig
        What the tables contain, and how often.
    max_classes : int
        Largest number of classes.

    Returns
    -------
    X : ndarray of shape (n_rows, n_columns), float32
        Columns in any unit, NaN where a cell is missing.
    y : ndarray of shape (n_rows,), int64
        Class numbers 0, 1, ..., each of them in the context; -100 for a query row whose class the context lacks.

    Examples
    --------
    >>> import numpy as np
    >>> from tttabpfn.pretraining.config import PriorConfig
    >>> X, y = sample_task(np.random.default_rng(0), 100, 5, 60, PriorConfig(), max_classes=3)
    >>> X.shape, y.shape
    ((100, 5), (100,))
    """
    family_names = list(FAMILIES)
    family_share = np.array([config.families.get(name, 0.0) for name in family_names], dtype=float)
    family_share /= family_share.sum()
    while True:
        n_classes = class_count(rng, min(max_classes, max(2, n_train // 6)))
        n_junk = int(rng.integers(0, n_columns // 2 + 1)) if n_columns > 2 and rng.random() < config.junk else 0
        n_products = 0
        if n_columns - n_junk > 3 and rng.random() < config.products:
            n_products = int(rng.integers(1, min(20, 3 * (n_columns - n_junk) // 4) + 1))
        n_extra = 0
        n_free = n_columns - n_junk - n_products
        if n_free > 3 and rng.random() < config.redundant:
            n_extra = int(rng.integers(1, n_free // 2 + 1))
        family = str(rng.choice(family_names, p=family_share))
        if family in DISCRETE:
            n_products = n_extra = 0
            n_junk = min(n_junk, max(0, n_columns - 2))
            n_free = n_columns - n_junk
            n_classes = min(n_classes, int(rng.choice([2, 2, 2, 3, 4, n_classes])))
        values, labels = FAMILIES[family](rng, n_rows, n_free - n_extra, n_classes)
        labels = flip(rng, labels, n_classes, config)
        labels, usable = tidy(rng, labels, n_train)
        if usable:
            break
    parts = [values]
    if n_extra:
        parts.append(cols.redundant(rng, values, n_extra))
    if n_junk:
        parts.append(cols.junk(rng, values, n_junk))
    values = np.concatenate(parts, axis=1)
    values = values[:, rng.permutation(values.shape[1])].astype(np.float32)
    if family not in DISCRETE:
        values = cols.dress(rng, values, config)
    if n_products:
        values = np.concatenate([values, cols.products_of_pairs(rng, values, n_products)], axis=1)
        values = values[:, rng.permutation(n_columns)]
    values = cols.scale_like_inference(rng, values, n_train)
    if rng.random() < config.missing:
        values = cols.hide_cells(rng, values)
    return values.astype(np.float32), labels
