"""How long benchmarks run: common options, rows kept from an earlier run, a time budget, one line per row."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import _common

SAVE_EVERY = 20.0


def add_options(parser: argparse.ArgumentParser, *, max_rows: int | None = 2000, seeds: int = 3) -> None:
    """Add what every long benchmark takes; see `base_checkpoint` and `Run` for their meaning."""
    parser.add_argument("--checkpoint", metavar="FILE", help="base weights; default: the checkpoint in the package")
    parser.add_argument("--n-estimators", type=int, help="ensemble members at predict; default: TabPFN's own")
    parser.add_argument("--n-steps", type=int, help="gradient steps of TTT; default: the classifier's own")
    parser.add_argument("--seeds", type=int, default=seeds, help="splits per table")
    parser.add_argument("--max-rows", type=int, default=max_rows, help="rows taken from a table, drawn once; 0: all")
    parser.add_argument("--threads", type=int, default=2, help="threads of every model")
    parser.add_argument("--minutes", type=float, help="stop before a row that would start later than this")
    parser.add_argument("--resume", action="store_true", help="keep the rows of --out that would come out the same")


def use_threads(options: argparse.Namespace) -> None:
    """Hold this process and the ones it starts to the threads asked for."""
    import torch

    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    torch.set_num_threads(options.threads)


def base_checkpoint(options: argparse.Namespace) -> str:
    """Path of the base weights that every TabPFN of the run uses."""
    if options.checkpoint is not None:
        return str(Path(options.checkpoint).resolve())
    from tttabpfn.checkpoints import bundled_model_path

    return str(bundled_model_path())


def digest(*values: Any) -> str:
    """Eight hexadecimal digits that stand for some values: what a row depends on, beyond its name."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=repr).encode()).hexdigest()[:8]


def file_digest(path: str) -> str:
    """Eight hexadecimal digits that stand for a file's content."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:8]


class Run:
    """A list of rows, each measured once, across runs that stop early and go on later.

    A job is a dict of names and values that tell its row from all others, with ``depends`` a digest of everything else
    that the row depends on. A kept row has both. Rows of other jobs stay in the file while their ``depends`` is one of
    the present jobs': a run on other tables adds to a file, a run after a change of defaults replaces.
    """

    def __init__(
        self, options: argparse.Namespace, benchmark: str, settings: dict[str, Any], jobs: Sequence[dict[str, Any]]
    ) -> None:
        self.options = options
        self.benchmark = benchmark
        self.settings = settings
        self.jobs = list(jobs)
        self.rows: list[dict[str, Any]] = []
        self._start = self._saved = time.monotonic()
        self._commit = _common.machine()["commit"]
        names = [name for name in self.jobs[0] if name != "depends"] if self.jobs else []
        self._names = names
        if options.resume and Path(options.out).exists():
            valid = {job["depends"] for job in self.jobs}
            found = json.loads(Path(options.out).read_text())["rows"]
            self.rows = [row for row in found if row.get("depends") in valid]
            self._say(f"{len(self.rows)} rows kept, {len(found) - len(self.rows)} of other settings dropped")

    def key(self, row: dict[str, Any]) -> tuple[Any, ...]:
        """What tells a row from all others."""
        return (*(row.get(name) for name in self._names), row["depends"])

    @property
    def to_do(self) -> list[dict[str, Any]]:
        """Jobs without a row, in order."""
        done = {self.key(row) for row in self.rows}
        return [job for job in self.jobs if self.key(job) not in done]

    @property
    def out_of_time(self) -> bool:
        """Whether the time budget is spent."""
        return self.options.minutes is not None and time.monotonic() - self._start > 60 * self.options.minutes

    def measure(self, call: Callable[[dict[str, Any]], dict[str, Any]]) -> bool:
        """Measure the jobs to do; whether all are done now."""
        to_do = self.to_do
        for position, job in enumerate(to_do):
            if self.out_of_time:
                self._say(f"out of time with {len(to_do) - position} rows to do; --resume goes on")
                break
            start = time.perf_counter()
            row = call(job)
            self.rows.append({**job, **row, "commit": self._commit})
            shown = "  ".join(f"{name}={show(value)}" for name, value in row.items() if show(value))
            name = " ".join(str(job[name]) for name in self._names)
            self._say(f"[{position + 1}/{len(to_do)}] {name}: {shown} ({time.perf_counter() - start:.1f} s)")
            if time.monotonic() - self._saved > SAVE_EVERY:
                self.save()
        self.save()
        return not self.to_do

    def save(self, **extra: Any) -> None:
        """Write the rows so far, and what was made of them."""
        missing = len(self.to_do)
        settings = {**self.settings, "rows_missing": missing}
        _common.write(self.options.out, self.benchmark, settings, self.rows, **extra)
        self._saved = time.monotonic()

    def _say(self, message: str) -> None:
        print(f"{self.benchmark}: {message}", file=sys.stderr, flush=True)


def show(value: Any) -> str:
    """A number or a word in few characters; nothing for lists and long texts."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return str(value)
    return value if isinstance(value, str) and len(value) <= 24 else ""


def run_settings(options: argparse.Namespace, checkpoint: str) -> dict[str, Any]:
    """Settings of the run as the result file keeps them, without paths."""
    hidden = ("data", "out", "plot", "checkpoint", "resume", "minutes")
    kept = {name: value for name, value in vars(options).items() if name not in hidden}
    return {**kept, "checkpoint": Path(checkpoint).name, "checkpoint_sha256": file_digest(checkpoint)}


def group_by(rows: Iterable[dict[str, Any]], *names: str) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Rows by the values of some of their fields."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups
