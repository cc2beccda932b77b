"""What a comparison shows: lines for a person, a table, a figure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tttabpfn.compare.measure import ModelScores
from tttabpfn.display import AdaptationDisplay
from tttabpfn.report import AdaptationReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def describe(report: AdaptationReport) -> str:
    """Return what was adapted, and what the guard decided and why, as lines for a person.

    Parameters
    ----------
    report : AdaptationReport
        What the adaptation did.

    Returns
    -------
    str
        What was adapted, the guard's verdict, one line per note, and what predicts with which share.

    Examples
    --------
    >>> from tttabpfn.report import AdaptationReport
    >>> print(describe(AdaptationReport(adaptation="none", accepted=False, reason="n_steps is 0")))
    Adapted: nothing
    Guard: the frozen model predicts: n_steps is 0
    """
    lines = ["Adapted: nothing"]
    if report.adaptation != "none":
        lines = [
            f"Adapted: {report.adaptation}, {report.fast_weight_bytes / 1e6:.2f} MB of fast weights, rule "
            f"{report.update_rule}, step size {report.step_size:g}, {report.n_steps} updates kept, context of "
            f"{report.context_size:,} of {report.n_demonstrations:,} demonstrations, {report.seconds:.1f} s"
            f"{' (from the cache)' if report.cache_hit else ''}"
        ]
    lines.append(f"Guard: {'accepted' if report.accepted else 'the frozen model predicts'}: {report.reason}")
    lines += [f"       {note}" for note in report.notes]
    if report.shares:
        lines.append("Predicts:")
        lines += [f"{share:6.0%}  {name}" for name, share in report.shares.items()]
    return "\n".join(lines)


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


def save_plot(path: Path, rows: list[ModelScores], report: AdaptationReport, title: str) -> None:
    """Draw a comparison into a file; see `figure`."""
    figure(rows, report, title).savefig(path, dpi=120)
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


def figure(rows: list[ModelScores], report: AdaptationReport, title: str) -> Figure:
    """Draw the adaptation's held-back loss beside bars of every score.

    Parameters
    ----------
    rows : list of ModelScores
        What `compare` returned.
    report : AdaptationReport
        Likewise.
    title : str
        Above it all.

    Returns
    -------
    Figure
        To be saved; it belongs to no window.
    """
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(13, 4.2), layout="constrained")
    left, *axes = drawing.subplots(1, 4, width_ratios=[3, 1, 1, 1])
    AdaptationDisplay.from_report(report, ax=left)
    for ax, name, field in zip(
        axes, ("Accuracy", "Log loss", "ROC AUC"), ("accuracy", "log_loss", "roc_auc"), strict=True
    ):
        values = [getattr(row, field) for row in rows]
        bars = ax.bar([row.label for row in rows], values, color=[row.colour for row in rows])
        ax.bar_label(bars, fmt="%.3f", fontsize="small")
        ax.margins(y=0.15)
        ax.tick_params(axis="x", labelsize="x-small")
        ax.set_title(f"{name} ({'lower' if field == 'log_loss' else 'higher'} is better)", fontsize="small")
    drawing.suptitle(title)
    return drawing
