"""Panels of benchmarks/theory.py: lines for closed forms, dots for limits, points with error bars for measurements."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Figure:
    """One panel: its rows, grouped by their `curve`, and what to say beneath it."""

    name: str
    title: str
    x_label: str
    rows: list[dict[str, Any]]
    caption: str
    y_label: str = "risk / variance of a label"
    scales: tuple[str, str] = ("linear", "linear")
    vertical: dict[str, float] = field(default_factory=dict)
    join_points: bool = False


def draw(path: str | Path, figures: list[Figure], columns: int = 2) -> None:
    """Write all panels to one PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = -(-len(figures) // columns)
    canvas, grid = plt.subplots(lines, columns, figsize=(7.2 * columns, 6.3 * lines), squeeze=False)
    for axes, figure in zip(grid.flat, figures, strict=False):
        _panel(axes, figure)
    for axes in list(grid.flat)[len(figures) :]:
        axes.set_visible(False)
    height = 6.3 * lines
    canvas.subplots_adjust(left=0.07, right=0.985, top=1 - 0.4 / height, bottom=1.9 / height, hspace=0.58, wspace=0.18)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, dpi=80, pil_kwargs={"optimize": True})
    plt.close(canvas)


def _panel(axes: Any, figure: Figure) -> None:
    curves = list(dict.fromkeys(row["curve"] for row in figure.rows))
    for index, curve in enumerate(curves):
        rows = sorted((row for row in figure.rows if row["curve"] == curve), key=lambda row: row["x"])
        colour, label = f"C{index}", curve
        for key, style in (("theory", "-"), ("limit", ":")):
            x, y = _column(rows, key)
            if x.size:
                axes.plot(x, y, style, color=colour, label=label, linewidth=1.6)
                label = None
        x, y = _column(rows, "simulated")
        if x.size:
            errors = [row["standard_error"] for row in rows if row.get("simulated") is not None]
            style = "o-" if figure.join_points else "o"
            axes.errorbar(x, y, 3 * np.array(errors), fmt=style, color=colour, label=label, markersize=4, capsize=2)
    for text, position in figure.vertical.items():
        axes.axvline(position, color="0.6", linewidth=0.9, linestyle="--", zorder=0)
        axes.annotate(
            text,
            (position, 1),
            xycoords=("data", "axes fraction"),
            xytext=(2, -4),
            textcoords="offset points",
            fontsize=8,
            color="0.35",
            rotation=90,
            va="top",
        )
    axes.set(xscale=figure.scales[0], yscale=figure.scales[1], xlabel=figure.x_label, ylabel=figure.y_label)
    axes.set_title(figure.title, loc="left", fontsize=11, fontweight="bold")
    for axis, scale, values in zip((axes.xaxis, axes.yaxis), figure.scales, ("x", "y"), strict=True):
        if scale == "log":
            _plain_ticks(axis, axes.get_xlim() if values == "x" else axes.get_ylim())
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, framealpha=0.8)
    caption = "\n".join(textwrap.wrap(figure.caption, 92))
    axes.text(0, -0.16, caption, transform=axes.transAxes, va="top", fontsize=8.3, linespacing=1.25)


def _plain_ticks(axis: Any, limits: tuple[float, float]) -> None:
    """Ticks at 1, 2 and 5 times powers of ten, as plain numbers; only the powers if that is more than eight."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    powers = [10.0**exponent for exponent in range(-9, 10)]
    ticks = [factor * power for power in powers for factor in (1, 2, 5)]
    inside = [tick for tick in ticks if limits[0] <= tick <= limits[1]]
    kept = inside if len(inside) <= 8 else [tick for tick in powers if limits[0] <= tick <= limits[1]]
    axis.set_major_locator(FixedLocator(kept))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _column(rows: list[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    kept = [(row["x"], row[key]) for row in rows if row.get(key) is not None]
    return np.array([x for x, _ in kept]), np.array([y for _, y in kept])
