"""Estimators under comparison, all on the same base weights and the same rows, and their scores."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from _common import Table, summary
from _models import make, score
from _running import digest
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from tttabpfn import FastWeightCache, TTTTabPFNClassifier
from tttabpfn.adaptation import settings as adaptation_settings

LARGE = 5000
CLASSICAL = ("logistic_regression", "lightgbm", "xgboost", "catboost", "random_forest")
NETWORKS = ("realmlp", "tabm")


@dataclass(frozen=True)
class Data:
    """One split of a table; labels are 0..C-1 and every class is on both sides."""

    table: Table
    seed: int
    X_train: pd.DataFrame
    y_train: np.ndarray
    X_test: pd.DataFrame
    y_test: np.ndarray

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(np.unique(self.y_train))


def shortened(table: Table, max_rows: int | None) -> Table:
    """At most so many rows of a table, the same for every seed, less the classes that have fewer than four."""
    rows = np.arange(len(table.y))
    if max_rows and max_rows < len(rows):
        rows = np.sort(np.random.default_rng(0).permutation(len(rows))[:max_rows])
    counts = np.bincount(table.y[rows])
    rows = rows[counts[table.y[rows]] >= 4]
    codes = np.unique(table.y[rows], return_inverse=True)[1].astype(np.int64)
    return Table(table.name, table.X.iloc[rows].reset_index(drop=True), codes, table.info)


def split(
    table: Table, seed: int, *, max_rows: int | None = None, train: float = 0.5, test_rows: int | None = None
) -> Data:
    """Split a table, class shares kept; `train` is a share or a number of rows, `test_rows` the most test rows."""
    table = shortened(table, max_rows)
    y = table.y
    inner, outer = train_test_split(np.arange(len(y)), train_size=train, random_state=seed, stratify=y)
    if test_rows and test_rows < len(outer):
        outer, _ = train_test_split(outer, train_size=test_rows, random_state=seed, stratify=y[outer])
    X_train, X_test = (table.X.iloc[rows].reset_index(drop=True) for rows in (inner, outer))
    return Data(table, seed, X_train, y[inner], X_test, y[outer])


def frozen(data: Data, checkpoint: str, n_estimators: int | None = None, fit_mode: str | None = None) -> Any:
    """Plain TabPFN on the base weights, unfitted."""
    changes: dict[str, Any] = {} if n_estimators is None else {"n_estimators": n_estimators}
    if fit_mode is not None:
        changes["fit_mode"] = fit_mode
    return make("tttabpfn_base", data.table, data.seed, checkpoint).set_params(**changes)


def ttt(
    data: Data, checkpoint: str, n_estimators: int | None = None, n_steps: int | None = None, **parameters: Any
) -> TTTTabPFNClassifier:
    """TTT around the very same estimator, unfitted, with a cache of its own; None leaves the classifier's default."""
    wrapped = frozen(data, checkpoint, n_estimators)
    if n_steps is not None:
        parameters["n_steps"] = n_steps
    return TTTTabPFNClassifier(wrapped, **{"cache": FastWeightCache(), "random_state": data.seed, **parameters})


def classical(name: str, data: Data, threads: int) -> Any:
    """LightGBM, XGBoost, CatBoost, a random forest or logistic regression with their defaults."""
    if name != "catboost":
        model = make(name, data.table, data.seed, "")
        last = model.steps[-1][0]
        return model if name == "logistic_regression" else model.set_params(**{f"{last}__n_jobs": threads})
    from catboost import CatBoostClassifier

    categorical = [
        c for c in data.table.X.columns if c in set(data.table.info["categorical"]) or data.table.X[c].dtype == object
    ]
    booster = CatBoostClassifier(
        random_seed=data.seed, thread_count=threads, verbose=0, allow_writing_files=False, cat_features=categorical
    )
    # CatBoost reads categories itself, but wants them as text.
    return make_pipeline(FunctionTransformer(_as_text, kw_args={"columns": categorical}), booster)


def network(name: str, data: Data, threads: int) -> Any:
    """RealMLP or TabM by pytabkit, with the defaults that were tuned on tables of its authors, on a CPU."""
    try:
        from pytabkit import RealMLP_TD_Classifier, TabM_D_Classifier
    except ImportError as error:
        raise SystemExit(f"{name} needs pytabkit: pip install 'tttabpfn[peers]'") from error
    kind = {"realmlp": RealMLP_TD_Classifier, "tabm": TabM_D_Classifier}[name]
    categorical = [c for c in data.table.X.columns if data.table.X[c].dtype == object] + list(
        data.table.info["categorical"]
    )
    model = kind(device="cpu", random_state=data.seed, n_threads=threads, verbosity=0)
    columns = sorted(set(categorical))
    # It imputes nothing: a missing number is the column's median, a missing category a level of its own.
    return make_pipeline(FunctionTransformer(_without_holes, kw_args={"columns": columns}), model)


def _without_holes(X: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    text = _as_text(X, columns)
    categories = text.astype(dict.fromkeys(columns, "category"))
    return categories.fillna(X.drop(columns=columns).median(numeric_only=True))


def _as_text(X: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    return X.assign(**{column: X[column].astype(object).fillna("missing").astype(str) for column in columns})


def ttt_digest(n_steps: int | None = None) -> str:
    """Digest of what TTT's rows depend on: the steps asked for, the classifier's defaults, the recipe behind them."""
    parameters = TTTTabPFNClassifier().get_params(deep=False)
    steps = adaptation_settings.DEFAULT_STEP_SIZES
    return digest(n_steps, parameters, asdict(adaptation_settings.Recipe()), steps)


def ttt_settings() -> dict[str, Any]:
    """The same in full, for the result file."""
    parameters = TTTTabPFNClassifier().get_params(deep=False)
    shown = {name: value for name, value in parameters.items() if name not in ("estimator", "cache", "verbose")}
    recipe = asdict(adaptation_settings.Recipe())
    return {**shown, "recipe": recipe, "default_step_sizes": adaptation_settings.DEFAULT_STEP_SIZES}


def context_rows(data: Data, checkpoint: str, size: int) -> np.ndarray:
    """The rows that TTT with this context size keeps as context, for the frozen model."""
    model = ttt(data, checkpoint, None, 0, context_size=size)
    return model.fit(data.X_train, data.y_train).context_indices_


def evaluate(model: Any, data: Data, rows: np.ndarray | None = None) -> dict[str, Any]:
    """Fit, predict the test rows, score; seconds of fit and of the first prediction, and of the processor for both."""
    X, y = (data.X_train, data.y_train) if rows is None else (data.X_train.iloc[rows], data.y_train[rows])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start, processor = time.perf_counter(), time.process_time()
        model.fit(X, y)
        fitted = time.perf_counter()
        probabilities = np.asarray(model.predict_proba(data.X_test), dtype=float)
        predicted, processor = time.perf_counter(), time.process_time() - processor
    scores = score(data.y_test, probabilities)
    seconds = {"fit_seconds": fitted - start, "first_predict_seconds": predicted - fitted}
    return {**scores, **seconds, "processor_seconds": processor}


def later_seconds(model: Any, X: pd.DataFrame, repeats: int) -> dict[str, float]:
    """Seconds of predictions after the first, and the processor's in the median."""
    seconds, processor = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(repeats):
            start, busy = time.perf_counter(), time.process_time()
            model.predict_proba(X)
            seconds.append(time.perf_counter() - start)
            processor.append(time.process_time() - busy)
    return {**summary(seconds), "processor_median": float(np.median(processor))}


def adaptation_row(model: TTTTabPFNClassifier) -> dict[str, Any]:
    """What of a fitted classifier's report belongs into a row."""
    report = model.adaptation_report()
    names = ("accepted", "reason", "step_size", "n_steps", "n_held_back", "loss_frozen", "loss_adapted")
    shown = {name: getattr(report, name) for name in names}
    return {**shown, "adaptation_seconds": report.seconds, "fast_weight_bytes": report.fast_weight_bytes}


def tensor_bytes(thing: Any) -> int:
    """Bytes of all tensors within an object of lists, dicts and plain classes, such as a KV cache."""
    seen: set[int] = set()

    def tensors(part: Any) -> Iterator[torch.Tensor]:
        if id(part) in seen:
            return
        seen.add(id(part))
        if isinstance(part, torch.Tensor):
            yield part
        elif isinstance(part, dict):
            for value in part.values():
                yield from tensors(value)
        elif isinstance(part, list | tuple):
            for value in part:
                yield from tensors(value)
        elif hasattr(part, "__dict__"):
            yield from tensors(vars(part))

    return sum(tensor.numel() * tensor.element_size() for tensor in tensors(thing))
