"""How good the base checkpoint is: frozen TabPFN on it beside LightGBM, XGBoost, random forest and logistic regression.

50/50 stratified splits, every model with its defaults on the same rows, in one run. `--resume` keeps the baseline rows
of an earlier result file of the same settings and measures only the checkpoint again.
"""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _common import Table, load_tables, parser, summary, timed, write
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler
from tqdm import tqdm

BASELINES = ("lightgbm", "xgboost", "random_forest", "logistic_regression")
METRICS = ("roc_auc_ovo", "accuracy", "log_loss", "calibration_error", "seconds")


def calibration_error(y: np.ndarray, probabilities: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error of the top label, in equal-width bins of confidence."""
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == y
    bucket = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        abs(correct[bucket == b].mean() - confidence[bucket == b].mean()) * (bucket == b).mean()
        for b in range(bins)
        if (bucket == b).any()
    ]
    return float(sum(gaps))


def score(y: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """ROC AUC (one-vs-one), accuracy, log loss and calibration error of predicted probabilities."""
    probabilities = probabilities / probabilities.sum(axis=1, keepdims=True)
    labels = np.arange(probabilities.shape[1])
    if len(labels) == 2:
        auc = roc_auc_score(y, probabilities[:, 1])
    else:
        auc = roc_auc_score(y, probabilities, multi_class="ovo", labels=labels)
    return {
        "roc_auc_ovo": float(auc),
        "accuracy": float(accuracy_score(y, probabilities.argmax(axis=1))),
        "log_loss": float(log_loss(y, np.clip(probabilities, 1e-9, None), labels=labels)),
        "calibration_error": calibration_error(y, probabilities),
    }


def make(name: str, table: Table, seed: int, checkpoint: str) -> Any:
    """Build a classifier with its defaults; strings are coded, and cells imputed where a model cannot take them."""
    categorical = [c for c in table.X.columns if c in set(table.info["categorical"]) or table.X[c].dtype == object]
    numeric = [c for c in table.X.columns if c not in categorical]
    if name == "tttabpfn_base":
        from tabpfn import TabPFNClassifier

        indices = [table.X.columns.get_loc(c) for c in categorical]
        return TabPFNClassifier(
            model_path=checkpoint,
            device="cpu",
            categorical_features_indices=indices or None,
            random_state=seed,
            ignore_pretraining_limits=True,
        )
    if name == "logistic_regression":
        columns = ColumnTransformer(
            [
                ("numeric", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), numeric),
                ("categorical", OneHotEncoder(handle_unknown="ignore"), categorical),
            ]
        )
        return make_pipeline(columns, LogisticRegression(max_iter=1000))
    codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    if name == "random_forest":
        columns = ColumnTransformer(
            [("numeric", SimpleImputer(strategy="median"), numeric), ("categorical", codes, categorical)]
        )
        return make_pipeline(columns, RandomForestClassifier(random_state=seed, n_jobs=1))
    columns = ColumnTransformer([("numeric", "passthrough", numeric), ("categorical", codes, categorical)])
    if name == "lightgbm":
        from lightgbm import LGBMClassifier

        return make_pipeline(columns, LGBMClassifier(random_state=seed, verbose=-1, n_jobs=1))
    from xgboost import XGBClassifier

    return make_pipeline(columns, XGBClassifier(random_state=seed, n_jobs=1))


def evaluate(name: str, table: Table, seed: int, checkpoint: str) -> dict[str, Any]:
    """Fit on one half of a table, predict the other, and score."""
    train, test = train_test_split(np.arange(len(table.y)), test_size=0.5, random_state=seed, stratify=table.y)
    model = make(name, table, seed, checkpoint)
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(table.X.iloc[train], table.y[train])
        probabilities = model.predict_proba(table.X.iloc[test])
    seconds = time.perf_counter() - started
    scores = score(table.y[test], np.asarray(probabilities, dtype=float))
    return {"table": table.name, "model": name, "seed": seed, **scores, "seconds": seconds}


def aggregate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean over seeds for every table and model, and the mean of those over the tables."""
    per_table: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        cell = per_table.setdefault(row["table"], {}).setdefault(row["model"], {})
        for metric in METRICS:
            cell.setdefault(metric, []).append(row[metric])
    models = list(dict.fromkeys(row["model"] for row in rows))
    spread = {
        name: {model: summary(cell["roc_auc_ovo"]) for model, cell in cells.items()}
        for name, cells in per_table.items()
    }
    means = {
        name: {model: {m: float(np.mean(cell[m])) for m in METRICS} for model, cell in cells.items()}
        for name, cells in per_table.items()
    }
    overall = {
        model: {m: float(np.mean([cells[model][m] for cells in means.values()])) for m in METRICS} for model in models
    }
    return {"overall": overall, "per_table": means, "roc_auc_ovo_spread": spread}


def latency(checkpoint: str) -> dict[str, Any]:
    """Seconds to predict 1,000 rows from a context of 1,000 rows with 20 columns, one ensemble member."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(2000, 20)), rng.integers(3, size=1000)
    table = Table("noise", pd.DataFrame(X), y, {"categorical": []})
    model = make("tttabpfn_base", table, 0, checkpoint).set_params(n_estimators=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(X[:1000], y)
        processor = time.process_time()
        seconds = timed(lambda: model.predict_proba(X[1000:]), repeats=7)
        processor = (time.process_time() - processor) / 8
    return {"context": 1000, "queries": 1000, "columns": 20, "members": 1, **seconds, "processor_seconds": processor}


def main() -> None:
    """Run the comparison and write it."""
    arguments = parser(__doc__)
    arguments.add_argument("--checkpoint", metavar="FILE", help="default: the checkpoint in the package")
    arguments.add_argument("--seeds", type=int, default=5)
    arguments.add_argument("--source", default="CC18", help="only tables whose index entry contains this text")
    arguments.add_argument("--models", nargs="*", default=["tttabpfn_base", *BASELINES])
    arguments.add_argument("--resume", action="store_true", help="keep the baseline rows that the result file has")
    arguments.add_argument("--latency", action="store_true", help="also time one member on 1,000 + 1,000 rows")
    options = arguments.parse_args()
    checkpoint = options.checkpoint
    if checkpoint is None:
        from tttabpfn.checkpoints import bundled_model_path

        checkpoint = str(bundled_model_path())
    tables = load_tables(options.data, options.tables, None if options.tables else options.source)
    rows: list[dict[str, Any]] = []
    if options.resume and Path(options.out).exists():
        kept = json.loads(Path(options.out).read_text())["rows"]
        rows = [row for row in kept if row["model"] in BASELINES and row["seed"] < options.seeds]
    done = {(row["table"], row["model"], row["seed"]) for row in rows}
    jobs = [(m, t, s) for t in tables for m in options.models for s in range(options.seeds)]
    for name, table, seed in tqdm([(m, t, s) for m, t, s in jobs if (t.name, m, s) not in done]):
        rows.append(evaluate(name, table, seed, checkpoint))
    result = aggregate(rows)
    settings = {"seeds": options.seeds, "split": "50/50 stratified", "checkpoint": Path(checkpoint).name}
    if options.latency:
        result["latency"] = latency(checkpoint)
    write(options.out, "base_quality", settings, rows, **result)
    for model, values in sorted(result["overall"].items(), key=lambda item: -item[1]["roc_auc_ovo"]):
        print(f"{model:22s}" + "  ".join(f"{m} {values[m]:.4f}" for m in METRICS))


if __name__ == "__main__":
    main()
