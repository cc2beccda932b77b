"""Weights of rows: the user's, those of classes, and both together."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float64]


def check_sample_weight(sample_weight: Any, n_rows: int) -> Weights | None:
    """Check weights of rows.

    Parameters
    ----------
    sample_weight : None, number or array-like of shape (n_rows,)
        0 or more, some above 0; a number stands for the same weight of all rows.
    n_rows : int

    Returns
    -------
    ndarray of shape (n_rows,) or None
        A copy; None for None.

    Raises
    ------
    ValueError
        If they are not that.
    """
    if sample_weight is None:
        return None
    allowed = f"sample_weight must hold one number >= 0 for each of the {n_rows} rows, some above 0"
    try:
        weights = np.array(sample_weight, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{allowed}, got {type(sample_weight).__name__}: {error}.") from error
    if weights.ndim == 0:
        weights = np.full(n_rows, float(weights))
    if weights.shape != (n_rows,):
        raise ValueError(f"{allowed}, got an array of shape {weights.shape}.")
    bad = np.flatnonzero(~np.isfinite(weights) | (weights < 0))
    if len(bad):
        raise ValueError(f"{allowed}, got {weights[bad[0]]} in row {bad[0]}.")
    if not weights.any():
        raise ValueError(f"{allowed}, got zeros alone.")
    return weights


def check_class_weight(class_weight: Any) -> None:
    """Raise a ValueError unless it is None, "balanced" or a dict of labels to numbers above 0."""
    if class_weight is None or (isinstance(class_weight, str) and class_weight == "balanced"):
        return
    allowed = 'class_weight must be None, "balanced" or a dict of labels to numbers > 0'
    if not isinstance(class_weight, Mapping):
        raise ValueError(f"{allowed}, got {class_weight!r}.")
    for label, value in class_weight.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < float(value) < np.inf:
            raise ValueError(f"{allowed}, got {value!r} for {label!r}.")


def weights_of_rows(
    given: Weights | None, class_weight: Any, classes: NDArray[Any], codes: NDArray[np.int64]
) -> Weights | None:
    """Weights of rows from the user's and those of their classes.

    A row of weight 2 counts as two rows. Where weights are below 1 in the mean, as those that sum to 1 are, they are
    scaled to a mean of 1: a table of N rows is worth N rows at least.

    Parameters
    ----------
    given : ndarray of shape (N,) or None
        From `check_sample_weight`, all above 0.
    class_weight : None, "balanced" or dict
        "balanced": every class gets the same weight in sum, the rows a mean weight of 1. A label that a dict leaves
        out gets 1.
    classes : ndarray of shape (K,)
    codes : ndarray of shape (N,), int
        Positions of the rows' labels in `classes`.

    Returns
    -------
    ndarray of shape (N,) or None
        None if all rows have weight 1.

    Raises
    ------
    ValueError
        If a dict has a label that is not in `classes`.

    Examples
    --------
    >>> classes, codes = np.array(["a", "b"]), np.array([0, 0, 0, 1])
    >>> weights_of_rows(None, "balanced", classes, codes).round(2).tolist()
    [0.67, 0.67, 0.67, 2.0]
    >>> weights_of_rows(np.array([1.0, 2.0, 1.0, 1.0]), {"b": 3}, classes, codes).tolist()
    [1.0, 2.0, 1.0, 3.0]
    >>> weights_of_rows(np.ones(4), None, classes, codes) is None
    True
    """
    weights = np.ones(len(codes)) if given is None else given
    if isinstance(class_weight, Mapping):
        unknown = [label for label in class_weight if label not in set(classes.tolist())]
        if unknown:
            raise ValueError(f"class_weight must name labels of y, got {unknown[0]!r}, which is not among them.")
        weights = weights * np.array([float(class_weight.get(label, 1.0)) for label in classes.tolist()])[codes]
    elif class_weight is not None:
        totals = np.bincount(codes, weights=weights)
        weights = weights * (weights.sum() / (len(classes) * totals))[codes]
    if (weights == 1.0).all():
        return None
    return weights / min(1.0, float(weights.mean()))
