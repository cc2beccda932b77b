"""Frozen TabPFN, the fast-weight memory, gradient TTT and both, at a share of the rows as context and at all rows."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from _common import Table, load_tables, parser, summary, write
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import StratifiedShuffleSplit
from tabpfn import TabPFNClassifier

from tttabpfn import FastWeightCache, TTTTabPFNClassifier, bundled_model_path

MAX_ROWS = 2000
CONFIGURATIONS: dict[str, tuple[str, bool]] = {  # name: (adaptation, whether all rows are context)
    "frozen, all rows": ("frozen", True),
    "frozen, share": ("frozen", False),
    "memory, share": ("memory", False),
    "memory, all rows": ("memory", True),
    "gradient, share": ("gradient", False),
    "both, share": ("both", False),
}


def main() -> None:
    cli = parser(__doc__ or "")
    cli.add_argument("--checkpoint", metavar="FILE", default=str(bundled_model_path()), help="base, by default bundled")
    cli.add_argument("--share", type=float, default=0.2, help="share of the rows kept as context")
    cli.add_argument("--seeds", type=int, default=1)
    cli.add_argument("--members", type=int, default=4, help="ensemble members")
    cli.add_argument("--only", nargs="*", default=list(CONFIGURATIONS), choices=list(CONFIGURATIONS))
    asked = cli.parse_args()
    rows: list[dict[str, Any]] = []
    settings = {key: value for key, value in vars(asked).items() if key not in ("data", "out", "checkpoint")}
    settings["checkpoint"] = asked.checkpoint.rpartition("/")[2]
    tables = load_tables(asked.data, asked.tables)
    for name in asked.only:
        for table in tables:
            for seed in range(asked.seeds):
                row = measure(table, seed, name, asked)
                rows.append(row)
                print(
                    f"{table.name:22s} {seed} {name:18s} {row['log_loss']:.3f} / {row['accuracy']:.3f} "
                    f"adapt {row['adapt_seconds']:6.1f} s, CPU {row['adapt_cpu_seconds']:5.1f} s  {row['reason'][:90]}",
                    flush=True,
                )
                write(asked.out, "memory", settings, rows, means=means(rows), means_forward_only=means(forward(rows)))
    for name, found in means(rows).items():
        print(f"{name:18s} {found}")


def measure(table: Table, seed: int, name: str, asked: Any) -> dict[str, Any]:
    """One table, one split, one configuration."""
    adaptation, all_rows = CONFIGURATIONS[name]
    X, y = table.X, table.y
    if len(y) > MAX_ROWS:
        kept = np.random.default_rng(0).permutation(len(y))[:MAX_ROWS]
        X, y = X.iloc[kept].reset_index(drop=True), y[kept]
    train, test = next(StratifiedShuffleSplit(1, test_size=0.5, random_state=seed).split(X, y))
    inner = TabPFNClassifier(
        model_path=asked.checkpoint, device="cpu", n_estimators=asked.members, ignore_pretraining_limits=True
    )
    classifier = TTTTabPFNClassifier(
        inner,
        adaptation="gradient" if adaptation == "frozen" else adaptation,
        context_size=None if all_rows else asked.share,
        random_state=seed,
        cache=FastWeightCache(),
    )
    if adaptation == "frozen":
        classifier.set_params(n_steps=0)
    classifier.fit(X.iloc[train], y[train])
    started, cpu = time.perf_counter(), time.process_time()
    report = classifier.adaptation_report()
    adapt, adapt_cpu = time.perf_counter() - started, time.process_time() - cpu
    classifier.predict_proba(X.iloc[test[:2]])
    started = time.perf_counter()
    probabilities = classifier.predict_proba(X.iloc[test])
    return {
        "table": table.name,
        "seed": seed,
        "configuration": name,
        "demonstrations": len(train),
        "context": len(classifier.context_indices_),
        "log_loss": log_loss(y[test], probabilities, labels=np.arange(probabilities.shape[1])),
        "accuracy": accuracy_score(y[test], probabilities.argmax(axis=1)),
        "adapt_seconds": adapt,
        "adapt_cpu_seconds": adapt_cpu,
        "predict_seconds": time.perf_counter() - started,
        "accepted": report.accepted,
        "reason": report.reason,
        "fast_weight_bytes": report.fast_weight_bytes,
        "threads": torch.get_num_threads(),
    }


def forward(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of configurations without gradient steps."""
    return [row for row in rows if CONFIGURATIONS[row["configuration"]][0] in ("frozen", "memory")]


def means(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean quality, and median and spread of the seconds, per configuration, over the splits that all of them did."""
    names = list(dict.fromkeys(row["configuration"] for row in rows))
    done = [{(row["table"], row["seed"]) for row in rows if row["configuration"] == name} for name in names]
    common = set.intersection(*done)
    found = {}
    for name in names:
        own = [row for row in rows if row["configuration"] == name and (row["table"], row["seed"]) in common]
        found[name] = {
            "log_loss": float(np.mean([row["log_loss"] for row in own])),
            "accuracy": float(np.mean([row["accuracy"] for row in own])),
            "accepted": float(np.mean([row["accepted"] for row in own])),
            "adapt_seconds": summary([row["adapt_seconds"] for row in own]),
            "adapt_cpu_seconds": summary([row["adapt_cpu_seconds"] for row in own]),
            "n": len(own),
        }
    return found


if __name__ == "__main__":
    main()
