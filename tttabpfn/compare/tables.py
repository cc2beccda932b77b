"""Tables for the command line: read, checked, described and split, with errors that a person understands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn import datasets

from tttabpfn.compare.reading import drop_columns, empty_columns, hints, listed, parse_dates, read_frame

TOY_SETS = ("breast_cancer", "wine", "iris", "digits")
"""Names of scikit-learn's data sets that need no download."""

MIN_CLASS_ROWS = 4
"""Rows that every class must have: two to fit (one context, one query) and the rest to test."""


@dataclass(frozen=True)
class Table:
    """A classification table.

    Parameters
    ----------
    name : str
        What to call it.
    X : DataFrame, shape (n_rows, n_features)
        Features.
    y : ndarray of shape (n_rows,)
        Labels.
    notes : tuple of str
        What was left out when it was read, and hints at columns.
    """

    name: str
    X: pd.DataFrame
    y: np.ndarray
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return rows, features, missing values and classes in one line."""
        labels, counts = np.unique(self.y, return_counts=True)
        classes = ", ".join(f"{label} {count}" for label, count in zip(labels[:10], counts[:10], strict=True))
        more = "" if len(labels) <= 10 else ", ..."
        missing = int(self.X.isna().to_numpy().sum())
        gaps = f", {missing:,} missing values" if missing else ""
        text = sum(not pd.api.types.is_numeric_dtype(dtype) for dtype in self.X.dtypes)
        kinds = f" ({text} not numeric)" if text else ""
        return (
            f"{self.name}: {len(self.X):,} rows, {self.X.shape[1]:,} features{kinds}{gaps}, "
            f"{len(labels)} classes ({classes}{more})"
        )


@dataclass(frozen=True)
class TrainTest:
    """A table cut into rows to fit and rows to test, stratified."""

    X_train: pd.DataFrame
    y_train: np.ndarray
    X_test: pd.DataFrame
    y_test: np.ndarray


@dataclass(frozen=True)
class Reading:
    """How a file is read.

    Parameters
    ----------
    separator : str or None
        Between the cells of a CSV file; None: looked for.
    drop : tuple of str
        Columns to leave out.
    dates : tuple of str
        Columns to read as dates.
    """

    separator: str | None = None
    drop: tuple[str, ...] = ()
    dates: tuple[str, ...] = ()


def load_table(data: str, target: str | None = None, reading: Reading = Reading()) -> Table:
    """Read a table.

    Parameters
    ----------
    data : str
        One of `TOY_SETS`, or the path of a CSV file (also compressed) or a Parquet file.
    target : str, optional
        The column to predict; needed for a file.
    reading : Reading
        Separator, columns to leave out, columns of dates.

    Returns
    -------
    Table
        Without rows whose target is missing and columns without any value.

    Raises
    ------
    ValueError
        If the file or the column is not there, or the column does not hold classes.
    ImportError
        If a Parquet file is asked for and pyarrow is missing.

    Examples
    --------
    >>> load_table("iris").describe()
    'iris: 150 rows, 4 features, 3 classes (setosa 50, versicolor 50, virginica 50)'
    """
    if data in TOY_SETS and not Path(data).is_file():
        if target is not None:
            raise ValueError(f"--target is for files; {data} has its own target")
        if reading != Reading():
            raise ValueError(f"--drop, --date and --separator are for files; {data} comes with scikit-learn")
        bunch = getattr(datasets, f"load_{data}")(as_frame=True)
        return Table(data, bunch.data, np.asarray(bunch.target_names)[bunch.target.to_numpy()])
    if not Path(data).is_file():
        raise ValueError(f"DATA must be a file or one of {', '.join(TOY_SETS)}; there is no file {data}")
    frame = read_frame(Path(data), reading.separator)
    if target is None:
        raise ValueError(f"--target is needed for a file: the column to predict, one of {listed(frame)}")
    if target not in frame.columns:
        raise ValueError(f"--target must be a column of {data}, one of {listed(frame)}; got {target!r}")
    if target in (*reading.drop, *reading.dates):
        raise ValueError(f"--target {target!r} cannot be left out or read as dates")
    frame = drop_columns(frame, reading.drop, data)
    present = frame[target].notna()
    dropped = len(frame) - int(present.sum())
    notes = [f"left out {dropped} rows without a {target!r}"] if dropped else []
    frame = frame[present]
    y = _labels(frame[target], target)
    X, found = parse_dates(frame.drop(columns=target), reading.dates, data)
    if found:
        notes.append(f"read as dates: {', '.join(found)}")
    empty = empty_columns(X)
    if empty:
        notes.append(f"left out {', '.join(map(repr, empty[:5]))}{' ...' * (len(empty) > 5)}: without any value")
        X = X.drop(columns=empty)
    if X.shape[1] < 1:
        raise ValueError(f"{data} must have a column besides the target {target!r}")
    return Table(Path(data).name, X, y, (*notes, *hints(X)))


def split_table(
    table: Table, test_share: float, seed: int, max_rows: int | None = None
) -> tuple[TrainTest, tuple[str, ...]]:
    """Cut a table into rows to fit and rows to test, keeping the shares of the classes.

    Parameters
    ----------
    table : Table
        What to cut.
    test_share : float
        Share of the rows to test, between 0 and 1.
    seed : int
        Seed of the draw.
    max_rows : int, optional
        Rows to use at most; a larger table is sampled first.

    Returns
    -------
    split : TrainTest
        The rows.
    notes : tuple of str
        What was left out.

    Raises
    ------
    ValueError
        If there is one class only, or a class has too few rows.
    """
    check_classes(table)
    rng = np.random.default_rng(seed)
    rows = np.arange(len(table.y))
    notes: tuple[str, ...] = ()
    if max_rows is not None and len(rows) > max_rows:
        rows = draw(table.y, max_rows / len(rows), MIN_CLASS_ROWS, 0, rng)
        notes = (f"took {len(rows):,} of {len(table.y):,} rows (stratified; change with --max-rows)",)
    tested = rows[draw(table.y[rows], test_share, 1, 2, rng)]
    fitted = np.setdiff1d(rows, tested)
    return TrainTest(table.X.iloc[fitted], table.y[fitted], table.X.iloc[tested], table.y[tested]), notes


def draw(y: np.ndarray, share: float, min_rows: int, left: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a share of every class's rows, `min_rows` of them or more, leaving `left` or more; row numbers in order."""
    drawn = []
    for label in np.unique(y):
        rows = np.flatnonzero(y == label)
        size = min(max(int(share * len(rows)), min_rows), len(rows) - left)
        drawn.append(rng.choice(rows, size, replace=False))
    return np.sort(np.concatenate(drawn))


def check_classes(table: Table) -> None:
    """Raise ValueError unless there are two classes or more, each with rows enough to fit and to test."""
    labels, counts = np.unique(table.y, return_counts=True)
    if len(labels) < 2:
        raise ValueError(f"{table.name} must have two classes or more in its target, got {list(labels)}")
    rare = labels[counts < MIN_CLASS_ROWS]
    if len(rare):
        raise ValueError(
            f"{table.name} must have {MIN_CLASS_ROWS} rows or more of every class; {len(rare)} of {len(labels)} have "
            f"fewer, such as {rare[0]!r}: merge or drop them (a number to predict is not a class)"
        )


def _labels(column: pd.Series, target: str) -> np.ndarray:
    if not pd.api.types.is_numeric_dtype(column.dtype) or pd.api.types.is_bool_dtype(column.dtype):
        return column.astype(str).to_numpy(dtype=object)
    values = column.to_numpy(dtype=np.float64)
    if not np.all(np.isfinite(values)) or np.any(values != np.round(values)):
        shown = ", ".join(f"{value:g}" for value in np.unique(values)[:3])
        raise ValueError(f"--target must be a column of classes; {target!r} holds continuous numbers ({shown}, ...)")
    return values.astype(np.int64)
