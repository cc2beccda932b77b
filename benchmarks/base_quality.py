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
from _models import make, score
from sklearn.model_selection import train_test_split
from tqdm import tqdm

BASELINES = ("lightgbm", "xgboost", "random_forest", "logistic_regression")
METRICS = ("roc_auc_ovo", "accuracy", "log_loss", "calibration_error", "seconds")


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
