"""The table's own columns: keys of numbers, scaled and ranked, and of levels; cells for trees, with class shares."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.preprocessing import OneHotEncoder, QuantileTransformer

from tttabpfn.memory.level_shares import LevelShares

MAX_LEVELS = 12
"""Numbers with at most this many values are one-hot too; a category has at most this many levels of its own."""
MAX_KEYS = 512
"""More keys than this are projected on as many principal components: a linear memory inverts their square."""
MAX_QUANTILES = 100
MAX_DEVIATION = 8.0
"""Standard deviations at which a key is cut off: a linear memory must not follow one cell to infinity."""

Cells = NDArray[np.float32]
_Table = NDArray[np.float64]


class ColumnEncoder:
    """Turns a numeric table with missing cells into dense keys, and into cells that trees split.

    A number becomes a standardised and a normally ranked key, one key for its missing cells, and one key a value where
    it has few. A category, coded as a number, becomes one key a frequent level. Trees split numbers, missing cells and
    levels; of a category with many levels also each class's share at the row's level (`LevelShares`).

    Parameters
    ----------
    categorical : list of int
        Positions of the columns that hold codes of categories.
    seed : int
        Of the projection of very wide tables.

    Examples
    --------
    >>> table = np.array([[1.0, 0.0], [2.0, 1.0], [np.nan, 0.0], [4.0, 2.0]])
    >>> keys, cells = ColumnEncoder(categorical=[1], seed=0).fit(table, np.array([0, 1, 0, 1])).transform(table)
    >>> keys.shape, cells.shape, bool(np.isfinite(keys).all())
    ((4, 10), (4, 5), True)
    """

    def __init__(self, categorical: list[int], seed: int) -> None:
        self.categorical = categorical
        self.seed = seed

    def fit(
        self,
        table: NDArray[np.floating],
        labels: NDArray[np.int64],
        weights: NDArray[np.float64] | None = None,
    ) -> ColumnEncoder:
        """Learn levels, ranks, class shares and scales.

        Parameters
        ----------
        table : ndarray of shape (N, C)
            Numbers and codes of categories; a missing cell is NaN.
        labels : ndarray of shape (N,), int
            Class codes 0, 1, ...; only the class shares of levels use them.
        weights : ndarray of shape (N,), optional
            Of the rows in these shares; levels, ranks and scales count rows.

        Returns
        -------
        ColumnEncoder
            Itself.
        """
        table = _as_doubles(table)
        known = np.isfinite(table)
        n_values = np.array([len(np.unique(column[one])) for column, one in zip(table.T, known.T, strict=True)])
        is_category = np.isin(np.arange(table.shape[1]), self.categorical)
        has_holes = ~known.all(axis=0)
        self._numbers = np.flatnonzero(~is_category & (n_values > 1))
        self._holes = np.flatnonzero(~is_category & has_holes)
        self._few = np.flatnonzero(~is_category & (n_values > 1) & (n_values <= MAX_LEVELS))
        self._categories = np.flatnonzero(is_category & (n_values + has_holes > 1))
        self._crowded = np.flatnonzero(is_category & (n_values > MAX_LEVELS))

        self._medians = np.array([np.median(table[known[:, column], column]) for column in self._numbers])
        self._ranks = _fit_ranks(self._filled(table), self.seed)
        self._levels = _fit_levels(table[:, self._categories])
        self._values = _fit_levels(table[:, self._few])
        self._shares = [LevelShares.of(table[:, column], labels, weights=weights) for column in self._crowded]
        features, _ = self._assembled(table, self._read_shares(table))
        self._centre, self._spread = features.mean(axis=0), features.std(axis=0)
        self._spread[self._spread <= 1e-6 * (1.0 + np.abs(self._centre))] = np.inf
        # A key of zeros and ones keeps its size: scaled up, a level of two rows would be as free to move as a number.
        self._spread[((features == 0) | (features == 1)).all(axis=0)] = 1.0
        self._projection: PCA | None = None
        if features.shape[1] > MAX_KEYS:
            n_components = min(MAX_KEYS, len(table) - 1)
            self._projection = PCA(n_components, svd_solver="randomized", random_state=self.seed)
            self._projection.fit(self._scaled(features))
        return self

    def transform_known(
        self,
        table: NDArray[np.floating],
        labels: NDArray[np.int64],
        folds: NDArray[np.int64],
        weights: NDArray[np.float64] | None = None,
    ) -> tuple[Cells, Cells]:
        """Keys (N, D) and cells (N, B) of rows with labels, which take no part in their own class shares.

        Parameters
        ----------
        table : ndarray of shape (N, C)
            Rows that were fitted on.
        labels, folds : ndarray of shape (N,), int
            Class codes, and each row's fold: it gets the class shares of the rows in the others.
        weights : ndarray of shape (N,), optional
            Of the rows in these shares.

        Returns
        -------
        keys : ndarray of shape (N, D), float32
            About zero mean; numbers have about unit variance. No label goes into them.
        cells : ndarray of shape (N, B), float32
            What trees split: numbers, missing cells, levels and class shares.
        """
        table = _as_doubles(table)
        own = [
            shares.cross_fitted(table[:, column], labels, folds, weights)
            for shares, column in zip(self._shares, self._crowded, strict=True)
        ]
        features, cells = self._assembled(table, own)
        return self._keys(features), cells

    @property
    def reads_labels(self) -> bool:
        """Whether cells hold class shares of levels, which labels go into."""
        return len(self._crowded) > 0

    def cells_without(
        self,
        table: NDArray[np.floating],
        labels: NDArray[np.int64],
        folds: NDArray[np.int64],
        held_back: NDArray[np.bool_],
        weights: NDArray[np.float64] | None = None,
    ) -> Cells:
        """Cells (N, B) of rows with labels for a writing without some of them, whose labels go into nothing.

        A row's own fold is left out of its class shares. With few rows a level, these shares then fall where the row's
        own label rises, and what is written learns that. Held-back rows must not show the same, or it would seem to
        be a gain.

        Parameters
        ----------
        table, labels, folds, weights
            As `transform_known` takes them.
        held_back : ndarray of shape (N,), bool
            Rows that are read as new ones are.

        Returns
        -------
        ndarray of shape (N, B), float32
        """
        table = _as_doubles(table)
        kept = ~held_back
        own = None if weights is None else weights[kept]
        shares = []
        for all_rows, column in zip(self._shares, self._crowded, strict=True):
            codes, n_classes = table[:, column], all_rows.shares.shape[1]
            of_kept = LevelShares.of(codes[kept], labels[kept], n_classes, own)
            read = np.empty((len(codes), n_classes))
            read[kept] = of_kept.cross_fitted(codes[kept], labels[kept], folds[kept], own)
            read[held_back] = of_kept.read(codes[held_back])
            shares.append(read)
        return self._cells(table, self._filled(table), shares).astype(np.float32)

    def transform(self, table: NDArray[np.floating]) -> tuple[Cells, Cells]:
        """Keys (Q, D) and cells (Q, B) of other rows; a level that was not seen has no key of its own."""
        table = _as_doubles(table)
        features, cells = self._assembled(table, self._read_shares(table))
        return self._keys(features), cells

    def cells(self, table: NDArray[np.floating]) -> Cells:
        """Cells (Q, B) of other rows alone, at a fraction of the cost."""
        table = _as_doubles(table)
        return self._cells(table, self._filled(table), self._read_shares(table)).astype(np.float32)

    def _read_shares(self, table: _Table) -> list[_Table]:
        return [shares.read(table[:, column]) for shares, column in zip(self._shares, self._crowded, strict=True)]

    def _filled(self, table: _Table) -> _Table:
        numbers = table[:, self._numbers]
        return np.where(np.isfinite(numbers), numbers, self._medians)

    def _assembled(self, table: _Table, shares: list[_Table]) -> tuple[_Table, Cells]:
        """Keys before they are scaled, and cells."""
        filled = self._filled(table)
        plain = self._cells(table, filled, [])
        ranked = filled if self._ranks is None else self._ranks.transform(filled)
        values = _one_hot(self._values, table[:, self._few])
        cells = np.concatenate([plain, *shares], axis=1)
        return np.concatenate([plain, ranked, values], axis=1), cells.astype(np.float32)

    def _cells(self, table: _Table, filled: _Table, shares: list[_Table]) -> _Table:
        """Numbers, missing cells, levels and class shares.

        Trees cut numbers and tell their values apart by themselves: ranks and values would only be more to search.
        """
        holes = (~np.isfinite(table[:, self._holes])).astype(np.float64)
        return np.concatenate([filled, holes, _one_hot(self._levels, table[:, self._categories]), *shares], axis=1)

    def _scaled(self, features: _Table) -> _Table:
        return np.clip((features - self._centre) / self._spread, -MAX_DEVIATION, MAX_DEVIATION)

    def _keys(self, features: _Table) -> Cells:
        scaled = self._scaled(features)
        if self._projection is not None:
            scaled = self._projection.transform(scaled)
        return scaled.astype(np.float32)


def _as_doubles(table: NDArray[np.floating]) -> _Table:
    return np.asarray(table, dtype=np.float64)


def _fit_ranks(numbers: _Table, seed: int) -> QuantileTransformer | None:
    if not numbers.shape[1]:
        return None
    n_quantiles = min(MAX_QUANTILES, len(numbers))
    return QuantileTransformer(n_quantiles=n_quantiles, output_distribution="normal", random_state=seed).fit(numbers)


def _fit_levels(codes: _Table) -> OneHotEncoder | None:
    if not codes.shape[1]:
        return None
    encoder = OneHotEncoder(max_categories=MAX_LEVELS, handle_unknown="infrequent_if_exist", sparse_output=False)
    return encoder.fit(_as_levels(codes))


def _one_hot(encoder: OneHotEncoder | None, codes: _Table) -> _Table:
    return np.empty((len(codes), 0)) if encoder is None else np.asarray(encoder.transform(_as_levels(codes)))


def _as_levels(codes: _Table) -> _Table:
    """Missing as a level of its own, below all codes."""
    return np.where(np.isfinite(codes), codes, np.finfo(np.float64).min)
