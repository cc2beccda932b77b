"""Rows from 1,000 to 1,000,000: seconds, peak of memory and quality, beside boosted trees and TabPFN on a sample.

Generated tables (30 columns, two classes, a smooth part, interactions and thresholds, label noise) and, with `--data`,
real ones of thousands of rows. Every model runs in a process of its own: TTT with its defaults, CatBoost, LightGBM and
logistic regression on all rows, and plain TabPFN on as many random rows as TTT keeps as context.
The slope is that of the logarithm of seconds against that of rows.
"""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _common import Table, load_tables, parser
from _estimators import Data, adaptation_row, classical, frozen, split, ttt, ttt_digest
from _fresh import answer, in_fresh_process, peak_bytes
from _models import score
from _running import Run, add_options, base_checkpoint, digest, file_digest, group_by, run_settings, use_threads

ROWS = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
REAL = ("magic", "bank", "optdigits", "letterrecognition")
MODELS = ("ttt", "tabpfn_on_1000", "catboost", "lightgbm", "logistic_regression")
N_COLUMNS = 30
CONTEXT = 1000


def generated(n_rows: int, seed: int) -> pd.DataFrame:
    """Columns and, last, the target."""
    rng = np.random.default_rng(seed)
    weights = np.random.default_rng(1).normal(size=N_COLUMNS) / 3
    X = rng.normal(size=(n_rows, N_COLUMNS))
    logits = X @ weights + np.sin(2 * X[:, 0]) * X[:, 1] + 1.5 * (X[:, 2] > 0) * X[:, 3]
    frame = pd.DataFrame(X, columns=[f"x{position}" for position in range(N_COLUMNS)])
    return frame.assign(target=(logits + rng.logistic(size=n_rows) > 0).astype(np.int64))


def data_of(job: dict[str, Any]) -> Data:
    """A generated split, or half of a real table."""
    if not job["table"].startswith("generated"):
        return split(load_tables(job["data"], [job["table"]])[0], job["seed"])
    n_rows, n_test = job["rows"], min(job["rows"], job["test_rows"])
    frame = generated(n_rows + n_test, job["seed"])
    y = frame.pop("target").to_numpy()
    table = Table(job["table"], frame, y, {"categorical": []})
    return Data(table, job["seed"], frame[:n_rows], y[:n_rows], frame[n_rows:].reset_index(drop=True), y[n_rows:])


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Fit and predict with one model on one table."""
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(job["threads"])
    data = data_of(job)
    X, y = data.X_train, data.y_train
    if job["model"] == "ttt":
        model: Any = ttt(data, job["checkpoint"])
    elif job["model"] == "tabpfn_on_1000":
        model = frozen(data, job["checkpoint"])
        rows = ttt(data, job["checkpoint"], None, 0, context_size=min(CONTEXT, len(y))).fit(X, y).context_indices_
        X, y = X.iloc[rows], y[rows]
    else:
        model = classical(job["model"], data, job["threads"])
    loaded, start, processor = peak_bytes(), time.perf_counter(), time.process_time()
    model.fit(X, y)
    if job["model"] == "ttt":
        model.adapt()
    fitted = time.perf_counter()
    probabilities = np.concatenate(
        [model.predict_proba(data.X_test[i : i + 16_384]) for i in range(0, len(data.X_test), 16_384)]
    )
    row = {
        **score(data.y_test, np.asarray(probabilities, dtype=float)),
        "fit_seconds": fitted - start,
        "predict_seconds": time.perf_counter() - fitted,
        "processor_seconds": time.process_time() - processor,
        "n_train": len(data.y_train),
        "n_test": len(data.y_test),
        "peak_bytes": peak_bytes(),
        "peak_bytes_before_fit": loaded,
    }
    return row | (adaptation_row(model) if job["model"] == "ttt" else {})


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Slopes of seconds against rows, by model, and seconds per row."""
    found: dict[str, Any] = {}
    for (model,), own in group_by([row for row in rows if row["table"] == "generated"], "model").items():
        own = sorted(own, key=lambda row: row["n_train"])
        large = [row for row in own if row["n_train"] >= 30_000]
        seconds_per_row = {str(row["n_train"]): row["fit_seconds"] / row["n_train"] for row in own}
        found[model] = {"fit_seconds_per_row": seconds_per_row}
        if len(large) > 1:
            logs = np.log([[row["n_train"], row["fit_seconds"]] for row in large])
            found[model]["slope_from_30000"] = float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])
    return found


def draw(rows: list[dict[str, Any]], path: str) -> None:
    """Seconds, peak of memory and quality against rows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    own = [row for row in rows if row["table"] == "generated"]
    for ax, (name, label) in zip(
        figure.subplots(1, 3),
        (
            ("fit_seconds", "seconds of fit and adaptation"),
            ("peak_bytes", "peak of memory, GB"),
            ("roc_auc_ovo", "AUC"),
        ),
        strict=True,
    ):
        for (model,), part in group_by(own, "model").items():
            part = sorted(part, key=lambda row: row["n_train"])
            factor = 1e-9 if name == "peak_bytes" else 1.0
            ax.plot([row["n_train"] for row in part], [factor * row[name] for row in part], "o-", label=model, ms=4)
        ax.set(xscale="log", xlabel="training rows", ylabel=label)
        if name == "fit_seconds":
            ax.set_yscale("log")
            ax.legend(fontsize="small")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Measure, sum up, draw."""
    arguments = parser(__doc__ or "", plot=True)
    add_options(arguments, seeds=1)
    arguments.add_argument("--rows", nargs="*", type=int, default=list(ROWS), help="training rows of generated tables")
    arguments.add_argument("--test-rows", type=int, default=100_000, help="most generated test rows")
    arguments.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
    options = arguments.parse_args()
    use_threads(options)
    checkpoint = base_checkpoint(options)
    common = {"threads": options.threads, "test_rows": options.test_rows}
    tables = [("generated", rows) for rows in options.rows] + [(name, 0) for name in options.tables or REAL]
    jobs = []
    for seed in range(options.seeds):
        for table, rows in tables:
            for model in options.models:
                depends: list[Any] = [common, file_digest(checkpoint)]
                if model == "ttt":
                    depends.append(ttt_digest())
                jobs.append({"table": table, "rows": rows, "seed": seed, "model": model, "depends": digest(*depends)})
    extra = {"checkpoint": checkpoint, "data": options.data}
    run = Run(options, "scale", run_settings(options, checkpoint), jobs)
    run.measure(lambda job: in_fresh_process(__file__, {**job, **common, **extra}, options.threads))
    result = summarise(run.rows)
    run.save(summary=result)
    for model, values in result.items():
        print(model, values)
    if options.plot and run.rows:
        draw(run.rows, options.plot)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        answer(work, sys.argv[2])
    else:
        main()
