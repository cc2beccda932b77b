"""Frozen TabPFN and test-time training side by side: scores, seconds and a figure."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import clone
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from .cli_tables import Split
from .display import AdaptationDisplay
from .report import AdaptationReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPEAT_BELOW = 2.0
"""Seconds of a later prediction below which it is timed three times, for the median."""


@dataclass(frozen=True)
class Row:
    """What one model did.

    Parameters
    ----------
    model : str
        Its name.
    context_rows : int
        Rows in its context at predict.
    accuracy, log_loss, roc_auc : float
        On the test rows; log loss in nats, ROC AUC one class against another, averaged, for more than two classes.
    first_seconds : float
        Wall-clock time of fit and first prediction, adaptation included.
    later_seconds : float
        Wall-clock time of a later prediction of the same rows.
    """

    model: str
    context_rows: int
    accuracy: float
    log_loss: float
    roc_auc: float
    first_seconds: float
    later_seconds: float


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


def measure(name: str, estimator: Any, context: np.ndarray | None, split: Split) -> tuple[Row, Any]:
    """Fit a clone of an estimator, predict the test rows twice, score and time it.

    Parameters
    ----------
    name : str
        The model's name in the table.
    estimator : classifier
        Unfitted; not changed.
    context : ndarray of int or None
        Training rows to fit it on; None: all.
    split : Split
        The data.

    Returns
    -------
    row : Row
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
    scores = score(split.y_test, probabilities, fitted.classes_)
    return Row(name, context_rows, *scores, first, statistics.median(later)), fitted


def compare(
    split: Split, adapted: Any, progress: Callable[[str], None] = lambda stage: None
) -> tuple[list[Row], AdaptationReport]:
    """Measure frozen TabPFN on all rows and on the context rows, and TTT with that context.

    Parameters
    ----------
    split : Split
        The data.
    adapted : TTTTabPFNClassifier
        Unfitted, with its ``estimator`` given, which is the frozen model too.
    progress : callable
        Told what comes next.

    Returns
    -------
    rows : list of Row
        Frozen on all rows, frozen on the context rows (unless these are all rows), TTT.
    report : AdaptationReport
        What the adaptation did.
    """
    progress("loading")
    # Whoever comes first would pay for loading the checkpoint: nobody shall.
    some = np.concatenate([np.flatnonzero(split.y_train == label)[:2] for label in np.unique(split.y_train)])
    loaded = clone(adapted).set_params(n_steps=0, context_size=None)
    loaded.fit(split.X_train.iloc[some], split.y_train[some]).predict_proba(split.X_test.iloc[:1])
    progress("frozen, all rows")
    frozen, _ = measure("frozen TabPFN, all rows", adapted.estimator, None, split)
    progress("test-time training")
    trained, fitted = measure("TTT", adapted, None, split)
    rows = [frozen]
    if trained.context_rows < frozen.context_rows:
        progress("frozen, context rows")
        context = fitted.context_indices_
        rows.append(measure("frozen TabPFN, context rows", adapted.estimator, context, split)[0])
    progress("done")
    return [*rows, trained], fitted.adaptation_report()


def table(rows: list[Row]) -> str:
    """Return the rows as text, one line each, under a heading.

    Parameters
    ----------
    rows : list of Row
        At least one.

    Returns
    -------
    str
        Aligned columns.

    Examples
    --------
    >>> print(table([Row("TTT", 80, 0.5, 0.75, 0.875, 2.0, 0.125)]))
    model  context rows  accuracy  log loss  ROC AUC  fit + first predict  later predict
    TTT              80    0.5000    0.7500   0.8750               2.00 s         0.12 s
    """
    head = ("model", "context rows", "accuracy", "log loss", "ROC AUC", "fit + first predict", "later predict")
    body = [
        (
            row.model,
            f"{row.context_rows:,}",
            f"{row.accuracy:.4f}",
            f"{row.log_loss:.4f}",
            f"{row.roc_auc:.4f}",
            f"{row.first_seconds:.2f} s",
            f"{row.later_seconds:.2f} s",
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    lines = []
    for cells in (head, *body):
        rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        lines.append("  ".join([cells[0].ljust(widths[0]), *rest]))
    return "\n".join(lines)


def figure(rows: list[Row], report: AdaptationReport, title: str) -> Figure:
    """Draw the adaptation's held-back loss beside bars of every score.

    Parameters
    ----------
    rows : list of Row
        What `compare` returned.
    report : AdaptationReport
        Likewise.
    title : str
        Above it all.

    Returns
    -------
    Figure
        To be saved; it belongs to no window.
    """
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(13, 4.2), layout="constrained")
    left, *axes = drawing.subplots(1, 4, width_ratios=[3, 1, 1, 1])
    AdaptationDisplay.from_report(report, ax=left)
    colours = ["0.5", "0.75", "C0"] if len(rows) == 3 else ["0.5", "C0"]
    labels = [row.model.removeprefix("frozen TabPFN, ").replace("TTT", "TTT,\ncontext") for row in rows]
    labels = [label if label.startswith("TTT") else f"frozen,\n{label.removesuffix(' rows')}" for label in labels]
    for ax, name, field in zip(
        axes, ("Accuracy", "Log loss", "ROC AUC"), ("accuracy", "log_loss", "roc_auc"), strict=True
    ):
        values = [getattr(row, field) for row in rows]
        bars = ax.bar(labels, values, color=colours)
        ax.bar_label(bars, fmt="%.3f", fontsize="small")
        ax.margins(y=0.15)
        ax.tick_params(axis="x", labelsize="x-small")
        ax.set_title(f"{name} ({'lower' if field == 'log_loss' else 'higher'} is better)", fontsize="small")
    drawing.suptitle(title)
    return drawing
