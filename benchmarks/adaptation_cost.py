"""What the first prediction costs: seconds of one adaptation, and what the search and the guard take of it.

    python benchmarks/adaptation_cost.py --threads 2 --out adaptation_cost.json

1,000 demonstrations of 20 features in three classes, the bundled base with its eight members, a fresh cache each time.
Variants differ from the defaults in what their name says. `guard_share`: clock time of scoring frozen and adapted model
on held-back rows, of the whole adaptation. `auto_over_fixed`: the median whole adaptation against the one with a fixed
step size, guard and number of steps alike.
"""

from __future__ import annotations

import time
import warnings
from contextlib import ExitStack
from typing import Any
from unittest import mock

import numpy as np
from _common import parser, summary, write
from _running import base_checkpoint, file_digest, use_threads
from sklearn.datasets import make_classification
from tabpfn import TabPFNClassifier

from tttabpfn import FastWeightCache, TTTTabPFNClassifier
from tttabpfn.adaptation.guard import HeldBackScores
from tttabpfn.adaptation.settings import DEFAULT_STEP_SIZES

FIXED = DEFAULT_STEP_SIZES["muon"]
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "context 1/5": {"context_size": 0.2},
    "gradient steps alone": {"adaptation": "gradient"},
    "gradient steps alone, fixed step size": {"adaptation": "gradient", "step_size": FIXED},
    "gradient steps alone, context 1/5": {"adaptation": "gradient", "context_size": 0.2},
    "gradient steps alone, context 1/5, fixed step size": {
        "adaptation": "gradient",
        "context_size": 0.2,
        "step_size": FIXED,
    },
    "memory alone": {"adaptation": "memory"},
    "memory alone, context 1/5": {"adaptation": "memory", "context_size": 0.2},
    "all weights": {"fast_weights": "all"},
    "all weights, context 1/5": {"fast_weights": "all", "context_size": 0.2},
}


def adapt(checkpoint: str, parameters: dict[str, Any], rows: int, features: int) -> dict[str, float]:
    """Fit and adapt once; seconds of clock and processor, and of the guard's scores."""
    X, y = make_classification(rows, features, n_informative=min(8, features), n_classes=3, random_state=0)
    base = TabPFNClassifier(model_path=checkpoint, device="cpu", random_state=0)
    model = TTTTabPFNClassifier(base, random_state=0, cache=FastWeightCache(), **parameters)
    scoring = []
    score = HeldBackScores.losses

    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return score(*args, **kwargs)
        finally:
            scoring.append(time.perf_counter() - started)

    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(mock.patch.object(HeldBackScores, "losses", timed))
        started, processor = time.perf_counter(), time.process_time()
        report = model.fit(X, y).adaptation_report()
        seconds, processor = time.perf_counter() - started, time.process_time() - processor
    found = {"seconds": seconds, "processor_seconds": processor, "guard_share": sum(scoring) / seconds}
    return {**found, "accepted": report.accepted, "n_steps": report.n_steps}


def main() -> None:
    """Every variant, in turns."""
    out = parser(__doc__ or "", data=False)
    out.add_argument("--checkpoint", metavar="FILE", help="base weights; default: the checkpoint in the package")
    out.add_argument("--rows", type=int, default=1000)
    out.add_argument("--features", type=int, default=20)
    out.add_argument("--only", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    out.add_argument("--repeats", type=int, default=3)
    out.add_argument("--threads", type=int, default=2)
    options = out.parse_args()
    use_threads(options)
    checkpoint = base_checkpoint(options)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in options.only}
    for _ in range(options.repeats):
        for name in options.only:
            runs[name].append(adapt(checkpoint, VARIANTS[name], options.rows, options.features))
    rows = []
    for name, found in runs.items():
        spread = {part: summary([run[part] for run in found]) for part in ("seconds", "processor_seconds")}
        share = float(np.median([run["guard_share"] for run in found]))
        last = {part: found[-1][part] for part in ("accepted", "n_steps")}
        rows.append({"variant": name, "parameters": VARIANTS[name], **spread, "guard_share": share, **last})
    median = {row["variant"]: row["seconds"]["median"] for row in rows}
    ratios = {
        name: median[name] / median[fixed]
        for name in median
        if (fixed := f"{name}, fixed step size") in median and median[fixed]
    }
    names = ("rows", "features", "repeats", "threads")
    settings = {**{name: getattr(options, name) for name in names}, "checkpoint": file_digest(checkpoint)}
    write(options.out, "adaptation_cost", settings, rows, auto_over_fixed=ratios)
    for row in rows:
        print(f"{row['variant']:52s} {row['seconds']['median']:6.1f} s  guard {100 * row['guard_share']:3.0f} %")
    print("auto over fixed step size:", {name: round(ratio, 2) for name, ratio in ratios.items()})


if __name__ == "__main__":
    main()
