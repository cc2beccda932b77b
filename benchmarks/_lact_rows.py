"""Rows of the LaCT benchmark: kept from an earlier run that measured the same way, and written as they come."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import _common
from _running import digest

Row = dict[str, Any]

HOW = ("device", "dtype", "backend", "threads", "repeats", "seconds")
"""Options that change how a row is measured; the others choose which rows there are. A setting that is in the file is
not measured again, not even for a contender that it lacks: what is slow to compile may be done for few settings."""


class Rows:
    """All rows of a run; `labels in rows` tells whether a setting has been measured.

    Parameters
    ----------
    options : Namespace
        Of the benchmark. With `resume`, rows of its `out` stay if machine, versions and `HOW` are as now.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        here = _common.machine()
        self._commit = here.pop("commit")
        here["versions"].pop("tttabpfn", None)
        self._depends = digest(here, {name: getattr(options, name) for name in HOW})
        self.rows: list[Row] = []
        if options.resume and Path(options.out).exists():
            found = json.loads(Path(options.out).read_text())["rows"]
            self.rows = [row for row in found if row.get("depends") == self._depends]
            print(f"{len(self.rows)} rows kept, {len(found) - len(self.rows)} measured otherwise dropped", flush=True)

    def __contains__(self, labels: dict[str, Any]) -> bool:
        return any(labels.items() <= row.items() for row in self.rows)

    def add(self, rows: list[Row]) -> None:
        """Take all rows of one setting and write the file anew."""
        same = {"device": self._options.device, "dtype": self._options.dtype}
        self.rows += [{**row, **same, "depends": self._depends, "commit": self._commit} for row in rows]
        hidden = ("out", "plot", "resume")
        settings = {name: value for name, value in vars(self._options).items() if name not in hidden}
        _common.write(self._options.out, "lact_throughput", settings, self.rows)
