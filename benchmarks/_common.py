"""Shared by every benchmark: tables from a folder, the machine's description, timing, and result files."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

PACKAGES = ("tttabpfn", "tabpfn", "torch", "scikit-learn", "numpy", "lightgbm", "xgboost", "catboost", "triton")


@dataclass(frozen=True)
class Table:
    """A classification table: features, labels coded 0..C-1, and what the folder's index says about it."""

    name: str
    X: pd.DataFrame
    y: np.ndarray
    info: dict[str, Any]


def load_tables(folder: str | Path, names: list[str] | None = None, source_contains: str | None = None) -> list[Table]:
    """Read `index.json` and the `*.csv.gz` files it lists; keep `names` if given, in the index's order."""
    folder = Path(folder)
    index = json.loads((folder / "index.json").read_text())
    entries = index.items() if isinstance(index, dict) else ((entry["name"], entry) for entry in index)
    tables = []
    for name, info in entries:
        if names is not None and name not in names:
            continue
        if source_contains is not None and source_contains.lower() not in json.dumps(info).lower():
            continue
        frame = pd.read_csv(folder / f"{name}.csv.gz")
        y = pd.factorize(frame["target"], sort=True)[0]
        tables.append(Table(name, frame.drop(columns="target"), y.astype(np.int64), dict(info)))
    if not tables:
        raise SystemExit(f"no tables found in {folder} (names={names})")
    return tables


def parser(description: str, *, data: bool = True, plot: bool = False) -> argparse.ArgumentParser:
    """The options every benchmark has: --data DIR, --out FILE.json and, where it draws, --plot FILE.png."""
    out = argparse.ArgumentParser(description=description)
    if data:
        out.add_argument("--data", required=True, metavar="DIR", help="folder with index.json and *.csv.gz tables")
        out.add_argument("--tables", nargs="*", metavar="NAME", help="only these tables")
    out.add_argument("--out", required=True, metavar="FILE.json", help="where the results go")
    if plot:
        out.add_argument("--plot", metavar="FILE.png", help="where the figure goes")
    return out


def machine() -> dict[str, Any]:
    """What the figures were measured on: processor, cores, versions and commit."""
    import torch

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "system": platform.system(),
        "versions": versions,
        "commit": _commit(),
    }


def _commit() -> str:
    try:
        root = Path(__file__).resolve().parent
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=True
        )
        return run.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def timed(call: Callable[[], Any], *, repeats: int = 5, warmup: int = 1) -> dict[str, float]:
    """Median and spread of `call`'s wall-clock seconds, after `warmup` untimed calls."""
    for _ in range(warmup):
        call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return summary(seconds)


def summary(values: list[float]) -> dict[str, float]:
    """Median, 20th and 80th percentile, and count."""
    low, high = np.percentile(values, [20, 80])
    return {"median": statistics.median(values), "p20": float(low), "p80": float(high), "n": len(values)}


def write(path: str | Path, benchmark: str, settings: dict[str, Any], rows: list[dict[str, Any]], **extra: Any) -> None:
    """Write one result file, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"benchmark": benchmark, "machine": machine(), "settings": settings, "rows": rows, **extra}
    scratch = path.with_suffix(path.suffix + ".part")
    scratch.write_text(json.dumps(record, indent=1, default=float) + "\n")
    scratch.replace(path)
