"""The tree memory: fast weights on the table's own cells, written by functional gradient steps over all rows.

Each update takes the gradient of the cross-entropy by the logits over one large chunk of rows and fits one small tree
with a value for every class to it: Newton boosting (Friedman 2001; Friedman, Hastie and Tibshirani 2000) whose first
logits may be a model's own. What is kept are arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.tree import DecisionTreeRegressor
from torch import Tensor

Logits = NDArray[np.float64]
_ROWS_PER_PASS = 4096


@dataclass(frozen=True)
class TreeRecipe:
    """How trees are written.

    Parameters
    ----------
    step_size : float
        Share of each Newton step that is taken.
    depth : int
        Of each tree.
    rows_per_leaf : int
        Rows in a leaf at least.
    row_share, column_share : float
        Rows that each tree is fitted to, and columns that each cut is chosen among.
    max_rows : int
        Rows that one tree is fitted to at most: the large chunk.
    penalty : float
        Added to a leaf's curvature.
    max_value : float
        Size of a leaf's value at most, in logits.
    """

    step_size: float = 0.2
    depth: int = 4
    rows_per_leaf: int = 5
    row_share: float = 0.8
    column_share: float = 0.5
    max_rows: int = 8192
    penalty: float = 0.3
    max_value: float = 4.0


@dataclass(frozen=True)
class Trees:
    """Trees of one kind side by side.

    Parameters
    ----------
    columns : Tensor of shape (R, V), int32
        Column that each node cuts; -1 in a leaf.
    thresholds : Tensor of shape (R, V), float64
        Cells up to here go to the left child.
    children : Tensor of shape (R, V, 2), int32
        Left and right child.
    values : Tensor of shape (R, V, K), float32
        What a leaf adds to the logits.
    """

    columns: Tensor
    thresholds: Tensor
    children: Tensor
    values: Tensor

    @property
    def n_trees(self) -> int:
        """Number of trees, R."""
        return self.columns.shape[0]

    def first(self, count: int) -> Trees:
        """The trees that were written first."""
        return Trees(self.columns[:count], self.thresholds[:count], self.children[:count], self.values[:count])

    def tensors(self) -> dict[str, Tensor]:
        """Its arrays by the names of its fields."""
        return dict(vars(self))

    def read(self, cells: NDArray[np.float32]) -> Logits:
        """What all trees add to the logits, of shape (Q, K), for cells of shape (Q, B)."""
        parts = [self._read(cells[start : start + _ROWS_PER_PASS]) for start in range(0, len(cells), _ROWS_PER_PASS)]
        return np.concatenate(parts) if parts else np.empty((0, self.values.shape[2]))

    def _read(self, cells: NDArray[np.float32]) -> Logits:
        columns, thresholds = self.columns.numpy(), self.thresholds.numpy()
        children, values = self.children.numpy(), self.values.numpy()
        tree, row = np.arange(self.n_trees)[None, :], np.arange(len(cells))[:, None]
        node = np.zeros((len(cells), self.n_trees), dtype=np.int64)
        while True:
            column = columns[tree, node]
            inner = column >= 0
            if not inner.any():
                return values[tree, node].sum(axis=1, dtype=np.float64)
            right = cells[row, np.maximum(column, 0)] > thresholds[tree, node]
            node = np.where(inner, children[tree, node, right.astype(np.int64)], node)


def write_trees(
    cells: NDArray[np.float32],
    labels: NDArray[np.int64],
    start: Logits,
    n_trees: int,
    recipe: TreeRecipe,
    seed: int,
    weights: NDArray[np.float64] | None = None,
) -> Trees:
    """Write trees one after the other, each by one step on the loss that is left.

    Parameters
    ----------
    cells : ndarray of shape (N, B), float32
    labels : ndarray of shape (N,), int
    start : ndarray of shape (N, K)
        Logits before the first tree.
    n_trees : int
        Updates.
    recipe : TreeRecipe
    seed : int
        Of the rows and columns that each tree sees.
    weights : ndarray of shape (N,), optional
        Of the rows, in cuts and leaf values; how many rows a tree sees and a leaf holds at least counts rows.

    Returns
    -------
    Trees

    Examples
    --------
    >>> cells = np.linspace(0.0, 1.0, 40, dtype=np.float32)[:, None]
    >>> labels = (cells[:, 0] > 0.5).astype(np.int64)
    >>> trees = write_trees(cells, labels, np.zeros((40, 2)), 20, TreeRecipe(), seed=0)
    >>> bool((trees.read(cells).argmax(axis=1) == labels).all())
    True
    """
    rng = np.random.default_rng(seed)
    n_rows, n_classes = start.shape
    targets = np.eye(n_classes)[labels]
    logits = start.astype(np.float64)
    size = min(recipe.max_rows, max(2, round(recipe.row_share * n_rows)))
    grown = []
    for _ in range(n_trees):
        chunk = np.sort(rng.permutation(n_rows)[:size])
        own = None if weights is None else weights[chunk]
        shares = softmax(logits, axis=1)
        gradients = targets - shares
        tree = (
            DecisionTreeRegressor(
                max_depth=recipe.depth,
                min_samples_leaf=recipe.rows_per_leaf,
                max_features=recipe.column_share,
                random_state=int(rng.integers(2**31 - 1)),
            )
            .fit(cells[chunk], gradients[chunk], own)
            .tree_
        )
        leaves = tree.apply(cells)
        values = _leaf_values(leaves[chunk], tree.node_count, gradients[chunk], shares[chunk], recipe, own)
        logits += values[leaves]
        grown.append((tree, values))
    return _side_by_side(grown, n_classes)


def _leaf_values(
    leaves: NDArray[np.int64],
    n_nodes: int,
    gradients: Logits,
    shares: Logits,
    recipe: TreeRecipe,
    weights: NDArray[np.float64] | None,
) -> Logits:
    """A Newton step for each leaf and class, of which the recipe's share is taken."""
    n_classes = gradients.shape[1]
    inside = (leaves[:, None] == np.arange(n_nodes)).astype(np.float64)
    if weights is not None:
        inside *= weights[:, None]
    curvature = inside.T @ (shares * (1.0 - shares)) + recipe.penalty
    # Logits of all classes move at once and only their differences count: hence the factor for more than two.
    factor = (n_classes - 1) / n_classes if n_classes > 2 else 1.0
    steps = factor * (inside.T @ gradients) / curvature
    return recipe.step_size * np.clip(steps, -recipe.max_value, recipe.max_value)


def _side_by_side(grown: Sequence[tuple[Any, Logits]], n_classes: int) -> Trees:
    width = max((tree.node_count for tree, _ in grown), default=1)
    columns = np.full((len(grown), width), -1, dtype=np.int32)
    thresholds = np.zeros((len(grown), width))
    children = np.zeros((len(grown), width, 2), dtype=np.int32)
    values = np.zeros((len(grown), width, n_classes), dtype=np.float32)
    for position, (tree, leaf_values) in enumerate(grown):
        own = slice(0, tree.node_count)
        inner = tree.children_left >= 0
        columns[position, own] = np.where(inner, tree.feature, -1)
        thresholds[position, own] = np.where(inner, tree.threshold, 0.0)
        children[position, own] = np.stack([tree.children_left, tree.children_right], axis=1)
        values[position, own] = leaf_values
    return Trees(*(torch.from_numpy(array) for array in (columns, thresholds, children, values)))
