"""What a comparison shows: lines for a person, a table, a figure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tttabpfn.compare.differences import differences
from tttabpfn.compare.measure import ModelScores
from tttabpfn.display import AdaptationDisplay
from tttabpfn.report import AdaptationReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def advise(rows: list[ModelScores], y: np.ndarray, report: AdaptationReport) -> list[str]:
    """Say what the test rows show, and what to try where TTT did worse than plain TabPFN on all rows.

    Parameters
    ----------
    rows : list of ModelScores
        What `compare` returned; the last one is TTT.
    y : ndarray of shape (n_test,)
        Labels of the test rows.
    report : AdaptationReport
        What the adaptation did.

    Returns
    -------
    list of str
        Lines; none where TTT was measured alone.
    """
    trained = rows[-1]
    if len(rows) == 1:
        return []
    plain = rows[0]
    gain = differences(y, trained.classes, plain.probabilities, trained.probabilities)["log_loss"]
    better, size = ("lower", "higher")[gain.value > 0], abs(gain.value)
    lines = [
        f"\nOn these {len(y):,} rows TTT has a {better} log loss than {plain.model}, by {size:.4f} +- "
        f"{gain.standard_error:.4f} (1 standard error)."
    ]
    if gain.value > 0:
        if not size > gain.standard_error:
            lines.append("That is within what chance does to so few rows.")
        if trained.context_rows < plain.context_rows:
            lines.append("Try a larger context: --context-size all, or a larger share.")
        elif report.accepted:
            lines.append("Try --adaptation memory or gradient alone, or more rows to test (--test-share).")
    return lines


def check_plot(path: Path) -> None:
    """Check that a figure can be written to a path, before anything is measured.

    Parameters
    ----------
    path : Path
        In a folder that exists, with the ending of a kind of picture.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If the path cannot be used.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError as error:
        raise ImportError("--plot needs matplotlib: pip install 'tttabpfn[plot]'") from error
    kinds = FigureCanvasAgg.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in kinds:
        raise ValueError(f"--plot must end in one of .{', .'.join(sorted(kinds))}, got {path}")
    if not path.parent.is_dir():
        raise ValueError(f"--plot must be in a folder that exists, got {path}")


def save_plot(path: Path, rows: list[ModelScores], y: np.ndarray, report: AdaptationReport, title: str) -> None:
    """Draw a comparison into a file; see `figure`."""
    figure(rows, y, report, title).savefig(path, dpi=120)
    print(f"\nPlot: {path}")


def table(rows: list[ModelScores]) -> str:
    """Return the rows as text, one line each, under a heading.

    Parameters
    ----------
    rows : list of ModelScores
        At least one.

    Returns
    -------
    str
        Aligned columns.

    Examples
    --------
    >>> print(table([ModelScores("TTT", "TTT", "C0", 80, 0.5, 0.75, 0.875, 2.0, 0.125)]))
    model  context rows  accuracy  log loss  ROC AUC  fit + first predict  later predict
    TTT              80    0.5000    0.7500   0.8750               2.00 s         0.12 s
    """
    head = ("model", "context rows", "accuracy", "log loss", "ROC AUC", "fit + first predict", "later predict")
    body = [
        (
            row.model,
            f"{row.context_rows:,}",
            f"{row.accuracy:.4f}",
            f"{row.log_loss:.4f}",
            f"{row.roc_auc:.4f}",
            f"{row.first_seconds:.2f} s",
            f"{row.later_seconds:.2f} s",
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    lines = []
    for cells in (head, *body):
        rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        lines.append("  ".join([cells[0].ljust(widths[0]), *rest]))
    return "\n".join(lines)


SCORES = {"accuracy": "Accuracy", "log_loss": "Log loss", "roc_auc": "ROC AUC"}


def figure(rows: list[ModelScores], y: np.ndarray, report: AdaptationReport, title: str) -> Figure:
    """Draw what the adaptation did beside every model's scores, as differences to the first one.

    Parameters
    ----------
    rows : list of ModelScores
        What `compare` returned.
    y : ndarray of shape (n_test,)
        Labels of the test rows.
    report : AdaptationReport
        What the adaptation did.
    title : str
        Above it all.

    Returns
    -------
    Figure
        To be saved; it belongs to no window. Bars of one standard error stand around each difference.
    """
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(13, 4.2), layout="constrained")
    left, *axes = drawing.subplots(1, 4, width_ratios=[3, 1, 1, 1])
    AdaptationDisplay.from_report(report, ax=left)
    first = rows[0]
    found = [differences(y, first.classes, first.probabilities, row.probabilities) for row in rows[1:]]
    label = first.label.replace("\n", " ")
    for ax, (field, name) in zip(axes, SCORES.items(), strict=True):
        ax.axhline(0.0, color="0.5", linestyle="--", linewidth=1)
        for place, (row, difference) in enumerate(zip(rows[1:], found, strict=True)):
            value = getattr(row, field) - getattr(first, field)
            error = difference[field].standard_error
            bar = None if np.isnan(error) else [error]
            ax.errorbar([place], [value], yerr=bar, fmt="o", color=row.colour, capsize=4)
            ax.annotate(f"{value:+.4f}", (place, value), xytext=(7, 3), textcoords="offset points", size="small")
        ax.set_xticks(range(len(rows) - 1), [row.label for row in rows[1:]], size="small")
        ax.set_xlim(-0.5, max(len(rows) - 1.2, 0.9))
        ax.margins(y=0.25)
        better = "lower" if field == "log_loss" else "higher"
        ax.set_title(f"{name} ({better} is better)\nless {label}: {getattr(first, field):.4f}", size="small")
    drawing.suptitle(f"{title}  (differences on {len(y):,} test rows, bars of 1 standard error)", size="medium")
    return drawing
