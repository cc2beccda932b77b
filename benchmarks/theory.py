"""One-step TTT in closed form against simulation, and a small transformer under task shift.

Without `--parts` everything is computed. With it, the other parts' rows are kept from an existing --out, and with no
part named, only the captions and the figure are made again.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import _common
import numpy as np
import torch
from _theory_linear import linear_rows
from _theory_panels import panels
from _theory_plot import draw
from _theory_transformer import Setting, experiment

from tttabpfn.theory import LinearTask, critical_k, one_step, pretrained_weight


def timing_rows() -> list[dict[str, Any]]:
    """Seconds for the whole closed form of one task: weight, one step and thresholds in both contexts."""
    rows = []
    for kind, d in (("diagonal", 20), ("diagonal", 2000), ("full", 20), ("full", 200)):
        spectrum, beta = np.arange(1, d + 1) ** -0.5, np.ones(d)
        covariance: Any = spectrum if kind == "diagonal" else np.diag(spectrum)

        def solve(covariance: Any = covariance, beta: np.ndarray = beta, kind: str = kind, d: int = d) -> None:
            task = LinearTask(2 * d, beta, covariance, 0.5)
            W = pretrained_weight(2 * d, covariance, 1.0, 0.5, form="diagonal" if kind == "diagonal" else "dense")
            for context in ("fresh", "shared"):
                one_step(task, W, d, context)
                critical_k(task, W, context)

        rows.append({"figure": "timing", "inputs": kind, "d": d, "seconds": _common.timed(solve, repeats=9)})
    return rows


def transformer_rows() -> list[dict[str, Any]]:
    """Rows of the transformer experiment, with its progress on standard error."""
    return experiment(Setting(), lambda message: print(message, file=sys.stderr, flush=True))


PARTS = {"timing": timing_rows, "linear": linear_rows, "transformer": transformer_rows}


def main() -> None:
    parser = _common.parser(__doc__ or "", data=False, plot=True)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS), help="compute only these")
    args = parser.parse_args()
    torch.set_num_threads(1)
    old: dict[str, Any] = {"rows": [], "settings": {}}
    if set(args.parts) != set(PARTS) and Path(args.out).exists():
        old = json.loads(Path(args.out).read_text())
    rows = [row for row in old["rows"] if row["part"] not in args.parts]
    settings = {part: made for part, made in old["settings"].items() if part not in args.parts}
    for part in args.parts:
        start, cpu = time.perf_counter(), time.process_time()
        made = [{"part": part, **row} for row in PARTS[part]()]
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        settings[part] = {"seconds": seconds, "cpu_seconds": cpu, "machine": _common.machine()}
        rows += made
        _common.write(args.out, "theory", settings, rows)
        print(f"{part}: {len(made)} rows in {seconds:.0f} s ({cpu:.0f} s of processor time)")
    figures = panels(rows)
    captions = {figure.name: f"{figure.title}. {figure.caption}" for figure in figures}
    _common.write(args.out, "theory", settings, rows, captions=captions)
    if args.plot:
        draw(args.plot, figures)
    for row in rows:
        if row["figure"] in ("agreement", "timing"):
            print({name: value for name, value in row.items() if name not in ("part", "figure")})


if __name__ == "__main__":
    main()
