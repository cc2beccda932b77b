"""Put faults in the way of cache files, pickles, processes and checkpoints, and compare every answer with a right one.

    OMP_NUM_THREADS=1 python benchmarks/faults.py --faults 3000 --out faults.json

Tiny random bases and tables, so that a fault takes a fifth of a second. What each fault does follows from the seed and
its number. Outcomes: "right" (the kept fast weights predicted the right bits), "miss" (right bits, adapted anew),
"refused" (a pickle cut short does not load), "error", "wrong" and "hang". One process works, this one watches: where
no answer comes for a minute, or the process dies, that is an outcome too, and another process goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _common import parser, write
from _faults_kinds import KINDS, ORDER, Bench

PATIENCE = 60.0
"""Seconds without an answer after which a fault counts as a hang."""


def work(seed: int, numbers: range) -> None:
    """Put the faults of these numbers in the way, one after the other, and print a line for each."""
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for number in numbers:
            rng = random.Random(f"{seed} {number}")
            fault = rng.choices(list(KINDS), list(KINDS.values()))[0]
            place = Path(folder) / "place"
            place.mkdir()
            print(json.dumps({"number": number, "fault": fault.__name__}), flush=True)
            note = ""
            try:
                kind, outcome = fault(bench, rng, place)
            except Exception as error:
                kind, outcome, note = "", "error", f"{type(error).__name__}: {error}"[:200]
            line = {"number": number, "fault": fault.__name__, "kind": kind, "outcome": outcome, "note": note}
            print(json.dumps(line), flush=True)
            shutil.rmtree(place)


def lines_of(process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    """A worker's lines; ends with the worker, or when none comes for too long."""
    assert process.stdout is not None
    while select.select([process.stdout], [], [], PATIENCE)[0]:
        line = process.stdout.readline()
        if not line:
            return
        yield json.loads(line)


def watch(seed: int, count: int, minutes: float) -> list[dict[str, Any]]:
    """Let a process work, and start another one behind the fault where it hung or died; a line for each fault."""
    rows: list[dict[str, Any]] = []
    end = time.monotonic() + 60 * minutes
    while len(rows) < count and time.monotonic() < end:
        command = [sys.executable, __file__, "--worker", str(len(rows)), "--faults", str(count), "--seed", str(seed)]
        # Unbuffered: a line that waits in a buffer would not be seen by `select`.
        process = subprocess.Popen(
            [*command, "--out", os.devnull], stdout=subprocess.PIPE, bufsize=0, start_new_session=True
        )
        under_way: dict[str, Any] = {"fault": "start"}
        for line in lines_of(process):
            if "outcome" in line:
                rows.append(line)
                if len(rows) % 100 == 0:
                    print(len(rows), dict(Counter(row["outcome"] for row in rows)), flush=True)
            under_way = line
            if "outcome" in line and time.monotonic() > end:
                break
        time.sleep(0.1)
        died = process.poll() is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if len(rows) < count and "outcome" not in under_way:
            if under_way["fault"] == "start":
                raise SystemExit("the worker did not start")
            rows.append({**under_way, "outcome": "error" if died else "hang", "note": "died" if died else "no answer"})
    return rows


def main() -> None:
    options: argparse.ArgumentParser = parser(__doc__.splitlines()[0], data=False)
    options.add_argument("--faults", type=int, default=3000, metavar="N", help="how many")
    options.add_argument("--minutes", type=float, default=60.0, metavar="M", help="stop after so many")
    options.add_argument("--seed", type=int, default=0, help="of all faults")
    options.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.worker is not None:
        work(arguments.seed, range(arguments.worker, arguments.faults))
        return
    started = time.perf_counter()
    rows = watch(arguments.seed, arguments.faults, arguments.minutes)
    table = []
    for fault in KINDS:
        own = [row for row in rows if row["fault"] == fault.__name__]
        counts = Counter(row["outcome"] for row in own)
        table.append({"fault": fault.__name__, "faults": len(own), **{name: counts[name] for name in reversed(ORDER)}})
        print(table[-1])
    bad = [row for row in rows if row["outcome"] in ORDER[:3]]
    settings = {"faults": len(rows), "seed": arguments.seed}
    totals = Counter(row["outcome"] for row in rows)
    seconds = time.perf_counter() - started
    write(arguments.out, "faults", settings, table, totals=totals, bad=bad, seconds=seconds)
    print(dict(totals), f"{seconds:.0f} s")
    for row in bad:
        print(row)


if __name__ == "__main__":
    main()
