"""Where there is little or nothing to gain: flipped labels, labels without a pattern, and small tables.

Each job is a table, a share of flipped labels (1: all drawn anew, class shares kept; training and test rows alike, so
that both come from one and the same world) and a number of training rows; TTT with its defaults and plain TabPFN on the
same rows and context predict the same test rows. A row holds the difference in log loss, TTT minus plain. Tables of the
second kind are drawn small, without flips.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from _common import load_tables, parser
from _estimators import Data, adaptation_row, evaluate, frozen, split, ttt, ttt_digest, ttt_settings
from _running import Run, add_options, base_checkpoint, digest, file_digest, run_settings, use_threads

FLIPS = (0.2, 1.0)
SMALL = (100, 250)
NOISY_ROWS = 500
TEST_ROWS = 1000
BOUND = 0.01


def flipped(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Labels of which a share was drawn anew from the class shares; every class keeps a row or two."""
    rng = np.random.default_rng(seed)
    turned = labels.copy()
    changed = rng.random(len(labels)) < share
    turned[changed] = rng.permutation(labels)[changed]
    for label in np.unique(labels):
        if (turned == label).sum() < 2:
            turned[np.flatnonzero(labels == label)[:2]] = label
    return turned


def measure(data: Data, share: float, options: Any, checkpoint: str) -> dict[str, Any]:
    """Both models on the same training rows, scored on test rows of the same noise."""
    labels, test = flipped(data.y_train, share, data.seed), flipped(data.y_test, share, data.seed + 1)
    noisy = Data(data.table, data.seed, data.X_train, labels, data.X_test, test)
    plain = evaluate(frozen(noisy, checkpoint, options.n_estimators), noisy)
    model = ttt(noisy, checkpoint, options.n_estimators)
    adapted = evaluate(model, noisy)
    return {
        "rows": len(labels),
        "classes": data.n_classes,
        "log_loss_frozen": plain["log_loss"],
        "log_loss": adapted["log_loss"],
        "difference": adapted["log_loss"] - plain["log_loss"],
        "accuracy_difference": adapted["accuracy"] - plain["accuracy"],
        **adaptation_row(model),
    }


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """By kind of job: mean and worst difference over tables (means of their seeds), and pairs above the bound."""
    found = {}
    for kind in sorted({row["kind"] for row in rows}):
        own = [row for row in rows if row["kind"] == kind]
        tables = {row["table"] for row in own}
        means = {name: float(np.mean([row["difference"] for row in own if row["table"] == name])) for name in tables}
        worst = max(means, key=lambda name: means[name])
        found[kind] = {
            "tables": len(means),
            "pairs": len(own),
            "mean_difference": float(np.mean(list(means.values()))),
            "worst_table": worst,
            "worst_difference": means[worst],
            "pairs_above_bound": [
                (row["table"], row["seed"], row["difference"]) for row in own if row["difference"] > BOUND
            ],
            "worst_pair": max(row["difference"] for row in own),
        }
    return found


def main() -> None:
    """Measure, sum up, print."""
    arguments = parser(__doc__ or "")
    add_options(arguments, seeds=1)
    options = arguments.parse_args()
    use_threads(options)
    checkpoint = base_checkpoint(options)
    tables = {table.name: table for table in load_tables(options.data, options.tables) if table.y.max() < 10}
    depends = digest(file_digest(checkpoint), ttt_digest(), options.max_rows)
    kinds = [*((f"flipped {share:g}", share, NOISY_ROWS) for share in FLIPS), *((f"{n} rows", 0.0, n) for n in SMALL)]
    jobs = [
        {"kind": kind, "table": name, "seed": seed, "depends": digest(depends, share, n_rows)}
        for seed in range(options.seeds)
        for kind, share, n_rows in kinds
        for name, table in tables.items()
        # Half of a table is for testing, and a class needs some rows.
        if n_rows >= 20 * (int(table.y.max()) + 1) and (share or len(table.y) >= 2 * n_rows)
    ]
    sizes = {kind: (share, n_rows) for kind, share, n_rows in kinds}

    def call(job: dict[str, Any]) -> dict[str, Any]:
        share, n_rows = sizes[job["kind"]]
        table = tables[job["table"]]
        train = min(n_rows, len(table.y) // 2)
        data = split(table, job["seed"], max_rows=options.max_rows, train=train, test_rows=TEST_ROWS)
        return measure(data, share, options, checkpoint)

    run = Run(options, "never_worse", {**run_settings(options, checkpoint), "ttt": ttt_settings()}, jobs)
    run.measure(call)
    result = summarise(run.rows)
    run.save(summary=result)
    for kind, values in result.items():
        print(
            f"{kind:12s} {values['tables']} tables: mean {values['mean_difference']:+.4f}, worst "
            f"{values['worst_table']} {values['worst_difference']:+.4f}, above {BOUND}: {values['pairs_above_bound']}"
        )


if __name__ == "__main__":
    main()
