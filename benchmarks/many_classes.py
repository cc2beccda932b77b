"""More classes than the base was trained on: without a wrapper, one against the rest, CatBoost and LightGBM."""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np
import torch
from _common import Table, load_tables, parser, write
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import train_test_split
from sklearn.multiclass import OneVsRestClassifier

from tttabpfn import FastWeightCache, TTTTabPFNClassifier

TABLES = ["movement_libras", "texture", "letterrecognition"]


def model_of(name: str) -> Any:
    """An unfitted model, one thread."""
    if name == "tttabpfn":
        return TTTTabPFNClassifier(random_state=0, cache=FastWeightCache())
    if name == "frozen":
        return TTTTabPFNClassifier(random_state=0, cache=FastWeightCache(), n_steps=0)
    if name == "one_vs_rest":
        return OneVsRestClassifier(TTTTabPFNClassifier(random_state=0, cache=FastWeightCache()))
    if name == "catboost":
        from catboost import CatBoostClassifier

        return CatBoostClassifier(verbose=0, thread_count=1, random_state=0, allow_writing_files=False)
    from lightgbm import LGBMClassifier

    return LGBMClassifier(verbose=-1, n_jobs=1, random_state=0)


def measure(table: Table, name: str, max_rows: int) -> dict[str, Any]:
    """Fit on half of a table, at most `max_rows` of them, and predict as many others."""
    train, test = train_test_split(np.arange(len(table.y)), test_size=0.5, stratify=table.y, random_state=0)
    if len(train) > max_rows:
        train, _ = train_test_split(train, train_size=max_rows, stratify=table.y[train], random_state=0)
        test, _ = train_test_split(test, train_size=max_rows, stratify=table.y[test], random_state=0)
    model = model_of(name)
    started, processor = time.perf_counter(), time.process_time()
    model.fit(table.X.iloc[train], table.y[train])
    probabilities = model.predict_proba(table.X.iloc[test])
    return {
        "table": table.name,
        "model": name,
        "n_train": len(train),
        "n_classes": int(table.y.max()) + 1,
        "log_loss": log_loss(table.y[test], probabilities, labels=np.arange(probabilities.shape[1])),
        "accuracy": accuracy_score(table.y[test], probabilities.argmax(axis=1)),
        "seconds": time.perf_counter() - started,
        "processor_seconds": time.process_time() - processor,
    }


def main() -> None:
    """Measure every model on every table."""
    names = ["tttabpfn", "frozen", "lightgbm", "catboost", "one_vs_rest"]
    arguments = parser(__doc__ or "")
    arguments.add_argument("--max-rows", type=int, default=2000, help="training rows, and test rows, at most")
    arguments.add_argument("--models", nargs="*", default=names, choices=names)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows: list[dict[str, Any]] = []
    tables = load_tables(options.data, options.tables or TABLES)
    for name in options.models:
        for table in tables:
            row = measure(table, name, options.max_rows)
            rows.append(row)
            print(
                f"{row['table']:18s} {name:12s} {row['log_loss']:.3f} / {row['accuracy']:.3f}, "
                f"{row['processor_seconds']:.1f} processor seconds",
                flush=True,
            )
            write(options.out, "many_classes", {"max_rows": options.max_rows, "split": "50/50 stratified"}, rows)


if __name__ == "__main__":
    main()
