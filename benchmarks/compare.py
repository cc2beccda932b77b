"""Frozen TabPFN and test-time training side by side: all rows as context and one fifth of them.

CatBoost, LightGBM and logistic regression with their defaults, on all training rows, stand beside them. Tables whose
source in the index holds `--group` are one group, on which choices may have been made; the others are the second.
Means are given for each and for all, with bootstrap intervals over tables, and so are wins. Stratified 50/50 splits;
every TabPFN of a table and seed has the same base weights, the same rows and, at one fifth, the same context. Tables
above `--max-rows` are sampled once; tables with more classes than the base takes are left out and listed. A row holds
scores on the test half, seconds, and the guard's decision.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from _common import load_tables, parser, summary
from _estimators import (
    Data,
    adaptation_row,
    classical,
    evaluate,
    frozen,
    later_seconds,
    split,
    ttt,
    ttt_digest,
    ttt_settings,
)
from _models import make
from _running import Run, add_options, base_checkpoint, digest, file_digest, run_settings, use_threads

CLASSICAL = ("logistic_regression", "lightgbm", "catboost")
MODELS = ("frozen_full", "ttt_full", "frozen_fifth", "ttt_fifth", *CLASSICAL)
METRICS = (
    "accuracy",
    "log_loss",
    "roc_auc_ovo",
    "calibration_error",
    "seconds",
    "processor_seconds",
    "later_seconds",
)
FIFTH = 0.2
BOUND = 0.01


def measure(data: Data, model: str, options: Any, checkpoint: str) -> dict[str, Any]:
    """Fit, predict the test rows, score, predict them again; with the guard's decision where there is one."""
    size = round(FIFTH * len(data.y_train)) if model.endswith("fifth") else None
    if model in CLASSICAL:
        found = classical(model, data, options.threads)
        row = evaluate(found, data)
    elif model.startswith("frozen"):
        # With zero steps nothing is loaded or adapted at fit: only the context is drawn.
        drawn = ttt(data, checkpoint, n_steps=0, context_size=size).fit(data.X_train, data.y_train)
        rows = None if size is None else drawn.context_indices_
        found = frozen(data, checkpoint, options.n_estimators)
        row = evaluate(found, data, rows)
    else:
        given = {} if options.n_steps is None else {"n_steps": options.n_steps}
        found = ttt(data, checkpoint, options.n_estimators, context_size=size, **given)
        row = evaluate(found, data) | adaptation_row(found)
    later = later_seconds(found, data.X_test, 1)["median"]
    sizes = {"rows": len(data.y_train), "test_rows": len(data.y_test), "context_rows": size or len(data.y_train)}
    seconds = row["fit_seconds"] + row["first_predict_seconds"]
    return {**row, "seconds": seconds, "later_seconds": later, **sizes}


def _mean_of(values: list[float]) -> dict[str, float]:
    """Mean over tables, and the interval that holds 95 % of the means of resampled tables."""
    drawn = np.random.default_rng(0).choice(values, size=(2000, len(values))).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"mean": float(np.mean(values)), "low": float(low), "high": float(high)}


def _wins(means: dict[str, Any], tables: list[str], ours: str, rival: str) -> dict[str, Any]:
    """Share of tables with a lower log loss than the rival's, and the mean difference."""
    gaps = [means[table][ours]["log_loss"] - means[table][rival]["log_loss"] for table in tables]
    return {"share": float(np.mean(np.array(gaps) < 0)), "difference": _mean_of(gaps)}


def aggregate(rows: list[dict[str, Any]], sources: dict[str, str], group: str) -> dict[str, Any]:
    """Mean over seeds per table and model, means and wins over tables by group, and the guard's decisions."""
    cells: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        if row["table"] not in sources:
            continue
        cells.setdefault(row["table"], {}).setdefault(row["model"], []).append(row)
    complete = {table: models for table, models in cells.items() if set(models) == set(MODELS)}
    means = {
        table: {
            model: {m: float(np.mean([row[m] for row in found])) for m in METRICS} for model, found in models.items()
        }
        for table, models in complete.items()
    }
    groups = {"all": list(means)}
    for table in means:
        groups.setdefault("first" if group in str(sources[table]) else "second", []).append(table)
    found_in = {
        name: {
            "tables": len(members),
            "means": {
                model: {m: _mean_of([means[table][model][m] for table in members]) for m in METRICS} for model in MODELS
            },
            "wins": {
                f"{side} over {rival}": _wins(means, members, f"ttt_{side}", rival)
                for side in ("full", "fifth")
                for rival in ("catboost", "lightgbm", "logistic_regression", f"frozen_{side}")
            },
        }
        for name, members in sorted(groups.items())
    }
    sides = {}
    for side in ("full", "fifth"):
        gaps = {
            table: values[f"ttt_{side}"]["log_loss"] - values[f"frozen_{side}"]["log_loss"]
            for table, values in means.items()
        }
        adapted = [row for models in complete.values() for row in models[f"ttt_{side}"]]
        frozen_loss = {
            (row["table"], row["seed"]): row["log_loss"]
            for models in complete.values()
            for row in models[f"frozen_{side}"]
        }
        harm = [
            {"table": row["table"], "seed": row["seed"], "difference": row["log_loss"] - before}
            for row in adapted
            if (before := frozen_loss.get((row["table"], row["seed"]))) is not None and row["log_loss"] > before + BOUND
        ]
        worst = max(gaps, key=lambda table: gaps[table])
        sides[side] = {
            "log_loss_difference": gaps,
            "difference_over_tables": summary(list(gaps.values())),
            "worst_table": worst,
            "worst_difference": gaps[worst],
            "tables_worse_by_more_than_bound": [table for table, gap in gaps.items() if gap > BOUND],
            "pairs_worse_by_more_than_bound": harm,
            "accepted": sum(row["accepted"] for row in adapted),
            "decisions": len(adapted),
            "adaptation_seconds": summary([row["adaptation_seconds"] for row in adapted]),
        }
    spread = {
        table: {model: summary([row["log_loss"] for row in found]) for model, found in models.items()}
        for table, models in complete.items()
    }
    return {"groups": found_in, "ttt_minus_frozen": sides, "per_table": means, "log_loss_spread": spread}


def draw(result: dict[str, Any], path: str) -> None:
    """Per table, how much test-time training changes the log loss, with all rows as context and with one fifth."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.32 * len(result["per_table"]) + 1.6), layout="constrained")
    ax = figure.subplots()
    fifth = result["ttt_minus_frozen"]["fifth"]["log_loss_difference"]
    tables = sorted(fifth, key=lambda table: -fifth[table])
    places = np.arange(len(tables))
    for side, offset, colour, label in (("full", 0.2, "0.6", "all rows"), ("fifth", -0.2, "C0", "one fifth")):
        gaps = result["ttt_minus_frozen"][side]["log_loss_difference"]
        ax.barh(places + offset, [gaps[table] for table in tables], height=0.38, color=colour, label=label)
    ax.axvline(0, color="black", linewidth=0.8)
    ax.axvline(BOUND, color="C3", linestyle="--", linewidth=0.8, label=f"bound: +{BOUND}")
    ax.set_yticks(places, tables)
    ax.set(xlabel="log loss, TTT minus frozen (nats; left is better)", title="What test-time training changes")
    ax.legend(title="context", loc="best")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def show(result: dict[str, Any]) -> None:
    """Print the means and the guard's record."""
    for name, group in result["groups"].items():
        print(f"{name}: {group['tables']} tables")
        for model in MODELS:
            values = group["means"][model]
            print(f"  {model:20s}" + "  ".join(f"{metric} {values[metric]['mean']:.4f}" for metric in METRICS))
        for rivals, wins in group["wins"].items():
            gap = wins["difference"]
            print(
                f"  {rivals}: {wins['share']:.0%} of tables, {gap['mean']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}]"
            )
    for side, found in result["ttt_minus_frozen"].items():
        print(
            f"{side}: accepted {found['accepted']} of {found['decisions']}; worst {found['worst_table']} "
            f"{found['worst_difference']:+.4f}; above +{BOUND}: {found['tables_worse_by_more_than_bound'] or 'none'}; "
            f"pairs above it: {len(found['pairs_worse_by_more_than_bound'])}"
        )


def main() -> None:
    """Run the comparison and write it."""
    arguments = parser(__doc__ or "", plot=True)
    add_options(arguments)
    arguments.add_argument("--group", default="CC18", help="text in the source of the first group's tables")
    options = arguments.parse_args()
    use_threads(options)
    checkpoint = base_checkpoint(options)
    tables = {table.name: table for table in load_tables(options.data, options.tables)}
    limit = (
        make("tttabpfn_base", next(iter(tables.values())), 0, checkpoint).get_inference_config().MAX_NUMBER_OF_CLASSES
    )
    left_out = {name: int(table.y.max()) + 1 for name, table in tables.items() if table.y.max() + 1 > limit}
    depends = digest(options.max_rows, options.n_estimators, options.n_steps, file_digest(checkpoint), ttt_digest())
    jobs = [
        {"table": name, "seed": seed, "model": model, "depends": depends}
        for seed in range(options.seeds)  # a run that is cut short has every table
        for name in tables
        if name not in left_out
        for model in MODELS
    ]
    settings = {
        **run_settings(options, checkpoint),
        "split": "50/50 stratified",
        "context": {"full": "all training rows", "fifth": "one fifth of them, stratified"},
        "left_out": {name: f"{count} classes, the base takes {limit}" for name, count in left_out.items()},
        "ttt": ttt_settings(),
        "frozen": "plain TabPFNClassifier on the same context rows",
    }
    run = Run(options, "compare", settings, jobs)

    def call(job: dict[str, Any]) -> dict[str, Any]:
        data = split(tables[job["table"]], job["seed"], max_rows=options.max_rows)
        return measure(data, job["model"], options, checkpoint)

    run.measure(call)
    names = {(row["table"], row["model"]) for row in run.rows}
    if any(all((table, model) in names for model in MODELS) for table in tables):
        sources = {name: table.info["source"] for name, table in tables.items()}
        result = aggregate(run.rows, sources, options.group)
        run.save(**result)
        show(result)
        if options.plot:
            draw(result, options.plot)


if __name__ == "__main__":
    main()
