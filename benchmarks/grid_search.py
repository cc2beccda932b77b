"""What a grid search over the step size costs, shared and unshared: both sides in one run, same scores to the last bit.

Shared: one `GridSearchCV` over eight step sizes, whose candidates meet in one cache. Unshared: eight searches with one
step size each, every one with a fresh cache. The base is loaded before either. The ratio of the shared search to one
candidate's fit plus score is the one that matters for ``n_steps=1``, that to the eight separate ones otherwise.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np
from _common import load_tables, parser, summary
from _estimators import Data, split, ttt, ttt_digest, ttt_settings
from _running import Run, add_options, base_checkpoint, digest, file_digest, group_by, run_settings, use_threads
from sklearn.model_selection import GridSearchCV

from tttabpfn import FastWeightCache, TTTTabPFNClassifier
from tttabpfn.adaptation.settings import DEFAULT_STEP_SIZES

FACTORS = (0.1, 0.3, 0.6, 1.0, 1.5, 2.5, 4.0, 8.0)
RATIOS = tuple(f"shared_over_{side}{clock}" for side in ("one", "separate") for clock in ("", "_processor"))


def search(data: Data, model: TTTTabPFNClassifier, sizes: list[float], folds: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds, of the clock and of the processor, of a search without refit; every candidate's score on every fold."""
    model = model.set_params(cache=FastWeightCache())
    grid = GridSearchCV(model, {"step_size": sizes}, scoring="neg_log_loss", cv=folds, refit=False, error_score="raise")
    start = np.array([time.perf_counter(), time.process_time()])
    grid.fit(data.X_train, data.y_train)
    seconds = np.array([time.perf_counter(), time.process_time()]) - start
    return seconds, np.array([grid.cv_results_[f"split{fold}_test_score"] for fold in range(folds)]).T


def compare(data: Data, model: TTTTabPFNClassifier, sizes: list[float], folds: int, repeats: int) -> dict[str, Any]:
    """Both sides, in turns."""
    shared_seconds, separate_seconds, one_seconds, same = [], [], [], True
    for _ in range(repeats):
        seconds, together = search(data, model, sizes, folds)
        shared_seconds.append(seconds)
        alone = [search(data, model, [size], folds) for size in sizes]
        separate_seconds.append(sum(seconds for seconds, _ in alone))
        one_seconds += [seconds for seconds, _ in alone]
        same &= bool(np.array_equal(together, np.concatenate([scores for _, scores in alone])))
    one, eight, shared = (np.median(s, axis=0) for s in (one_seconds, separate_seconds, shared_seconds))
    return {
        "shared_over_one": float(shared[0] / one[0]),
        "shared_over_separate": float(shared[0] / eight[0]),
        "shared_over_one_processor": float(shared[1] / one[1]),
        "shared_over_separate_processor": float(shared[1] / eight[1]),
        "same_scores": same,
        "shared_seconds": summary([float(clock) for clock, _ in shared_seconds]),
        "separate_seconds": summary([float(clock) for clock, _ in separate_seconds]),
        "one_candidate_seconds": summary([float(clock) for clock, _ in one_seconds]),
        "scores": together.tolist(),
    }


def main() -> None:
    """Measure and sum up."""
    arguments = parser(__doc__)
    add_options(arguments, max_rows=1000, seeds=1)
    arguments.add_argument("--folds", type=int, default=5, help="folds of the cross-validation")
    arguments.add_argument("--repeats", type=int, default=1, help="how often both sides are timed")
    arguments.add_argument("--context-share", type=float, help="default: all rows")
    options = arguments.parse_args()
    use_threads(options)
    warnings.simplefilter("ignore")
    checkpoint = base_checkpoint(options)
    tables = {table.name: table for table in load_tables(options.data, options.tables or ["diabetes", "vehicle"])}
    names = ("n_estimators", "max_rows", "threads", "folds", "repeats", "context_share")
    depends = digest(
        {name: getattr(options, name) for name in names}, file_digest(checkpoint), ttt_digest(options.n_steps)
    )
    jobs = [
        {"table": table, "seed": seed, "steps": steps, "depends": depends}
        for steps in ("one", "default")
        for seed in range(options.seeds)
        for table in tables
    ]

    def measure(job: dict[str, Any]) -> dict[str, Any]:
        data = split(tables[job["table"]], job["seed"], max_rows=options.max_rows, train=0.8)
        n_steps = 1 if job["steps"] == "one" else options.n_steps
        model = ttt(data, checkpoint, options.n_estimators, n_steps, context_size=options.context_share)
        sizes = [factor * DEFAULT_STEP_SIZES[model.update_rule] for factor in FACTORS]
        model.set_params(step_size=0.0)
        search(data, model, [0.0], 2)  # loads the base, so that nobody else pays for it
        facts = {"n_steps": model.n_steps, "step_sizes": sizes, "n_train": len(data.y_train)}
        return {**compare(data, model, sizes, options.folds, options.repeats), **facts}

    run = Run(options, "grid_search", {**run_settings(options, checkpoint), "ttt": ttt_settings()}, jobs)
    run.measure(measure)
    result = {
        steps: {
            **{name: summary([row[name] for row in part]) for name in RATIOS},
            "same_scores": all(row["same_scores"] for row in part),
        }
        for (steps,), part in group_by(run.rows, "steps").items()
    }
    run.save(summary=result)
    for steps, found in result.items():
        print(
            f"{steps} step(s): 8 candidates cost {found['shared_over_one']['median']:.2f} of one, "
            f"{found['shared_over_separate']['median']:.2f} of eight apart; same scores: {found['same_scores']}"
        )


if __name__ == "__main__":
    main()
