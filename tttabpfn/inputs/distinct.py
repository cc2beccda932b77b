"""Distinct rows in an order that their content decides, so that a batch's order and repetitions change no bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray


def distinct_rows(rows: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return one position of each distinct row, sorted by a hash of the content, and where each row is among them.

    Matrix products round differently at the end of a block than inside it, so a row's last bits depend on where in the
    batch it stands. Predicting distinct rows in this order gives the same bits for the same set of rows, in whatever
    order they come, and the same to equal rows. The hash has 64 bits; rows that share one are compared cell by cell,
    since a row must never get another's answer. (Their order is then that of the rows, which happens among a million
    rows with a probability of 3e-8.)

    Parameters
    ----------
    rows : DataFrame or ndarray of shape (n, n_features)
        Values of any types that a frame can hold.

    Returns
    -------
    positions : ndarray of shape (n_distinct,)
        The first of each set of equal rows.
    inverse : ndarray of shape (n,)
        ``rows[positions][inverse]`` are the rows.

    Examples
    --------
    >>> rows = np.array([[3.0, 1.0], [2.0, 5.0], [3.0, 1.0], [4.0, 4.0]])
    >>> positions, inverse = distinct_rows(rows)
    >>> len(positions), np.array_equal(rows[positions][inverse], rows)
    (3, True)
    >>> turned = rows[::-1]
    >>> np.array_equal(rows[positions], turned[distinct_rows(turned)[0]])
    True
    """
    n = len(rows)
    if n == 1:
        return np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    columns = _comparable(rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(rows))
    keys = pd.util.hash_pandas_object(columns, index=False, categorize=False).to_numpy()
    _, positions, inverse = np.unique(keys, return_index=True, return_inverse=True)
    again = np.flatnonzero(positions[inverse] != np.arange(n))
    if len(again):
        other = again[~_equal_rows(columns, again, positions[inverse[again]])]
        inverse[other] = len(positions) + np.arange(len(other))
        positions = np.concatenate([positions, other])
    return positions, inverse


def _comparable(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with every cell that is no number as text that names type and value, so that `==` and hashes tell."""
    numeric = [isinstance(dtype, np.dtype) and dtype.kind in "biufmM" for dtype in frame.dtypes]
    if all(numeric):
        return frame
    plain = {}
    for position in range(frame.shape[1]):
        values = frame.iloc[:, position]
        if numeric[position]:
            plain[position] = values.to_numpy()
        else:
            cells = values.astype(object).to_numpy()
            plain[position] = np.array([_tagged(cell) for cell in cells], dtype=object)
    return pd.DataFrame(plain)


def _tagged(cell: Any) -> str:
    """One cell's type and value."""
    return f"str:{cell}" if type(cell) is str else f"{type(cell).__qualname__}:{cell!r}"


def _equal_rows(columns: pd.DataFrame, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether rows at the positions `left` equal those at `right`, cell by cell; a NaN equals a NaN."""
    equal = np.ones(len(left), dtype=bool)
    for position in range(columns.shape[1]):
        values = columns.iloc[:, position].to_numpy()
        one, two = values[left], values[right]
        same = one == two
        if values.dtype.kind in "fmM":
            same |= (one != one) & (two != two)
        equal &= same.astype(bool)
    return equal
