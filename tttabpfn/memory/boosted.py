"""Boosted trees on the columns of any number of rows: scikit-learn's histogram boosting, kept as plain arrays.

Rows enter binned, a byte a cell, so that a tree costs little more than one pass over them: these are the parts of a
memory that read a million rows. Nothing of TabPFN goes in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier

from tttabpfn.memory.trees import Logits, Nodes, Trees, side_by_side

_CHECKED_ROWS = 64
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class BoostedRecipe:
    """How boosted trees are written.

    Parameters
    ----------
    step_size : float
        Share of each Newton step that is taken.
    updates : int
        Rounds at most; one tree for two classes, one a class for more.
    max_trees : int
        Trees at most: more classes get fewer rounds.
    leaves : int
        Of each tree at most.
    depth : int
        Of each tree at most.
    rows_per_leaf : int
        Rows in a leaf at least.
    column_share : float
        Columns that each cut is chosen among.
    penalty : float
        Added to a leaf's curvature.
    """

    step_size: float = 0.05
    updates: int = 300
    max_trees: int = 2400
    leaves: int = 31
    depth: int = 10
    rows_per_leaf: int = 20
    column_share: float = 0.5
    penalty: float = 1.0

    def rounds(self, share: float, n_classes: int) -> int:
        """Number of updates that a share of all comes to, given the number of classes; 1 at least."""
        most = self.updates if n_classes == 2 else min(self.updates, self.max_trees // n_classes)
        return max(1, round(share * most))


@dataclass(frozen=True)
class Boosted:
    """Boosted trees, and how many of them one update writes."""

    trees: Trees
    per_update: int

    def first(self, updates: int) -> Trees:
        """The trees of the first updates, with the constant before them."""
        return self.trees.first(1 + updates * self.per_update)


def write_boosted(
    cells: NDArray[np.float32],
    labels: NDArray[np.int64],
    log_shares: NDArray[np.float64],
    updates: int,
    recipe: BoostedRecipe,
    seed: int,
    weights: NDArray[np.float64] | None = None,
) -> Boosted:
    """Write boosted trees with all rows.

    Parameters
    ----------
    cells : ndarray of shape (N, B), float32
    labels : ndarray of shape (N,), int
        Class codes; some of the classes may have no rows.
    log_shares : ndarray of shape (K,)
        Logits that what is written will be added to.
    updates : int
    recipe : BoostedRecipe
    seed : int
        Of the columns that cuts are chosen among.
    weights : ndarray of shape (N,), optional
        Of the rows, in cuts and leaf values; how many rows a leaf holds at least counts rows.

    Returns
    -------
    Boosted

    Raises
    ------
    RuntimeError
        If the installed scikit-learn keeps its trees in another way than is known here.

    Examples
    --------
    >>> cells = np.linspace(0.0, 1.0, 200, dtype=np.float32)[:, None]
    >>> labels = (cells[:, 0] > 0.5).astype(np.int64)
    >>> boosted = write_boosted(cells, labels, np.log([0.5, 0.5]), 20, BoostedRecipe(), seed=0)
    >>> bool((boosted.first(20).read(cells).argmax(axis=1) == labels).all())
    True
    """
    known = np.unique(labels)
    n_classes = len(log_shares)
    if len(known) < 2:
        return Boosted(side_by_side([_constant(np.zeros(n_classes))], n_classes), 0)
    model = HistGradientBoostingClassifier(
        learning_rate=recipe.step_size,
        max_iter=updates,
        max_leaf_nodes=recipe.leaves,
        max_depth=recipe.depth,
        min_samples_leaf=recipe.rows_per_leaf,
        max_features=recipe.column_share,
        l2_regularization=recipe.penalty,
        early_stopping=False,
        random_state=seed,
    ).fit(cells, labels, weights)
    trees = _kept(model, known, log_shares)
    rows = cells[:: max(1, len(cells) // _CHECKED_ROWS)]
    _check(model, trees.read(rows) + log_shares, rows, known)
    return Boosted(trees, len(model._predictors[0]))


def _kept(model: Any, known: NDArray[np.int64], log_shares: NDArray[np.float64]) -> Trees:
    """Arrays of a model's trees; the first one is the constant from the given logits to the model's first ones."""
    n_classes = len(log_shares)
    start = np.ravel(model._baseline_prediction).astype(np.float64)
    constant = np.zeros(n_classes)
    constant[known] = (np.array([-0.5, 0.5]) * start if len(known) == 2 else start) - log_shares[known]
    # Classes without rows keep their share: what all others have in common must not move them.
    constant[known] -= constant[known].mean()
    grown = [_constant(constant)]
    for one_round in model._predictors:
        for position, predictor in enumerate(one_round):
            of_class = np.zeros(n_classes)
            if len(known) == 2:
                of_class[known] = -0.5, 0.5
            else:
                of_class[known[position]] = 1.0
            grown.append(_nodes(predictor.nodes, of_class))
    return side_by_side(grown, n_classes)


def _nodes(nodes: Any, of_class: NDArray[np.float64]) -> Nodes:
    leaf = nodes["is_leaf"].astype(bool)
    return Nodes(
        columns=np.where(leaf, -1, nodes["feature_idx"].astype(np.int64)),
        thresholds=nodes["num_threshold"].astype(np.float64),
        children=np.stack([nodes["left"], nodes["right"]], axis=1).astype(np.int64),
        values=np.where(leaf, nodes["value"], 0.0)[:, None] * of_class,
    )


def _constant(values: NDArray[np.float64]) -> Nodes:
    return Nodes(np.array([-1]), np.zeros(1), np.zeros((1, 2), dtype=np.int64), values[None])


def _check(model: Any, logits: Logits, rows: NDArray[np.float32], known: NDArray[np.int64]) -> None:
    """Compare with what the model itself says: its trees have no public form."""
    own = torch.as_tensor(logits[:, known]).softmax(dim=1).numpy()
    if not np.allclose(own, model.predict_proba(rows), atol=_TOLERANCE):
        raise RuntimeError("scikit-learn's histogram boosting keeps its trees in a way that is not known here.")
