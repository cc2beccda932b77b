"""Distinct rows in an order of their content, so that neither order nor repetition can change a prediction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray


def distinct_rows(rows: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return one position of each distinct row, sorted by a hash of the content, and where each row is among them.

    Matrix products round differently at the end of a block than inside it, so a row's last bits depend on where in the
    batch it stands. Predicting distinct rows in this order gives the same bits for the same set of rows, in whatever
    order they come, and the same to equal rows. The hash has 64 bits: among a million rows, two different ones are
    taken for equal with a probability of 3e-8.

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
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(rows)
    keys = pd.util.hash_pandas_object(frame, index=False, categorize=False).to_numpy()
    _, positions, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return positions, inverse
