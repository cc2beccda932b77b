"""TTT beside its peers, in one run: frozen TabPFN, TabPFN's own fine-tuning, boosted trees, networks, linear models.

Every TabPFN starts from the same base weights, takes all training rows as context and predicts with the same number of
members; every model runs in a process of its own. Fine-tuning runs with its defaults and at a tuned learning rate, and
its test loss is recorded after every epoch, whose seconds do not count. Two questions of time: seconds to the same log
loss (the lowest that both the curve of the fine-tuning and TTT reach; for TTT always its whole adaptation), and seconds
of predictions after the first.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from _common import load_tables, parser, summary
from _estimators import (
    CLASSICAL,
    NETWORKS,
    adaptation_row,
    classical,
    evaluate,
    frozen,
    later_seconds,
    network,
    split,
    ttt,
    ttt_digest,
    ttt_settings,
)
from _fresh import answer, in_fresh_process, peak_bytes
from _running import Run, add_options, base_checkpoint, digest, file_digest, group_by, run_settings, use_threads

METRICS = ("log_loss", "accuracy", "roc_auc_ovo", "fit_seconds", "first_predict_seconds", "peak_bytes")
FINETUNED = {"finetuned_default": {}, "finetuned_tuned": {"learning_rate": 3e-4}}
MODELS = ("ttt", "ttt_context_1/5", "frozen", *FINETUNED, *CLASSICAL[:4], *NETWORKS)
WITHOUT_EXTRAS = tuple(name for name in MODELS if name not in NETWORKS)


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Fit and predict with one model on one split."""
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(job["threads"])
    name, checkpoint, members = job["model"], job["checkpoint"], job["n_estimators"]
    table = load_tables(job["data"], [job["table"]])[0]
    data = split(table, job["seed"], max_rows=job["max_rows"], test_rows=job["test_rows"])
    if name == "frozen":
        model = frozen(data, checkpoint, members)
    elif name.startswith("ttt"):
        size = round(len(data.y_train) / 5) if name.endswith("1/5") else None
        model = ttt(data, checkpoint, members, job["n_steps"], context_size=size)
    elif name in FINETUNED:
        from _finetuned import finetuned

        model = finetuned(data, checkpoint, members, job["finetune_minutes"], **job["finetune"])
        model.record_on(data.X_test, data.y_test)
    elif name in NETWORKS:
        model = network(name, data, job["threads"])
    else:
        model = classical(name, data, job["threads"])
    loaded = peak_bytes()
    row = evaluate(model, data)
    row["later_predict_seconds"] = later_seconds(model, data.X_test, job["repeats"])
    row |= {"n_train": len(data.y_train), "n_test": len(data.y_test), "peak_bytes_before_fit": loaded}
    if name.startswith("ttt"):
        row |= adaptation_row(model)
    if name in FINETUNED:
        row["curve"] = model.curve_
        row["fit_seconds"] -= model.recording_seconds_
    return row


def same_loss(curve: list[dict[str, float]], adapted: dict[str, Any]) -> dict[str, Any]:
    """Seconds of fine-tuning and of TTT to the lowest log loss that both reach."""
    loss = max(min(point["log_loss"] for point in curve), adapted["log_loss"])
    seconds = next(point["seconds"] for point in curve if point["log_loss"] <= loss)
    own = adapted["fit_seconds"] + adapted["first_predict_seconds"]
    gained = curve[0]["log_loss"] - loss
    return {"log_loss": loss, "finetuned_seconds": seconds, "ttt_seconds": own, "ratio": seconds / own, "gain": gained}


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the splits that all models have, and the ratios of seconds and memory."""
    rows = [row for row in rows if "error" not in row]
    names = list(dict.fromkeys(row["model"] for row in rows))
    splits = {key: {row["model"]: row for row in part} for key, part in group_by(rows, "table", "seed").items()}
    whole = {key: models for key, models in splits.items() if len(models) == len(names)}
    result: dict[str, Any] = {"complete_splits": [list(key) for key in whole]}
    if whole:
        result["models"] = {
            name: {
                **{metric: float(np.mean([models[name][metric] for models in whole.values()])) for metric in METRICS},
                "later_predict_seconds": summary(
                    [models[name]["later_predict_seconds"]["median"] for models in whole.values()]
                ),
            }
            for name in names
        }
    for tuned in FINETUNED:
        found = {
            "/".join(map(str, key)): {
                **same_loss(models[tuned]["curve"], models["ttt"]),
                "memory_ratio": models["ttt"]["peak_bytes"] / models[tuned]["peak_bytes"],
            }
            for key, models in splits.items()
            if tuned in models and "ttt" in models and models[tuned].get("curve")
        }
        gained = [item["ratio"] for item in found.values() if item["gain"] > 0.001]
        result[tuned] = {"splits": found, "ratio_where_both_gain": summary(gained) if gained else None}
    return result


def draw(rows: list[dict[str, Any]], path: str) -> None:
    """Test loss against seconds, table by table: the fine-tuning's curve and everyone else's point."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if "error" not in row and row["seed"] == 0]
    tables = group_by(rows, "table")
    columns = max(1, min(4, len(tables)))
    lines = -(-len(tables) // columns)
    figure = Figure(figsize=(3 + 4 * columns, 1 + 3 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    colours = {name: f"C{position}" for position, name in enumerate(MODELS)}
    for ax, ((table,), part) in zip(grid, sorted(tables.items()), strict=False):
        for row in part:
            name = row["model"]
            if name in FINETUNED:
                points = [(p["seconds"], p["log_loss"]) for p in row["curve"][1:]]
                ax.plot(*zip(*points, strict=True), "-", color=colours[name], lw=1)
            seconds = row["fit_seconds"] + row["first_predict_seconds"]
            ax.plot(seconds, row["log_loss"], "o", color=colours[name], ms=6, label=name)
        ax.set_xscale("log")
        ax.set_title(table, fontsize="small")
        ax.tick_params(labelsize="x-small")
    for ax in grid[len(tables) :]:
        ax.set_axis_off()
    handles = {label: handle for ax in grid for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize="small")
    figure.supxlabel("seconds of fit and first prediction (lines: fine-tuning, epoch by epoch)", fontsize="small")
    figure.supylabel("log loss on the test rows", fontsize="small")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Measure, sum up, draw."""
    arguments = parser(__doc__, plot=True)
    add_options(arguments)
    arguments.add_argument("--models", nargs="*", choices=MODELS, default=list(WITHOUT_EXTRAS))
    arguments.add_argument("--test-rows", type=int, default=1000, help="most test rows")
    arguments.add_argument("--repeats", type=int, default=3, help="predictions after the first")
    arguments.add_argument("--epochs", type=int, help="epochs of the fine-tuning; default: its own")
    arguments.add_argument("--finetune-minutes", type=float, default=5.0, help="time limit of one fine-tuning")
    options = arguments.parse_args()
    use_threads(options)
    checkpoint = base_checkpoint(options)
    kept = ("n_estimators", "max_rows", "test_rows", "threads", "repeats")
    common = {name: getattr(options, name) for name in kept}
    epochs = {} if options.epochs is None else {"epochs": options.epochs}
    jobs = []
    for seed in range(options.seeds):
        for table in load_tables(options.data, options.tables):
            for model in options.models:
                depends: list[Any] = [common]
                if model not in (*CLASSICAL, *NETWORKS):
                    depends.append(file_digest(checkpoint))
                if model.startswith("ttt"):
                    depends.append(ttt_digest(options.n_steps))
                if model in FINETUNED:
                    depends += [FINETUNED[model], epochs, options.finetune_minutes]
                jobs.append({"table": table.name, "seed": seed, "model": model, "depends": digest(*depends)})
    extra = {"checkpoint": checkpoint, "data": options.data, "n_steps": options.n_steps}

    def measure(job: dict[str, Any]) -> dict[str, Any]:
        finetune = {"finetune_minutes": options.finetune_minutes, "finetune": FINETUNED.get(job["model"], {}) | epochs}
        return in_fresh_process(__file__, {**job, **common, **extra, **finetune}, options.threads)

    run = Run(options, "peers", {**run_settings(options, checkpoint), "ttt": ttt_settings()}, jobs)
    run.measure(measure)
    result = summarise(run.rows)
    run.save(summary=result)
    for name, means in result.get("models", {}).items():
        print(f"{name:20s}" + "  ".join(f"{metric} {means[metric]:.4g}" for metric in METRICS))
    for tuned in FINETUNED:
        print(f"{tuned}: seconds to the same log loss, over TTT's: {result[tuned]['ratio_where_both_gain']}")
    if options.plot and run.rows:
        draw(run.rows, options.plot)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        answer(work, sys.argv[2])
    else:
        main()
