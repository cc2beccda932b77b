"""A sample of rows that does not depend on the order in which they come: those whose hash is small enough."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
HIGHEST = 1 << 63
"""Hashes are compared by their upper 63 bits with a bound that is halved; the lower bits deal rows out to folds."""


@dataclass(frozen=True)
class Reservoir:
    """Rows whose hash lies below a bound, with what a memory reads of them.

    Which rows are kept is a function of the set of all rows: adding in another order, or in other batches, keeps the
    same. Rows that are taken back leave no gap, unless the bound had been halved because of them.

    Parameters
    ----------
    hashes : ndarray of shape (R,), uint64
    labels : ndarray of shape (R,), int64
    weights : ndarray of shape (R,), float64
    embeddings : ndarray of shape (M, R, E), float32
    logits : ndarray of shape (M, R, K), float32
        Of the model, scaled.
    table : ndarray of shape (R, C), float64
        Rows as TabPFN's preprocessing encodes them.
    bound : int
        Half the hash at most, plus one.
    """

    hashes: Hashes
    labels: NDArray[np.int64]
    weights: NDArray[np.float64]
    embeddings: NDArray[np.float32]
    logits: NDArray[np.float32]
    table: NDArray[np.float64]
    bound: int = HIGHEST

    def __len__(self) -> int:
        return len(self.hashes)

    def of(self, kept: NDArray[np.bool_] | NDArray[np.int64]) -> Reservoir:
        """Some of the rows, by mask or position."""
        return replace(
            self,
            hashes=self.hashes[kept],
            labels=self.labels[kept],
            weights=self.weights[kept],
            embeddings=self.embeddings[:, kept],
            logits=self.logits[:, kept],
            table=self.table[kept],
        )

    def joined(self, other: Reservoir, size: int) -> Reservoir:
        """Rows of both, sorted by hash, and no more than `size`."""
        both = Reservoir(
            np.concatenate([self.hashes, other.hashes]),
            np.concatenate([self.labels, other.labels]),
            np.concatenate([self.weights, other.weights]),
            np.concatenate([self.embeddings, other.embeddings], axis=1),
            np.concatenate([self.logits, other.logits], axis=1),
            np.concatenate([self.table, other.table]),
            min(self.bound, other.bound),
        )
        return both.bounded(size)

    def bounded(self, size: int) -> Reservoir:
        """No more rows than `size`: the bound is halved until that is so."""
        bound, small = self.bound, self.hashes >> np.uint64(1)
        while (small < bound).sum() > size:
            bound //= 2
        kept = self.of(small < bound)
        return replace(kept.of(np.argsort(kept.hashes, kind="stable")), bound=bound)

    def without(self, hashes: Hashes) -> Reservoir:
        """Without one row for each of the hashes that lie below the bound.

        Raises
        ------
        ValueError
            If a row that would be here is not.
        """
        gone = hashes[hashes >> np.uint64(1) < self.bound]
        kept = np.ones(len(self), dtype=bool)
        for value, count in zip(*np.unique(gone, return_counts=True), strict=True):
            found = np.flatnonzero((self.hashes == value) & kept)
            if len(found) < count:
                raise ValueError("X and y hold rows that were never given, or were taken back already.")
            kept[found[:count]] = False
        return self.of(kept)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Its arrays by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "bound"}


def row_hashes(table: NDArray[np.floating], labels: NDArray[np.int64]) -> Hashes:
    """A hash of each row's cells and label, the same in whatever batch it comes.

    Parameters
    ----------
    table : ndarray of shape (N, C)
        Missing cells are NaN; -0.0 is 0.0.
    labels : ndarray of shape (N,), int

    Returns
    -------
    ndarray of shape (N,), uint64

    Examples
    --------
    >>> table = np.array([[1.0, np.nan], [2.0, 0.0], [1.0, np.nan]])
    >>> hashes = row_hashes(table, np.array([0, 1, 0]))
    >>> bool(hashes[0] == hashes[2]), bool(hashes[0] == hashes[1])
    (True, False)
    """
    frame = pd.DataFrame(np.column_stack([np.asarray(table, dtype=np.float64) + 0.0, labels.astype(np.float64)]))
    hashes: Hashes = pd.util.hash_pandas_object(frame, index=False, categorize=False).to_numpy()
    # The frame's hash mixes columns by multiplication alone: one more round spreads it over all bits.
    mixed = (hashes ^ (hashes >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    return mixed ^ (mixed >> np.uint64(33))


def folds_of(hashes: Hashes, n_folds: int) -> NDArray[np.int64]:
    """Fold of each row, from bits that the bound does not look at."""
    return ((hashes * np.uint64(0x9E3779B97F4A7C15)) % np.uint64(n_folds)).astype(np.int64)
