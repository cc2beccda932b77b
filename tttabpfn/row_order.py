"""Rows in an order of their content, so that the order in which they were given cannot change a prediction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray


def content_order(rows: Any) -> NDArray[np.int64]:
    """Return the positions that sort rows by a hash of their content.

    Matrix products round differently at the end of a block than inside it, so a row's last bits depend on where in the
    batch it stands. Predicting in this order gives the same bits for the same set of rows, in whatever order they come.

    Parameters
    ----------
    rows : DataFrame or ndarray of shape (n, n_features)
        Values of any types that a frame can hold.

    Returns
    -------
    ndarray of shape (n,)
        Equal rows keep their order.

    Examples
    --------
    >>> rows = np.array([[3.0, 1.0], [2.0, 5.0], [4.0, 4.0]])
    >>> turned = rows[::-1]
    >>> np.array_equal(rows[content_order(rows)], turned[content_order(turned)])
    True
    """
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(rows)
    keys = pd.util.hash_pandas_object(frame, index=False, categorize=False).to_numpy()
    return np.argsort(keys, kind="stable")
