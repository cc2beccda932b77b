"""What spoils the base checkpoint's predictions, and by how much, beside LightGBM; and whether it holds beyond its
training sizes.

Every condition changes a clean 50/50 split: missing cells, columns cut into unordered categories, junk columns, and
wrong labels (in the training half alone). The size check compares 5,000 context rows of 100 columns with 1,000 rows of
the first 50, on generated tables.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _common import Table, load_tables, parser, summary, write
from _models import make, score
from sklearn.datasets import make_classification
from sklearn.model_selection import train_test_split
from tqdm import tqdm

MODELS = ("tttabpfn_base", "lightgbm")


def clean(table: Table, rng: np.random.Generator) -> Table:
    """The table as it is."""
    return table


def missing(table: Table, rng: np.random.Generator) -> Table:
    """20 % of all cells missing at random."""
    hidden = rng.random(table.X.shape) < 0.2
    hidden[:2] = False
    return replace(table, X=table.X.astype(float).mask(hidden))


def categories(table: Table, rng: np.random.Generator) -> Table:
    """Every numeric column with more than eight values cut into eight levels, coded in random order."""
    X = table.X.copy()
    cut = [c for c in X.columns if X[c].nunique() > 8]
    for column in cut:
        codes = pd.qcut(X[column], 8, labels=False, duplicates="drop")
        X[column] = codes.map(dict(enumerate(rng.permutation(8)))).astype(float)
    return replace(table, X=X, info={**table.info, "categorical": sorted({*table.info["categorical"], *cut})})


def junk(table: Table, rng: np.random.Generator) -> Table:
    """As many columns of noise as there are columns."""
    noise = rng.normal(size=table.X.shape)
    extra = pd.DataFrame(noise, columns=[f"junk_{i}" for i in range(noise.shape[1])], index=table.X.index)
    return replace(table, X=pd.concat([table.X, extra], axis=1))


CONDITIONS: dict[str, tuple[Callable[[Table, np.random.Generator], Table], float]] = {
    "clean": (clean, 0.0),
    "missing cells, 20 %": (missing, 0.0),
    "categories": (categories, 0.0),
    "junk columns, as many again": (junk, 0.0),
    "wrong labels, 10 %": (clean, 0.1),
    "wrong labels, 20 %": (clean, 0.2),
}


def fit_and_score(
    name: str,
    table: Table,
    y_train: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    seed: int,
    checkpoint: str,
    members: int | None = None,
) -> dict[str, float]:
    """Scores of one model on given rows; `members` sets the ensemble size of the checkpoint's model."""
    model = make(name, table, seed, checkpoint)
    if members is not None and name == "tttabpfn_base":
        model.set_params(n_estimators=members)
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(table.X.iloc[train], y_train)
        probabilities = np.asarray(model.predict_proba(table.X.iloc[test]), dtype=float)
    return {**score(table.y[test], probabilities), "seconds": time.perf_counter() - started}


def robustness(tables: list[Table], models: list[str], seeds: int, checkpoint: str) -> list[dict[str, Any]]:
    """One row for every table, condition, model and seed."""
    rows = []
    jobs = [(t, c, s) for t in tables for c in CONDITIONS for s in range(seeds)]
    for table, condition, seed in tqdm(jobs, desc="conditions"):
        change, label_noise = CONDITIONS[condition]
        rng = np.random.default_rng([seed, len(table.y)])
        changed = change(table, rng)
        train, test = train_test_split(np.arange(len(table.y)), test_size=0.5, random_state=seed, stratify=table.y)
        y_train = table.y[train].copy()
        wrong = rng.random(len(y_train)) < label_noise
        y_train[wrong] = rng.choice(table.y, size=int(wrong.sum()))
        for name in models:
            scores = fit_and_score(name, changed, y_train, train, test, seed, checkpoint)
            rows.append({"table": table.name, "condition": condition, "model": name, "seed": seed, **scores})
    return rows


def costs(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean scores by condition and model, and what each condition costs against clean data."""
    frame = pd.DataFrame(rows)
    means = frame.groupby(["condition", "model"])[["roc_auc_ovo", "accuracy", "log_loss"]].mean()
    out: dict[str, dict[str, dict[str, float]]] = {}
    for condition in CONDITIONS:
        out[condition] = {}
        for model in frame["model"].unique():
            values = means.loc[(condition, model)]
            base = means.loc[("clean", model)]
            out[condition][model] = {**values.to_dict(), **{f"cost_{k}": base[k] - values[k] for k in values.index}}
    return out


def sizes(models: list[str], seeds: int, checkpoint: str) -> list[dict[str, Any]]:
    """Accuracy at 1,000 rows of 50 columns and at 5,000 rows of 100, on the same generated queries; one member."""
    rows = []
    for seed in tqdm(range(seeds), desc="sizes"):
        X, y = make_classification(
            6000, 100, n_informative=20, n_redundant=20, n_classes=3, random_state=seed, class_sep=1.0
        )
        table = Table("generated", pd.DataFrame(X), y.astype(np.int64), {"categorical": []})
        test = np.arange(5000, 6000)
        for n_rows, n_columns in ((1000, 50), (1000, 100), (5000, 50), (5000, 100)):
            part = replace(table, X=table.X.iloc[:, :n_columns])
            for name in models:
                train = np.arange(n_rows)
                scores = fit_and_score(name, part, y[train], train, test, seed, checkpoint, members=1)
                rows.append({"rows": n_rows, "columns": n_columns, "model": name, "seed": seed, **scores})
    return rows


def main() -> None:
    """Run both checks and write them."""
    arguments = parser(__doc__)
    arguments.add_argument("--checkpoint", metavar="FILE", help="default: the checkpoint in the package")
    arguments.add_argument("--seeds", type=int, default=2)
    arguments.add_argument("--source", default="CC18", help="only tables whose index entry contains this text")
    arguments.add_argument("--models", nargs="*", default=list(MODELS), choices=MODELS)
    arguments.add_argument("--resume", action="store_true", help="keep the LightGBM rows that the result file has")
    options = arguments.parse_args()
    checkpoint = options.checkpoint
    if checkpoint is None:
        from tttabpfn.checkpoints import bundled_model_path

        checkpoint = str(bundled_model_path())
    tables = load_tables(options.data, options.tables, None if options.tables else options.source)
    kept: dict[str, list[dict[str, Any]]] = {"rows": [], "size_rows": []}
    models = list(options.models)
    if options.resume and Path(options.out).exists():
        record = json.loads(Path(options.out).read_text())
        if record["settings"]["seeds"] == options.seeds:
            kept = {key: [row for row in record[key] if row["model"] == "lightgbm"] for key in kept}
            models = [name for name in models if name != "lightgbm"]
    rows = kept["rows"] + robustness(tables, models, options.seeds, checkpoint)
    size_rows = kept["size_rows"] + sizes(models, options.seeds, checkpoint)
    frame = pd.DataFrame(size_rows)
    by_size = [
        {"rows": r, "columns": c, "model": m, "accuracy": summary(list(group["accuracy"]))}
        for (r, c, m), group in frame.groupby(["rows", "columns", "model"])
    ]
    settings = {"seeds": options.seeds, "split": "50/50 stratified", "checkpoint": Path(checkpoint).name}
    result = costs(rows)
    write(options.out, "base_robustness", settings, rows, costs=result, sizes=by_size, size_rows=size_rows)
    for condition, models in result.items():
        cells = "  ".join(f"{m} {v['roc_auc_ovo']:.4f} (cost {v['cost_roc_auc_ovo']:+.4f})" for m, v in models.items())
        print(f"{condition:30s}{cells}")
    for row in by_size:
        print(f"{row['rows']:5d} x {row['columns']:3d}  {row['model']:15s} accuracy {row['accuracy']['median']:.3f}")


if __name__ == "__main__":
    main()
