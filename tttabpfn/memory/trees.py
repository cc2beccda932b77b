"""The tree memory: fast weights on the table's own cells, written by functional gradient steps over all rows.

Each update takes the gradient of the cross-entropy by the logits over one large chunk of rows and fits one small tree
with a value for every class to it: Newton boosting (Friedman 2001; Friedman, Hastie and Tibshirani 2000) whose first
logits may be a model's own. What is kept are arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.tree import DecisionTreeRegressor
from torch import Tensor

Logits = NDArray[np.float64]
_NUMBERS_PER_PASS = 1 << 22
"""Values that are summed in one pass: it bounds the peak of memory, not the answer."""
_MIN_CURVATURE = 1e-6


@dataclass(frozen=True)
class TreeRecipe:
    """How trees are written.

    Parameters
    ----------
    step_size : float
        Share of each Newton step that is taken.
    depth : int or None
        Of each tree at most.
    leaves : int or None
        Of each tree at most; the cuts that gain most come first.
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
    depth: int | None = 4
    leaves: int | None = None
    rows_per_leaf: int = 5
    row_share: float = 0.8
    column_share: float = 0.5
    max_rows: int = 8192
    penalty: float = 0.3
    max_value: float = 4.0


class Nodes(NamedTuple):
    """One tree's nodes: column cut (-1 in a leaf), threshold, children (V, 2), and what a leaf adds (V, K)."""

    columns: NDArray[np.int64]
    thresholds: NDArray[np.float64]
    children: NDArray[np.int64]
    values: Logits


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
        n_trees, width, n_classes = self.values.shape
        if not n_trees or not len(cells):
            return np.zeros((len(cells), n_classes))
        walk = _Walk.of(self)
        size = max(1, _NUMBERS_PER_PASS // (n_trees * n_classes))
        values = self.values.numpy().reshape(n_trees * width, n_classes)
        return np.concatenate(
            [
                values[walk.leaves(cells[start : start + size])].sum(axis=1, dtype=np.float64)
                for start in range(0, len(cells), size)
            ]
        )


class _Walk(NamedTuple):
    """All nodes in one row, numbered through; a leaf leads to itself, so that all trees can be walked in step."""

    columns: NDArray[np.int64]
    thresholds: NDArray[np.float64]
    children: NDArray[np.int64]
    depth: int
    roots: NDArray[np.int64]

    @classmethod
    def of(cls, trees: Trees) -> _Walk:
        n_trees, width = trees.columns.shape
        roots = np.arange(n_trees, dtype=np.int64) * width
        own = roots[:, None] + np.arange(width)
        inner = trees.columns.numpy() >= 0
        children = np.where(inner[..., None], roots[:, None, None] + trees.children.numpy(), own[..., None])
        thresholds = np.where(inner, trees.thresholds.numpy(), np.inf)
        columns = np.maximum(trees.columns.numpy(), 0).astype(np.int64)
        flat = children.reshape(-1)
        depth, reached = 0, roots
        while (lower := np.setdiff1d(flat.reshape(-1, 2)[reached], reached)).size:
            depth, reached = depth + 1, lower
        return cls(columns.reshape(-1), thresholds.reshape(-1), flat, depth, roots)

    def leaves(self, cells: NDArray[np.float32]) -> NDArray[np.int64]:
        """Leaf that each row (Q, B) ends in, of shape (Q, R)."""
        flat = np.ascontiguousarray(cells).reshape(-1)
        first = np.arange(len(cells), dtype=np.int64)[:, None] * cells.shape[1]
        node = np.broadcast_to(self.roots, (len(cells), len(self.roots)))
        for _ in range(self.depth):
            right = flat.take(first + self.columns.take(node)) > self.thresholds.take(node)
            node = self.children.take(2 * node + right)
        return node


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
                max_leaf_nodes=recipe.leaves,
                min_samples_leaf=recipe.rows_per_leaf,
                max_features=recipe.column_share,
                random_state=int(rng.integers(2**31 - 1)),
            )
            .fit(cells[chunk], *_newton_targets(gradients[chunk], shares[chunk], own))
            .tree_
        )
        leaves = tree.apply(cells)
        values = _leaf_values(leaves[chunk], tree.node_count, gradients[chunk], shares[chunk], recipe, own)
        logits += values[leaves]
        columns = np.where(tree.children_left >= 0, tree.feature, -1)
        children = np.stack([tree.children_left, tree.children_right], axis=1)
        grown.append(Nodes(columns, tree.threshold, children, values))
    return side_by_side(grown, n_classes)


def _newton_targets(
    gradients: Logits, shares: Logits, weights: NDArray[np.float64] | None
) -> tuple[Logits, NDArray[np.float64]]:
    """Steps that each row asks for, and what it weighs: the best cut is then that with the largest Newton gain.

    Exact for two classes; for more, one curvature, the classes' mean, stands for all of a row.
    """
    curvature = np.maximum((shares * (1.0 - shares)).mean(axis=1), _MIN_CURVATURE)
    steps = gradients / curvature[:, None]
    return (steps[:, 1] if steps.shape[1] == 2 else steps), curvature if weights is None else weights * curvature


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
    # Logits of all classes move at once and only their differences count: hence the factor.
    factor = (n_classes - 1) / n_classes
    steps = factor * (inside.T @ gradients) / curvature
    return recipe.step_size * np.clip(steps, -recipe.max_value, recipe.max_value)


def side_by_side(grown: Sequence[Nodes], n_classes: int) -> Trees:
    """Put trees of any size side by side; a leaf's column is -1."""
    width = max((len(nodes.columns) for nodes in grown), default=1)
    columns = np.full((len(grown), width), -1, dtype=np.int32)
    thresholds = np.zeros((len(grown), width))
    children = np.zeros((len(grown), width, 2), dtype=np.int32)
    values = np.zeros((len(grown), width, n_classes), dtype=np.float32)
    for position, nodes in enumerate(grown):
        own = slice(0, len(nodes.columns))
        inner = nodes.columns >= 0
        columns[position, own] = nodes.columns
        thresholds[position, own] = np.where(inner, nodes.thresholds, 0.0)
        children[position, own] = np.where(inner[:, None], nodes.children, 0)
        values[position, own] = nodes.values
    return Trees(*(torch.from_numpy(array) for array in (columns, thresholds, children, values)))
