"""Fit as a benchmark asks for it: adapted at once, in time, judged on its validation rows. Needs no AutoGluon."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd
import torch
from sklearn.metrics import log_loss
from tabpfn import TabPFNClassifier

from tttabpfn import TTTTabPFNClassifier, bundled_model_path

TIME_SHARE = 0.8
"""Of the time that is left: the deadline is looked at between steps, and the context still runs once afterwards."""


def fit_adapted(
    X: Any,
    y: Any,
    X_val: Any = None,
    y_val: Any = None,
    *,
    parameters: dict[str, Any] | None = None,
    time_limit: float | None = None,
    n_threads: int | None = None,
    device: str = "cpu",
) -> TTTTabPFNClassifier:
    """Fit and adapt, and let given validation rows say whether the adaptation stays.

    Parameters
    ----------
    X, y : frame of shape (n_rows, n_features), array-like of shape (n_rows,)
        Rows to learn from; categories as pandas has them.
    X_val, y_val : optional
        Rows that nothing is learnt from. If plain TabPFN on the same context has a lower log loss on them, it is kept.
    parameters : dict, optional
        Of `TTTTabPFNClassifier`; nested ones too.
    time_limit : float, optional
        Seconds for all of it.
    n_threads : int, optional
        Threads of torch meanwhile.
    device : str
        Where the networks run.

    Returns
    -------
    TTTTabPFNClassifier
        Adapted: predictions only read.
    """
    started = time.perf_counter()
    base = TabPFNClassifier(model_path=str(bundled_model_path()), device=device, ignore_pretraining_limits=True)
    given = {"time_limit": None if time_limit is None else TIME_SHARE * time_limit, **(parameters or {})}
    if pd.Series(y).value_counts().max() < 2:
        given["n_steps"] = 0  # a row a class leaves none to train on
    with threads(n_threads):
        adapted = TTTTabPFNClassifier(base).set_params(**given).fit(X, y).adapt()
        left = None if time_limit is None else time_limit - (time.perf_counter() - started)
        if X_val is None or not adapted.adaptation_report().accepted or (left is not None and left <= 0):
            return adapted
        # The context is named, so that both keep the same rows of it.
        size = len(adapted.context_indices_)
        plain = TTTTabPFNClassifier(base).set_params(**{**given, "n_steps": 0, "context_size": size}).fit(X, y)
        losses = [log_loss(y_val, model.predict_proba(X_val), labels=model.classes_) for model in (plain, adapted)]
    return plain if losses[0] < losses[1] else adapted


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Let torch use so many threads meanwhile; None: as many as it did."""
    before = torch.get_num_threads()
    try:
        if number is not None:
            torch.set_num_threads(max(1, int(number)))
        yield
    finally:
        torch.set_num_threads(before)
