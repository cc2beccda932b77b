"""Target statistics of a category with many levels: each class's share among the rows of a level."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PRIOR_ROWS = 10.0
"""Rows with the overall class shares that are added to every level's own."""


@dataclass(frozen=True)
class LevelShares:
    """Each class's share at each level of one category.

    Parameters
    ----------
    levels : ndarray of shape (L,)
        Codes seen, rising; missing cells count as one level.
    shares : ndarray of shape (L + 1, K)
        Shares of the classes, drawn towards the overall ones; the last row is for levels that were not seen.

    References
    ----------
    Micci-Barreca 2001, "A preprocessing scheme for high-cardinality categorical attributes".
    """

    levels: NDArray[np.float64]
    shares: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        codes: NDArray[np.float64],
        labels: NDArray[np.int64],
        n_classes: int | None = None,
        weights: NDArray[np.float64] | None = None,
    ) -> LevelShares:
        """Count classes by level.

        Parameters
        ----------
        codes : ndarray of shape (N,)
            Levels, NaN where the cell is missing.
        labels : ndarray of shape (N,), int
            Class codes 0, 1, ...
        n_classes : int, optional
            By default one more than the largest label.
        weights : ndarray of shape (N,), optional
            Of the rows: one of weight 2 counts as two rows.

        Returns
        -------
        LevelShares

        Examples
        --------
        >>> shares = LevelShares.of(np.array([7.0, 7.0, 3.0]), np.array([0, 0, 1]))
        >>> shares.read(np.array([7.0, 99.0])).round(2).tolist()
        [[0.69, 0.31], [0.62, 0.38]]
        """
        levels, position = np.unique(_known(codes), return_inverse=True)
        counts = np.zeros((len(levels) + 1, n_classes or int(labels.max()) + 1))
        np.add.at(counts, (position, labels), 1.0 if weights is None else weights)
        n_rows = len(labels) if weights is None else weights.sum()
        overall = (counts.sum(axis=0) + 1.0 / counts.shape[1]) / (n_rows + 1)
        counts += PRIOR_ROWS * overall
        return cls(levels, counts / counts.sum(axis=1, keepdims=True))

    def cross_fitted(
        self,
        codes: NDArray[np.float64],
        labels: NDArray[np.int64],
        folds: NDArray[np.int64],
        weights: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float64]:
        """Shares (N, K) for rows with labels, counted for each of them on the rows of other folds."""
        n_classes = self.shares.shape[1]
        read = np.empty((len(codes), n_classes))
        for fold in np.unique(folds):
            own = folds == fold
            others = None if weights is None else weights[~own]
            read[own] = LevelShares.of(codes[~own], labels[~own], n_classes, others).read(codes[own])
        return read

    def read(self, codes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Shares (Q, K) at the levels of rows (Q,)."""
        codes = _known(codes)
        position = np.searchsorted(self.levels, codes)
        inside = np.minimum(position, len(self.levels) - 1)
        return self.shares[np.where(self.levels[inside] == codes, inside, len(self.levels))]


def _known(codes: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.isfinite(codes), codes, np.finfo(np.float64).min)
