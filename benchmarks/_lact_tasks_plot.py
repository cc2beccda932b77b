"""Plots of benchmarks/lact_tasks.py: means over seeds with their spread, one panel per question."""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path
from typing import Any

import numpy as np

LABELS = {"lact": "LaCT + window", "linear": "linear state + window", "window": "window only", "full": "full attention"}


def draw(task: str, rows: list[dict[str, Any]], settings: dict[str, Any], path: str) -> None:
    """Write one PNG; for video also an animation beside it, if a clip was generated."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    canvas, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6))
    {"text": _text, "views": _views, "video": _video}[task](left, right, rows, settings)
    canvas.tight_layout()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, dpi=80, pil_kwargs={"optimize": True})
    plt.close(canvas)
    clip = next((row["generated"] for row in rows if "generated" in row), None)
    if clip is not None:
        animate(clip, Path(path).with_suffix(".gif"))


def animate(clip: list[Any], path: Path, scale: int = 8) -> None:
    """Write grey frames [f, size, size] as an animated GIF."""
    from PIL import Image

    frames = [Image.fromarray(np.kron(np.array(frame, np.uint8), np.ones((scale, scale), np.uint8))) for frame in clip]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=250, loop=0)


def variants(rows: list[dict[str, Any]], value: str) -> dict[str, list[float]]:
    """Values of every setting over its seeds."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row.get(value) is not None:
            found.setdefault(name_of(row), []).append(row[value])
    return found


def name_of(row: dict[str, Any]) -> str:
    """A setting in words: the mixer, or what differs from LaCT's default."""
    words = {
        "mixers": LABELS[row["kind"]],
        "rules": f"LaCT, {row['rule']} steps",
        "forms": f"LaCT, {row.get('form')}",
        "chunks": f"LaCT, chunk {row.get('chunk')}",
        "states": f"LaCT, state x {row.get('ratio', 2.0) / 2:g}",
    }
    return words[row["part"]]


def _bars(axes: Any, rows: list[dict[str, Any]], value: str, label: str) -> None:
    found = variants(rows, value)
    names = list(found)[::-1]
    means = [statistics.fmean(found[name]) for name in names]
    axes.barh(names, means, color="C0", alpha=0.5)
    for place, name in enumerate(names):
        axes.plot(found[name], [place] * len(found[name]), "k|", markersize=9)
    spread = max(means) - min(means)
    axes.set_xlim(min(means) - 0.5 * spread - 1e-6, max(means) + 0.3 * spread + 1e-6)
    axes.set_xlabel(label)


def _curves(axes: Any, rows: list[dict[str, Any]], value: str, x: list[float]) -> None:
    for colour, kind in enumerate(LABELS):
        own = [row[value] for row in rows if row["kind"] == kind and row["part"] == "mixers"]
        if own:
            mean, low, high = np.mean(own, 0), np.min(own, 0), np.max(own, 0)
            axes.plot(x, mean, "o-", color=f"C{colour}", label=f"{LABELS[kind]} ({len(own)} seeds)")
            axes.fill_between(x, low, high, color=f"C{colour}", alpha=0.2)
    axes.legend()


def _text(left: Any, right: Any, rows: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    edges = rows[0]["edges"]
    middles = [(a * b) ** 0.5 if a else b / 2 for a, b in itertools.pairwise(edges)]
    _curves(left, rows, "loss_by_position", middles)
    left.set_xscale("log")
    left.axvline(settings["window"], color="grey", linestyle=":")
    left.set_xlabel("position in the context (dotted: the window)")
    left.set_ylabel("nats per byte, held-back files")
    _bars(right, rows, "loss_beyond", "nats per byte beyond the window")


def _views(left: Any, right: Any, rows: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    _curves(left, rows, "psnr", settings["views"])
    left.set_xscale("log", base=2)
    left.set_xlabel("input views")
    left.set_ylabel("PSNR of held-back views (dB)")
    _bars(right, rows, "psnr_16", "PSNR at 16 input views (dB)")


def _video(left: Any, right: Any, rows: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    _curves(left, rows, "loss_by_frame", list(range(1, settings["frames"] + 1)))
    left.set_xlabel("frame")
    left.set_ylabel("squared error of the denoised frame")
    _bars(right, rows, "loss_late", "squared error, second half of the clip")
