"""Rows and labels: checked without any weights, taken by position, made distinct."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from sklearn.utils import check_array, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_y as check_labels


def is_frame(X: Any) -> bool:
    """Whether X has named columns: a pandas or polars frame."""
    return isinstance(X, pd.DataFrame) or (hasattr(X, "columns") and hasattr(X, "to_pandas"))


def check_rows(X: Any, *, estimator: Any, min_rows: int) -> Any:
    """Check a table's shape, kind and values, and return a form that keeps its types.

    Parameters
    ----------
    X : array-like or frame of shape (n_rows, n_features)
        Missing values are allowed, infinite ones are not.
    estimator : object
        Named in scikit-learn's messages.
    min_rows : int
        Rows required.

    Returns
    -------
    DataFrame or ndarray
        A pandas frame for frames, else an array.

    Raises
    ------
    ValueError
        If it is not a finite table of the right shape; names the column where there is one.
    TypeError
        If it is sparse.
    """
    if sparse.issparse(X):
        raise TypeError("Sparse data was passed for X, but dense data is required. Use '.toarray()' to convert it.")
    if not is_frame(X):
        array = check_array(
            X, dtype=None, ensure_all_finite=False, ensure_min_samples=min_rows, estimator=estimator, input_name="X"
        )
        for position in range(array.shape[1]) if array.dtype.kind in "fO" else ():
            _refuse_infinity(array[:, position], position)
        return array
    frame = X if isinstance(X, pd.DataFrame) else X.to_pandas()
    if frame.shape[1] == 0:
        raise ValueError(f"0 feature(s) (shape={frame.shape}) while a minimum of 1 is required.")
    if len(frame) < min_rows:
        raise ValueError(f"Found array with {len(frame)} sample(s) while a minimum of {min_rows} is required.")
    for position, column in enumerate(frame.columns):
        values = frame.iloc[:, position]
        if pd.api.types.is_complex_dtype(values.dtype):
            raise ValueError(f"Complex data not supported: column {column!r}.")
        if pd.api.types.is_float_dtype(values.dtype):
            _refuse_infinity(values.to_numpy(dtype=float, na_value=0.0), column)
        elif values.dtype == object:
            _refuse_infinity(values.to_numpy(), column)
    return frame


def _refuse_infinity(values: NDArray[Any], column: Any) -> None:
    if values.dtype == object:
        found = any(isinstance(value, float | np.floating) and np.isinf(value) for value in values)
    else:
        found = bool(np.isinf(values).any())
    if found:
        raise ValueError(f"X contains infinity in column {column!r}; replace it by a number or by NaN (missing).")


def check_targets(y: Any, n_rows: int, *, estimator: Any) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]:
    """Check labels and code them.

    Parameters
    ----------
    y : array-like of shape (n_rows,)
        Labels: integers, strings or booleans, none missing.
    n_rows : int
        Rows of X.
    estimator : object
        Named in scikit-learn's messages.

    Returns
    -------
    y : ndarray of shape (n_rows,)
        Labels.
    classes : ndarray of shape (K,)
        Sorted distinct labels.
    codes : ndarray of shape (n_rows,), int
        Position of each label in `classes`.

    Raises
    ------
    ValueError
        If labels are missing, continuous, of one class only, or not one per row.
    """
    if y is None:
        raise ValueError(f"{type(estimator).__name__} requires y to be passed, but the target y is None.")
    labels = column_or_1d(y, warn=True)
    if labels.dtype.kind == "O" and pd.isna(labels).any():
        raise ValueError("Input y contains NaN: every demonstration needs a label.")
    labels = check_labels(labels, estimator=estimator)
    if len(labels) != n_rows:
        raise ValueError(f"Found input variables with inconsistent numbers of samples: X {n_rows}, y {len(labels)}.")
    try:
        classes, codes = np.unique(labels, return_inverse=True)
    except TypeError as error:
        kinds = sorted({type(label).__name__ for label in labels})
        raise ValueError(f"y must hold labels of one kind, got a mix of {', '.join(kinds)}.") from error
    check_classification_targets(labels)
    if len(classes) < 2:
        raise ValueError(f"y must hold at least 2 classes, got 1 class only: {classes[0]!r}.")
    return labels, classes, codes.astype(np.int64)


def check_class_counts(classes: NDArray[Any], codes: NDArray[np.int64], *, adapts: bool) -> None:
    """Check that there are rows enough to train on.

    Parameters
    ----------
    classes : ndarray of shape (K,)
        Labels.
    codes : ndarray of shape (N,), int
        Codes.
    adapts : bool
        Whether any training is asked for. A class with a single row then lends it to the context, but some class must
        have a second one to train on.

    Raises
    ------
    ValueError
        If there are too few rows per class.
    """
    counts = np.bincount(codes, minlength=len(classes))
    if adapts and counts.max() < 2:
        raise ValueError(
            f"too few rows per class: {len(codes)} rows of {len(classes)} classes leave none to train on beside the "
            "context's one of each class; give at least 2 rows of a class, or set n_steps=0 to predict without "
            "adaptation."
        )


def check_feature_count(n_features: int, max_features: int | None) -> None:
    """Raise a ValueError if the base does not take that many columns; None: it is not known what it takes."""
    if max_features is not None and n_features > max_features:
        raise ValueError(
            f"X has {n_features} features, but the base model takes at most {max_features}; drop some, or set "
            "estimator__ignore_pretraining_limits=True."
        )


def take_rows(X: Any, rows: NDArray[np.int64]) -> Any:
    """Rows of a frame or an array."""
    return X.iloc[rows] if hasattr(X, "iloc") else X[rows]


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
