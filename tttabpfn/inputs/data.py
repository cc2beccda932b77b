"""Rows and labels: checked without any weights, taken by position, made distinct."""

from __future__ import annotations

import datetime
import numbers
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.utils import check_array, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_y as check_labels

_LABELS = (str, numbers.Real, np.bool_, datetime.date, datetime.timedelta, np.datetime64, np.timedelta64, pd.Period)


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
        if getattr(getattr(X, "dtype", None), "kind", "") == "c":
            raise ValueError(
                "Complex data not supported: X holds complex numbers; give real and imaginary parts apart."
            )
        array = check_array(
            as_plain("X", X), dtype=None, ensure_all_finite=False, ensure_min_samples=min_rows, estimator=estimator,
            input_name="X",
        )  # fmt: skip
        if array.dtype.kind in "SV":
            raise ValueError(f"X holds raw bytes (dtype {array.dtype}); decode them into text, or give numbers.")
        array = _as_common(array)
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
        if isinstance(values.dtype, np.dtype) and not _is_common(values.dtype):
            frame = frame.copy(deep=False) if frame is X else frame
            values = pd.Series(_as_common(values.to_numpy()), index=frame.index)
            frame.isetitem(position, values)
        if pd.api.types.is_float_dtype(values.dtype):
            _refuse_infinity(values.to_numpy(dtype=float, na_value=0.0), column)
        elif values.dtype == object:
            _refuse_infinity(values.to_numpy(), column)
    return frame


def as_plain(name: str, values: Any) -> Any:
    """Return array-likes whose parts NumPy would drop in silence (a mask, a gradient) as plain arrays.

    Parameters
    ----------
    name : str
        What to call them in messages.
    values : array-like
        A masked array's hidden cells become missing ones; a tensor that requires gradients is refused.

    Returns
    -------
    array-like

    Raises
    ------
    ValueError
        If it is a tensor that requires gradients.

    Examples
    --------
    >>> as_plain("X", np.ma.array([[1, 2]], mask=[[False, True]])).tolist()
    [[1.0, nan]]
    """
    if isinstance(values, torch.Tensor):
        if values.requires_grad:
            raise ValueError(
                f"{name} is a tensor that requires gradients, which do not flow here; pass {name}.detach()."
            )
        return values.cpu().numpy()
    if isinstance(values, np.ma.MaskedArray):
        hidden = np.ma.getmaskarray(values)
        if not hidden.any():
            return np.asarray(values)
        missing = np.nan if values.dtype.kind in "biuf" else None
        shown = np.asarray(values).astype(np.float64 if values.dtype.kind in "biuf" else object)
        shown[hidden] = missing
        return shown
    if isinstance(values, np.ndarray) and values.dtype.kind == "T":
        return values.astype(object)
    return values


def _is_common(dtype: np.dtype[Any]) -> bool:
    """Whether pandas and torch hash and take a dtype as it is: of native byte order, no wider than a double."""
    return dtype.isnative and not (dtype.kind == "f" and dtype.itemsize > 8)


def _as_common(values: NDArray[Any]) -> NDArray[Any]:
    """Values in native byte order; floats wider than a double as doubles."""
    if _is_common(values.dtype):
        return values
    with np.errstate(over="ignore"):
        wide = values.dtype.kind == "f" and values.dtype.itemsize > 8
        return values.astype(np.float64 if wide else values.dtype.newbyteorder("="))


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
    labels = check_labels_of(y, n_rows, estimator=estimator)
    try:
        classes, codes = np.unique(labels, return_inverse=True)
    except TypeError as error:
        kinds = sorted({type(label).__name__ for label in labels})
        raise ValueError(f"y must hold labels of one kind, got a mix of {', '.join(kinds)}.") from error
    check_classification_targets(labels)
    if len(classes) < 2:
        raise ValueError(f"y must hold at least 2 classes, got 1 class only: {classes[0]!r}.")
    return labels, classes, codes.astype(np.int64)


def check_labels_of(y: Any, n_rows: int, *, estimator: Any) -> NDArray[Any]:
    """Check labels one by one, whatever classes there are; a ValueError says what is wrong, as `check_targets` does."""
    if y is None:
        raise ValueError(f"{type(estimator).__name__} requires y to be passed, but the target y is None.")
    labels = _as_common(column_or_1d(as_plain("y", y), warn=True))
    # Labels that are no numbers may miss too: None, NaN, NA, and NaT among dates.
    if np.asarray(pd.isna(labels)).any():
        raise ValueError("Input y contains NaN: every demonstration needs a label.")
    if labels.dtype.kind in "OU":
        _refuse_odd_labels(labels)
    labels = check_labels(labels, estimator=estimator)
    if len(labels) != n_rows:
        raise ValueError(f"Found input variables with inconsistent numbers of samples: X {n_rows}, y {len(labels)}.")
    return labels


def _refuse_odd_labels(labels: NDArray[Any]) -> None:
    odd = {kind for kind in set(map(type, labels.tolist())) if not issubclass(kind, _LABELS)}
    if odd:
        named = ", ".join(sorted(kind.__name__ for kind in odd))
        raise ValueError(f"y must hold numbers, text, true or false, or dates, got labels of type {named}.")
    if any(isinstance(label, int) and abs(label) >= 2**63 for label in labels.tolist()):
        raise ValueError("y holds whole numbers of more than 64 bits; give these labels as text.")


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
