"""Test scores against context size, frozen and with test-time training: how many context rows TTT saves.

Half of each table trains; a context of n of its rows is drawn, class shares kept, the same for both. The frozen model
sees the context alone; TTT also uses the other training rows, as demonstrations. Context sizes are shares of the
training rows (--shares) and powers of two (--powers). Tables of 5,000 rows or more (--max-rows 0 to take all of them)
are summed up apart; --full-context sets the most rows that are tried as one context.
"""

from __future__ import annotations

import argparse
import sys
from functools import lru_cache
from typing import Any

import _efficiency
from _common import load_tables, parser
from _estimators import (
    LARGE,
    Data,
    adaptation_row,
    context_rows,
    evaluate,
    frozen,
    shortened,
    split,
    ttt,
    ttt_digest,
    ttt_settings,
)
from _running import Run, add_options, base_checkpoint, digest, file_digest, run_settings, use_threads

MAX_CLASSES = 10


def sizes(n_train: int, n_classes: int, options: argparse.Namespace) -> list[int]:
    """Context sizes of a table: the shares first, then the powers of two."""
    least, most = max(2 * n_classes, 8), min(n_train, options.full_context)
    shares = [round(share * n_train) for share in sorted(options.shares, reverse=True)]
    powers = [] if options.powers == 0 else [2**k for k in range(4, 20, options.powers)]
    return list(dict.fromkeys(size for size in [*shares, *powers] if least <= size <= most))


def main() -> None:
    """Measure, sum up, draw."""
    arguments = parser(__doc__, plot=True)
    add_options(arguments)
    arguments.add_argument("--shares", nargs="*", type=float, default=[1.0, 1 / 3, 0.2, 0.1])
    arguments.add_argument("--powers", type=int, default=1, help="every so many powers of two from 16 on; 0: none")
    arguments.add_argument("--full-context", type=int, default=5000, help="most rows in a context")
    arguments.add_argument("--test-rows", type=int, default=1000, help="most test rows")
    options = arguments.parse_args()
    use_threads(options)
    checkpoint = base_checkpoint(options)
    tables = {table.name: table for table in load_tables(options.data, options.tables)}
    common = (file_digest(checkpoint), options.n_estimators, options.max_rows, options.test_rows)
    depends = {"frozen": digest(*common), "ttt": digest(*common, ttt_digest(options.n_steps))}

    @lru_cache(maxsize=4)
    def data_of(name: str, seed: int) -> Data:
        return split(tables[name], seed, max_rows=options.max_rows, test_rows=options.test_rows)

    jobs: list[dict[str, Any]] = []
    for table in list(tables.values()):
        cut = shortened(table, options.max_rows)
        n_train, n_classes = len(cut.y) // 2, int(cut.y.max()) + 1
        if n_classes > MAX_CLASSES:
            print(f"sample_efficiency: {table.name} left out, {n_classes} classes", file=sys.stderr)
            continue
        for rank, size in enumerate(sizes(n_train, n_classes, options)):
            for seed in range(options.seeds):
                jobs += [
                    {"table": table.name, "seed": seed, "context": size, "model": m, "rank": rank} for m in depends
                ]
    # Seed by seed and the shares before the powers: a run cut short has whole columns.
    n_shares = len(options.shares)
    jobs.sort(key=lambda job: (job["seed"], job["rank"] >= n_shares))
    for job in jobs:
        del job["rank"]
        job["depends"] = depends[job["model"]]

    def measure(job: dict[str, Any]) -> dict[str, Any]:
        data = data_of(job["table"], job["seed"])
        facts = {"n_train": len(data.y_train), "n_test": len(data.y_test), "large": len(data.table.y) >= LARGE}
        if job["model"] == "frozen":
            rows = context_rows(data, checkpoint, job["context"])
            return {**evaluate(frozen(data, checkpoint, options.n_estimators), data, rows), **facts}
        model = ttt(data, checkpoint, options.n_estimators, options.n_steps, context_size=job["context"])
        return {**evaluate(model, data), **facts, **adaptation_row(model)}

    run = Run(options, "sample_efficiency", {**run_settings(options, checkpoint), "ttt": ttt_settings()}, jobs)
    run.measure(measure)
    result = _efficiency.summarise(run.rows)
    run.save(summary=result)
    _efficiency.tell(result)
    if options.plot:
        _efficiency.draw(result, options.plot)


if __name__ == "__main__":
    main()
