"""Estimated against measured cost of adapting, on 20 settings: peak bytes never above the estimate, seconds near it.

Every setting runs in a process of its own, which first adapts to a tiny table, so that loading is nobody's. Seconds are
processor seconds of one thread: on an idle machine these are what passes. On a busy one they grow too, by up to twice
where cores and caches are shared, while the estimate counts on the best speed that the machine shows.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from _common import parser, summary, write
from _fresh import answer, in_fresh_process
from sklearn.datasets import make_classification

from tttabpfn import FastWeightCache, TTTTabPFNClassifier

SETTINGS: list[dict[str, Any]] = [
    {"rows": 200, "columns": 5, "classes": 2},
    {"rows": 500, "columns": 10, "classes": 2},
    {"rows": 500, "columns": 10, "classes": 2, "adaptation": "memory"},
    {"rows": 1000, "columns": 10, "classes": 2},
    {"rows": 1000, "columns": 10, "classes": 2, "context_size": 200},
    {"rows": 1000, "columns": 10, "classes": 2, "adaptation": "gradient"},
    {"rows": 1000, "columns": 10, "classes": 2, "adaptation": "gradient", "context_size": 200},
    {"rows": 1000, "columns": 10, "classes": 2, "adaptation": "memory", "n_steps": 8},
    {"rows": 1000, "columns": 40, "classes": 3},
    {"rows": 1000, "columns": 40, "classes": 3, "adaptation": "memory", "context_size": 0.2},
    {"rows": 1000, "columns": 100, "classes": 2, "adaptation": "memory"},
    {"rows": 300, "columns": 300, "classes": 2, "adaptation": "memory"},
    {"rows": 1000, "columns": 20, "classes": 8, "adaptation": "memory"},
    {"rows": 1000, "columns": 20, "classes": 20, "adaptation": "memory"},
    {"rows": 2000, "columns": 20, "classes": 60, "adaptation": "memory", "context_size": 500},
    {"rows": 1000, "columns": 10, "classes": 2, "adaptation": "memory", "members": 1},
    {"rows": 1000, "columns": 10, "classes": 2, "adaptation": "memory", "members": 8},
    {"rows": 2000, "columns": 30, "classes": 5, "context_size": 300},
    {"rows": 4000, "columns": 10, "classes": 2, "adaptation": "memory"},
    {"rows": 8000, "columns": 20, "classes": 3, "adaptation": "memory", "context_size": 500},
]


def classifier(setting: dict[str, Any]) -> TTTTabPFNClassifier:
    """An unfitted classifier of a setting."""
    known = {name: setting[name] for name in ("adaptation", "context_size", "n_steps") if name in setting}
    made = TTTTabPFNClassifier(random_state=0, cache=FastWeightCache(), **known)
    if "members" in setting:
        from tttabpfn.tabpfn_adapter import default_estimator

        made.estimator = default_estimator().set_params(n_estimators=setting["members"])
    return made


def table(setting: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Generated rows and labels of a setting."""
    columns = setting["columns"]
    return make_classification(
        setting["rows"],
        columns,
        n_informative=min(columns, max(6, columns // 2)) if setting["classes"] > 2 else max(4, columns // 2),
        n_redundant=0,
        n_classes=setting["classes"],
        n_clusters_per_class=1,
        flip_y=0.05,
        random_state=0,
    )


def worker(setting: dict[str, Any]) -> dict[str, Any]:
    """Estimate, then adapt and measure."""
    X, y = table(setting)
    classifier({}).fit(X[:60], np.arange(60) % 2).adapt()
    model = classifier(setting)
    cost = model.estimate_cost(X, y)
    before = _resident_bytes(reset=True)
    started, processor = time.perf_counter(), time.thread_time()
    model.fit(X, y).adapt()
    seconds, processor = time.perf_counter() - started, time.thread_time() - processor
    peak = _resident_bytes(peak=True) - before
    return {
        "estimated_seconds": cost.seconds,
        "seconds": seconds,
        "processor_seconds": processor,
        "ratio": cost.seconds / processor,
        "estimated_bytes": cost.peak_bytes,
        "bytes": peak,
        "bytes_ratio": cost.peak_bytes / peak,
        "seconds_by_part": cost.seconds_by_part,
        "bytes_by_part": cost.bytes_by_part,
        "reason": model.adaptation_report().reason,
    }


def _resident_bytes(*, reset: bool = False, peak: bool = False) -> int:
    """Resident memory of this process, or its peak since the last reset; Linux alone tells."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    name = "VmHWM:" if peak else "VmRSS:"
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def main() -> None:
    """Run all settings and print how far off the estimates are."""
    arguments = parser(__doc__ or "", data=False)
    arguments.add_argument(
        "--only", type=int, nargs="*", metavar="NUMBER", help="only these settings, from 0; others of FILE stay"
    )
    options = arguments.parse_args()
    measured: dict[int, dict[str, Any]] = {}
    if options.only and Path(options.out).exists():
        measured = {row["number"]: row for row in json.loads(Path(options.out).read_text())["rows"]}
    result: dict[str, Any] = {}
    for number, setting in enumerate(SETTINGS):
        if options.only and number not in options.only:
            continue
        found = in_fresh_process(__file__, setting, threads=1)
        measured[number] = {"number": number, **setting, **found}
        rows = [measured[key] for key in sorted(measured)]
        if "error" in found:
            print(f"{number:2d} {setting} {found['error']}", flush=True)
            continue
        print(
            f"{number:2d} {found['processor_seconds']:6.1f} s, estimate {found['ratio']:.2f} of it; "
            f"{found['bytes'] / 2**20:5.0f} MiB, estimate {found['bytes_ratio']:.2f} of it  {setting}",
            flush=True,
        )
        known = [row for row in rows if "error" not in row]
        result = {
            "n": len(known),
            "ratio": summary([row["ratio"] for row in known]),
            "within_factor_2": sum(0.5 <= row["ratio"] <= 2.0 for row in known),
            "lowest_bytes_ratio": min(row["bytes_ratio"] for row in known),
        }
        write(options.out, "cost", {"settings": SETTINGS}, rows, summary=result)
    print(result)


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "--worker":
        answer(worker, sys.argv[2])
    else:
        main()
