"""Differences between two models on the same rows, with their uncertainty."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.metrics import roc_auc_score

RESAMPLES = 100
"""Bootstrap samples for the standard error of a difference of areas."""


class Difference(NamedTuple):
    """How much better the second model is, and the standard error of that; NaN where it is not known."""

    value: float
    standard_error: float


def differences(
    y: np.ndarray, classes: np.ndarray, first: np.ndarray, second: np.ndarray, *, seed: int = 0
) -> dict[str, Difference]:
    """Compare two models' probabilities of the same rows.

    Parameters
    ----------
    y : ndarray of shape (n_rows,)
        Labels.
    classes : ndarray of shape (n_classes,)
        Labels in the order of the columns.
    first, second : ndarray of shape (n_rows, n_classes)
        Probabilities.
    seed : int
        Of the bootstrap.

    Returns
    -------
    dict of str to Difference
        Of "accuracy", "log_loss" and "roc_auc", second minus first. Standard errors of the first two are those of the
        mean of paired differences; that of ROC AUC, for two classes alone, is over resampled rows.

    Examples
    --------
    >>> y, classes = np.array([0, 1, 1, 0]), np.array([0, 1])
    >>> right = np.array([[0.9, 0.1], [0.1, 0.9], [0.1, 0.9], [0.9, 0.1]])
    >>> found = differences(y, classes, np.full((4, 2), 0.5), right)
    >>> round(found["log_loss"].value, 4), found["accuracy"].value
    (-0.5878, 0.5)
    """
    codes = np.searchsorted(classes, y)
    rows = np.arange(len(y))
    right = [(given.argmax(axis=1) == codes).astype(float) for given in (first, second)]
    losses = [-np.log(np.clip(given[rows, codes], 1e-15, 1.0)) for given in (first, second)]
    found = {"accuracy": _paired(right[1] - right[0]), "log_loss": _paired(losses[1] - losses[0])}
    found["roc_auc"] = Difference(np.nan, np.nan)
    if len(classes) == 2:
        scores = np.stack([first[:, 1], second[:, 1]])
        rng = np.random.default_rng(seed)
        drawn = (rng.integers(len(y), size=len(y)) for _ in range(RESAMPLES))
        sampled = [_area(codes[rows], scores[:, rows]) for rows in drawn if 0 < codes[rows].sum() < len(rows)]
        error = float(np.std(sampled, ddof=1)) if len(sampled) > 1 else np.nan
        found["roc_auc"] = Difference(_area(codes, scores), error)
    return found


def _paired(difference: np.ndarray) -> Difference:
    error = float(difference.std(ddof=1) / np.sqrt(len(difference))) if len(difference) > 1 else np.nan
    return Difference(float(difference.mean()), error)


def _area(codes: np.ndarray, scores: np.ndarray) -> float:
    return float(roc_auc_score(codes, scores[1]) - roc_auc_score(codes, scores[0]))
