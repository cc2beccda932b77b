"""Frozen TabPFN and test-time training side by side: scores and seconds."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from tttabpfn.compare.tables import TrainTest
from tttabpfn.prediction.progress import StagedBar
from tttabpfn.report import AdaptationReport

REPEAT_BELOW = 2.0
"""Seconds of a later prediction below which it is timed three times, for the median."""


@dataclass(frozen=True)
class ModelScores:
    """What one model did.

    Parameters
    ----------
    model : str
        Its name.
    label : str
        A short one, for a figure's axis.
    colour : str
        Its bars' colour, as matplotlib takes it.
    context_rows : int
        Rows in its context at predict.
    accuracy, log_loss, roc_auc : float
        On the test rows; log loss in nats, ROC AUC one class against another, averaged, for more than two classes.
    first_seconds : float
        Wall-clock time of fit and first prediction, adaptation included.
    later_seconds : float
        Wall-clock time of a later prediction of the same rows.
    probabilities : ndarray of shape (n_test, n_classes)
        What the test rows were given.
    classes : ndarray of shape (n_classes,)
        The columns' labels.
    """

    model: str
    label: str
    colour: str
    context_rows: int
    accuracy: float
    log_loss: float
    roc_auc: float
    first_seconds: float
    later_seconds: float
    probabilities: np.ndarray = field(default_factory=lambda: np.empty((0, 0)), repr=False, compare=False)
    classes: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False, compare=False)


def score(y: np.ndarray, probabilities: np.ndarray, classes: np.ndarray) -> tuple[float, float, float]:
    """Return accuracy, log loss and ROC AUC of class probabilities.

    Parameters
    ----------
    y : ndarray of shape (n_rows,)
        Labels; every class occurs.
    probabilities : ndarray of shape (n_rows, n_classes)
        Rows sum to 1.
    classes : ndarray of shape (n_classes,)
        Labels in the order of the columns.

    Returns
    -------
    accuracy, log_loss, roc_auc : float
        Log loss in nats per row; ROC AUC one against one for more than two classes.

    Examples
    --------
    >>> score(np.array(["a", "b"]), np.array([[0.5, 0.5], [0.25, 0.75]]), np.array(["a", "b"]))[2]
    1.0
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    probabilities = probabilities / probabilities.sum(axis=1, keepdims=True)
    accuracy = float(accuracy_score(y, classes[probabilities.argmax(axis=1)]))
    loss = float(log_loss(y, probabilities, labels=classes))
    if len(classes) == 2:
        area = roc_auc_score(y == classes[1], probabilities[:, 1])
    else:
        area = roc_auc_score(y, probabilities, multi_class="ovo", labels=classes)
    return accuracy, loss, float(area)


NAMES = {
    "all": ("frozen TabPFN, all rows", "frozen,\nall", "0.5"),
    "context": ("frozen TabPFN, context rows", "frozen,\ncontext", "0.75"),
    "ttt": ("TTT", "TTT,\ncontext", "C0"),
}
"""Name, short label and colour of each model that is compared."""


def measure(name: str, estimator: Any, context: np.ndarray | None, split: TrainTest) -> tuple[ModelScores, Any]:
    """Fit a clone of an estimator, predict the test rows twice, score and time it.

    Parameters
    ----------
    name : {"all", "context", "ttt"}
        Which of the models that are compared.
    estimator : classifier
        Unfitted; not changed.
    context : ndarray of int or None
        Training rows to fit it on; None: all.
    split : TrainTest
        The data.

    Returns
    -------
    scores : ModelScores
        Scores and seconds. The context is the estimator's ``context_indices_``, or all rows it was fitted on.
    fitted : classifier
        The fitted clone.
    """
    X, y = split.X_train, split.y_train
    if context is not None:
        X, y = X.iloc[context], y[context]
    fitted = clone(estimator)
    start = time.perf_counter()
    probabilities = fitted.fit(X, y).predict_proba(split.X_test)
    first = time.perf_counter() - start
    later: list[float] = []
    while not later or (sum(later) < REPEAT_BELOW and len(later) < 3):
        start = time.perf_counter()
        fitted.predict_proba(split.X_test)
        later.append(time.perf_counter() - start)
    context_rows = len(getattr(fitted, "context_indices_", y))
    figures = score(split.y_test, probabilities, fitted.classes_)
    seconds = first, statistics.median(later)
    return ModelScores(*NAMES[name], context_rows, *figures, *seconds, probabilities, fitted.classes_), fitted


def compare(
    split: TrainTest, adapted: Any, keeps_fewer: bool, skip_frozen: bool = False, *, quiet: bool = True
) -> tuple[list[ModelScores], AdaptationReport]:
    """Measure frozen TabPFN on all rows and on the context rows, and TTT with that context, under one bar.

    Parameters
    ----------
    split : TrainTest
        The data.
    adapted : TTTTabPFNClassifier
        Unfitted, with its ``estimator`` given, which is the frozen model too.
    keeps_fewer : bool
        Whether TTT keeps fewer rows as context than there are.
    skip_frozen : bool, default=False
        Leave out the frozen model on all rows, where TTT keeps fewer.
    quiet : bool, default=True
        Whether to show no bar.

    Returns
    -------
    rows : list of ModelScores
        Frozen on all rows, frozen on the context rows (unless these are all rows), TTT.
    report : AdaptationReport
        What the adaptation did.
    """
    costs = {"loading": 1.0, "frozen, all rows": 6.0, "test-time training": 12.0, "frozen, context rows": 2.0}
    if skip_frozen:
        del costs["frozen, all rows"]
    if not keeps_fewer:
        del costs["frozen, context rows"]
    rows: list[ModelScores] = []
    with StagedBar(costs, disable=quiet) as bar:
        # Load the checkpoint first, so that no model's time includes it.
        some = np.concatenate([np.flatnonzero(split.y_train == label)[:2] for label in np.unique(split.y_train)])
        loaded = clone(adapted).set_params(n_steps=0, context_size=None)
        loaded.fit(split.X_train.iloc[some], split.y_train[some]).predict_proba(split.X_test.iloc[:1])
        if not skip_frozen:
            bar.begin("frozen, all rows")
            rows.append(measure("all", adapted.estimator, None, split)[0])
        bar.begin("test-time training")
        trained, fitted = measure("ttt", adapted, None, split)
        if keeps_fewer:
            bar.begin("frozen, context rows")
            rows.append(measure("context", adapted.estimator, fitted.context_indices_, split)[0])
    return [*rows, trained], fitted.adaptation_report()
