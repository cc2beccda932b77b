"""What predicting costs: frozen TabPFN with all rows as context, plain and with its KV cache, against TTT.

Seconds and memory per 1,000 predicted rows, each model in a process of its own, with its log loss in the row. TTT keeps
a share of the rows as context, holds that context's keys and values beside the fast weights, and pays for its
adaptation once: the break-even says from how many predicted rows on that pays.
"""

from __future__ import annotations

import math
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from _common import load_tables, parser
from _estimators import (
    adaptation_row,
    evaluate,
    frozen,
    later_seconds,
    shortened,
    split,
    tensor_bytes,
    ttt,
    ttt_digest,
    ttt_settings,
)
from _fresh import answer, in_fresh_process, peak_bytes
from _running import Run, add_options, base_checkpoint, digest, file_digest, group_by, run_settings, use_threads

PER = 1000
FROZEN = {"frozen": "fit_preprocessors", "frozen_cache": "fit_with_cache"}


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Fit one model, predict 1,000 rows again and again."""
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(job["threads"])
    checkpoint, members = job["checkpoint"], job["n_estimators"]
    table = load_tables(job["data"], [job["table"]])[0]
    data = split(table, job["seed"], train=job["n_train"], test_rows=job["test_rows"])
    if job["model"] in FROZEN:
        model = frozen(data, checkpoint, members, FROZEN[job["model"]])
    else:
        size = round(job["share"] * job["n_train"])
        model = ttt(data, checkpoint, members, job["n_steps"], context_size=size, cache=job["cache"])
    before = peak_bytes()
    row = evaluate(model, data)
    row["n_test"] = len(data.y_test)
    # Rows beyond the test rows are test rows again: their number alone costs.
    X = data.X_test.iloc[np.resize(np.arange(len(data.y_test)), PER)].reset_index(drop=True)
    row["seconds_per_1000"] = later_seconds(model, X, job["repeats"])
    row["peak_bytes_before_fit"] = before
    inner = model
    if job["model"] == "ttt":
        row |= adaptation_row(model)
        inner = model._lookup().predictor().inner
    row["kv_cache_bytes"] = tensor_bytes(getattr(inner.executor_, "kv_caches", []))
    row["n_members"] = len(inner.executor_.ensemble_members)
    return row


def break_even(adapted: dict[str, Any], full: dict[str, Any]) -> float | None:
    """Predicted rows from which on adapting and predicting costs less than the frozen model; None: never."""
    saved = (full["seconds_per_1000"]["median"] - adapted["seconds_per_1000"]["median"]) / PER
    # Both have predicted the test rows once by then: what is left is what was paid on top of predictions.
    once = [
        row["fit_seconds"] + row["first_predict_seconds"] - row["seconds_per_1000"]["median"] * row["n_test"] / PER
        for row in (adapted, full)
    ]
    if once[0] <= once[1]:
        return 0.0
    return math.ceil((once[0] - once[1]) / saved) if saved > 0 else None


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """TTT against frozen, split by split."""
    found = []
    good = [row for row in rows if "error" not in row]
    for (table, seed, n_train), part in group_by(good, "table", "seed", "n_train").items():
        full = {row["model"]: row for row in part if row["model"] in FROZEN}
        for row in part:
            if row["model"] != "ttt":
                continue
            item = {"table": table, "seed": seed, "n_train": n_train, "context": round(row["share"] * n_train)}
            item |= {"log_loss": row["log_loss"], "accepted": row["accepted"]}
            for name, other in full.items():
                item[name] = {
                    "log_loss": other["log_loss"],
                    "loss_no_worse": row["log_loss"] <= other["log_loss"],
                    "times_faster": other["seconds_per_1000"]["median"] / row["seconds_per_1000"]["median"],
                    "kv_cache_ratio": _ratio(row["kv_cache_bytes"], other["kv_cache_bytes"]),
                    "peak_ratio": row["peak_bytes"] / other["peak_bytes"],
                    "served_peak_ratio": _ratio(row["served"].get("peak_bytes"), other["peak_bytes"]),
                    "break_even_rows": break_even(row, other),
                }
            found.append(item)
    return found


def _ratio(own: float | None, other: float) -> float | None:
    return own / other if own and other else None


def draw(rows: list[dict[str, Any]], path: str) -> None:
    """Seconds per 1,000 predicted rows and log loss against the number of demonstrations."""
    from matplotlib.figure import Figure

    good = [row for row in rows if "error" not in row and row["seed"] == min(r["seed"] for r in rows)]
    tables = group_by(good, "table")
    figure = Figure(figsize=(13, 1 + 3.2 * len(tables)), layout="constrained")
    axes = figure.subplots(len(tables), 3, squeeze=False)
    for line, ((table,), part) in zip(axes, tables.items(), strict=True):
        for (model, share), own in sorted(group_by(part, "model", "share").items()):
            own = sorted(own, key=lambda row: row["n_train"])
            label = {"frozen": "frozen, all rows", "frozen_cache": "frozen, all rows, KV cache"}.get(
                model, f"TTT, context 1/{round(1 / share)}"
            )
            sizes = [row["n_train"] for row in own]
            line[0].plot(sizes, [row["seconds_per_1000"]["median"] for row in own], "o-", label=label)
            (drawn,) = line[1].plot(sizes, [row["peak_bytes"] / 2**20 for row in own], "o-", label=label)
            if model == "ttt":
                served = [row["served"].get("peak_bytes", math.nan) / 2**20 for row in own]
                line[1].plot(sizes, served, "o:", color=drawn.get_color())
            line[2].plot(sizes, [row["log_loss"] for row in own], "o-", label=label)
        titles = (f"{table}: seconds per 1,000 rows, later", "peak memory, MiB (dotted: adapted elsewhere)", "log loss")
        for ax, title in zip(line, titles, strict=True):
            ax.set_title(title, fontsize="medium")
            ax.set_xlabel("demonstrations")
        line[0].set_ylim(bottom=0)
        line[1].set_ylim(bottom=0)
    axes[0, 0].legend(fontsize="small")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Measure, sum up, draw."""
    arguments = parser(__doc__, plot=True)
    add_options(arguments, max_rows=0, seeds=1)
    arguments.add_argument("--sizes", nargs="*", type=int, default=[500, 1000, 2000], help="demonstrations")
    arguments.add_argument("--shares", nargs="*", type=float, default=[1 / 3, 0.2, 0.1], help="TTT's contexts")
    arguments.add_argument("--test-rows", type=int, default=1000, help="most test rows for the log loss")
    arguments.add_argument("--repeats", type=int, default=5, help="timed predictions of 1,000 rows")
    options = arguments.parse_args()
    use_threads(options)
    checkpoint = base_checkpoint(options)
    common = {name: getattr(options, name) for name in ("n_estimators", "test_rows", "threads", "repeats")}
    depends = {"frozen": digest(common, file_digest(checkpoint))}
    depends["ttt"] = digest(depends["frozen"], ttt_digest(options.n_steps))
    jobs = []
    for seed in range(options.seeds):
        for table in load_tables(options.data, options.tables or ["satellite", "bank"]):
            for n_train in [size for size in options.sizes if size + 100 <= len(shortened(table, None).y)]:
                models = [(name, 1.0, "frozen") for name in FROZEN] + [
                    ("ttt", share, "ttt") for share in options.shares
                ]
                jobs += [
                    {
                        "table": table.name,
                        "seed": seed,
                        "n_train": n_train,
                        "model": m,
                        "share": s,
                        "depends": depends[d],
                    }
                    for m, s, d in models
                ]
    extra = {"checkpoint": checkpoint, "data": options.data, "n_steps": options.n_steps}

    def measure(job: dict[str, Any]) -> dict[str, Any]:
        with TemporaryDirectory() as cache:
            full = {**job, **common, **extra, "cache": cache}
            row = in_fresh_process(__file__, full, options.threads)
            if job["model"] == "ttt" and "error" not in row:
                # A process that only serves takes the fast weights from the folder where the first one left them.
                served = in_fresh_process(__file__, full, options.threads)
                names = ("first_predict_seconds", "seconds_per_1000", "peak_bytes", "log_loss")
                row["served"] = {name: served[name] for name in names} if "error" not in served else served
            return row

    run = Run(options, "inference", {**run_settings(options, checkpoint), "ttt": ttt_settings()}, jobs)
    run.measure(measure)
    result = summarise(run.rows)
    run.save(summary=result)
    for item in result:
        for name in [name for name in FROZEN if name in item]:
            other = item[name]
            print(
                f"{item['table']} {item['n_train']} demonstrations, TTT with {item['context']}, against {name}: "
                f"log loss {item['log_loss']:.4f} / {other['log_loss']:.4f}, {other['times_faster']:.1f} times faster, "
                f"break-even {other['break_even_rows']} rows"
            )
    if options.plot and run.rows:
        draw(run.rows, options.plot)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        answer(work, sys.argv[2])
    else:
        main()
