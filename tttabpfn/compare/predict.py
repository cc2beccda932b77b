"""`python -m tttabpfn predict`: learn from one file, predict another, write labels and probabilities."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tttabpfn.compare.reading import drop_columns, is_text, parse_dates, read_frame
from tttabpfn.compare.tables import Reading, Table, draw
from tttabpfn.prediction.progress import StagedBar

ROWS_AT_ONCE = 4096
"""Rows predicted between two looks at the bar; the frozen model runs its context anew for each."""
ENDINGS = (".csv", ".csv.gz", ".tsv", ".parquet")


def check_out(out: Path, read: Sequence[Path]) -> None:
    """Raise a ValueError unless a file can be written there that is none of those to be read."""
    if not out.name.lower().endswith(ENDINGS):
        raise ValueError(f"--out must end in {', '.join(ENDINGS)}, got {out}")
    if not out.parent.is_dir() or out.is_dir():
        raise ValueError(f"--out must be a file in a folder that exists, got {out}")
    if not os.access(out.parent, os.W_OK):
        raise ValueError(f"--out must be in a folder that can be written to, got {out}")
    if out.resolve() in [path.resolve() for path in read]:
        raise ValueError(f"--out must not be a file that is read, got {out}")


def sample(table: Table, max_rows: int | None, seed: int) -> tuple[Table, tuple[str, ...]]:
    """Return at most so many rows of a table, the shares of its classes kept, and a note if there are fewer."""
    labels, counts = np.unique(table.y, return_counts=True)
    if len(labels) < 2:
        raise ValueError(f"{table.name} must have two classes or more in its target, got {list(labels)}")
    if max_rows is None or len(table.y) <= max_rows:
        return table, ()
    rows = draw(table.y, max_rows / len(table.y), min(2, int(counts.min())), 0, np.random.default_rng(seed))
    note = f"learns from {len(rows):,} of {len(table.y):,} rows (stratified; change with --max-rows)"
    return Table(table.name, table.X.iloc[rows], table.y[rows], table.notes), (note,)


def load_new(new: str, X: pd.DataFrame, target: str, reading: Reading) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Read the rows to predict by the columns of the rows to learn from.

    Parameters
    ----------
    new : str
        Path of a file.
    X : DataFrame
        Features of the rows to learn from, as `load_table` reads them.
    target : str
        The column to predict; left out if it is there.
    reading : Reading
        The separator; the columns of dates are those of `X`.

    Returns
    -------
    rows : DataFrame
        With the columns of `X`, in their order and of their kinds.
    notes : tuple of str
        Columns that were not used.

    Raises
    ------
    ValueError
        If a column is not there, or holds something else than in `X`.
    """
    path = Path(new)
    if not path.is_file():
        raise ValueError(f"NEW must be a file; there is no file {new}")
    dates = [name for name in X.columns if pd.api.types.is_datetime64_any_dtype(X[name].dtype)]
    text = [name for name in X.columns if is_text(X[name])]
    frame = read_frame(path, reading.separator, dict.fromkeys([*text, *dates], str))
    lacking = [name for name in X.columns if name not in frame.columns]
    if lacking:
        raise ValueError(f"{new} must have every column to learn from; it lacks {', '.join(map(repr, lacking[:5]))}")
    if len(frame) == 0:
        raise ValueError(f"{new} must have a row to predict, got none")
    unused = [str(name) for name in drop_columns(frame, [*X.columns], new).columns if name not in reading.drop]
    others = [name for name in unused if name != target]
    notes = [f"{path.name}: its {target!r} is not looked at"] if target in unused else []
    if others:
        notes.append(f"{path.name}: not used: {', '.join(others[:5])}{' ...' * (len(others) > 5)}")
    frame = frame[list(X.columns)]
    frame, _ = parse_dates(frame, dates, new)
    for name in X.columns:
        if pd.api.types.is_numeric_dtype(X[name].dtype) and is_text(frame[name]):
            frame = frame.assign(**{name: _as_numbers(frame[name], name, new)})
        elif name in text and not is_text(frame[name]) and not frame[name].isna().all():
            raise ValueError(f"{new}: column {name!r} must hold text, as it does in the rows to learn from")
    return frame, tuple(notes)


def _as_numbers(column: pd.Series, name: str, source: str) -> pd.Series:
    numbers = pd.to_numeric(column, errors="coerce")
    wrong = np.flatnonzero(numbers.isna() & column.notna())
    if len(wrong):
        raise ValueError(
            f"{source}: column {name!r} must hold numbers, as it does in the rows to learn from; row {wrong[0] + 1} "
            f"holds {column.iloc[wrong[0]]!r}"
        )
    return numbers


def predict_rows(estimator: Any, table: Table, new: pd.DataFrame, *, quiet: bool) -> tuple[Any, np.ndarray]:
    """Fit, adapt and predict under one bar.

    Parameters
    ----------
    estimator : TTTTabPFNClassifier
        Unfitted; fitted in place.
    table : Table
        Rows to learn from.
    new : DataFrame
        Rows to predict.
    quiet : bool
        Whether to show no bar.

    Returns
    -------
    fitted : TTTTabPFNClassifier
    probabilities : ndarray of shape (n_rows, n_classes)
    """
    # The longer part of a usual job is the adaptation; a thousand rows take about a second on one core.
    costs = {"learning": 20.0, "predicting": 1.0 + len(new) / 1000}
    found = []
    with StagedBar(costs, disable=quiet) as bar:
        estimator.fit(table.X, table.y).adapt()
        bar.begin("predicting")
        for start in range(0, len(new), ROWS_AT_ONCE):
            share = [min(at / len(new), 1.0) for at in (start, start + ROWS_AT_ONCE)]
            bar.tell(share[0], until=share[1])
            found.append(estimator.predict_proba(new.iloc[start : start + ROWS_AT_ONCE]))
    return estimator, np.concatenate(found)


def write(out: Path, target: str, classes: np.ndarray, probabilities: np.ndarray) -> None:
    """Write labels and probabilities, all or nothing.

    Parameters
    ----------
    out : Path
        Its ending says how.
    target : str
        Name of the column of labels.
    classes : ndarray of shape (n_classes,)
    probabilities : ndarray of shape (n_rows, n_classes)
    """
    columns: dict[str, Any] = {target: classes[probabilities.argmax(axis=1)]}
    for position, label in enumerate(classes):
        columns[f"probability_{label}"] = probabilities[:, position]
    frame = pd.DataFrame(columns)
    part = out.with_name(f".{os.getpid()}.{out.name}")
    try:
        if out.name.lower().endswith(".parquet"):
            frame.to_parquet(part, index=False)
        else:
            frame.to_csv(part, index=False, sep="\t" if ".tsv" in out.name.lower() else ",")
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
