"""Predictions that the candidates of a search share, because they end in the same model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tttabpfn.cache.fingerprint import fingerprint
from tttabpfn.cache.lru import Lru
from tttabpfn.cache.single_flight import Flights

MAX_ROWS = 10_000
"""Rows of a prediction above which it is not kept."""

Probabilities = NDArray[np.floating[Any]]


class SharedPredictions:
    """The last few predictions of a search, by what predicted and what was predicted.

    A search scores many step sizes on the same rows. Those that the guard refuses all end in the frozen model, whose
    predictions are then computed once.

    Parameters
    ----------
    max_items : int
        Predictions kept.

    Examples
    --------
    >>> shared = SharedPredictions()
    >>> rows, compute = np.zeros((2, 1)), lambda: np.full((2, 2), 0.5)
    >>> shared.get("frozen", rows, compute).shape, shared.nbytes
    ((2, 2), 32)
    """

    def __init__(self, max_items: int = 4) -> None:
        self._kept: Lru[tuple[str, str], Probabilities] = Lru(max_items=max_items)
        # For its mutex, which a forked child finds free.
        self._flights = Flights()

    @property
    def nbytes(self) -> int:
        """Size of what is kept, in bytes."""
        return self._kept.bytes

    def get(self, key: str, rows: Any, compute: Callable[[], Probabilities]) -> Probabilities:
        """Predictions, computed or kept.

        Parameters
        ----------
        key : str
            Key of what predicts.
        rows : frame or array
            What it predicts.
        compute : callable
            Predicts; called while other threads' predictions are not held up.

        Returns
        -------
        ndarray of shape (n_rows, n_classes)
            The caller's own.
        """
        if len(rows) > MAX_ROWS:
            return compute()
        label = key, fingerprint(rows)
        with self._flights.mutex:
            kept = self._kept.get(label)
        if kept is None:
            kept = compute()
            with self._flights.mutex:
                self._kept.put(label, kept, kept.nbytes)
        return kept.copy()
