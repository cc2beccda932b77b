"""Files as frames: separators and dates found by looking, columns left out, and hints at what cannot help."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

SEPARATORS = (",", ";", "\t", "|")
SNIFFED_LINES = 50
_ISO = re.compile(r"\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?:Z|[+-]\d{2}:?\d{2})?)?")
_OPENERS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
MANY_VALUES, MANY_WORDS = 30, 3
"""Different values, and words in the mean value, above which a column of text looks like prose."""


def read_frame(path: Path, separator: str | None = None, types: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """Read a CSV or Parquet file.

    Parameters
    ----------
    path : Path
        Ends in .csv, .tsv (also compressed) or .parquet.
    separator : str, optional
        Between cells; None: a tab for .tsv, else what the first lines agree on.
    types : dict, optional
        Columns of a CSV file that are read as this dtype, if they are there.

    Returns
    -------
    DataFrame

    Raises
    ------
    ValueError
        If it is no such file, or cannot be read.
    ImportError
        If pyarrow is missing for a Parquet file.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    try:
        if ".parquet" in suffixes or ".pq" in suffixes:
            return pd.read_parquet(path)
        if ".csv" in suffixes or ".tsv" in suffixes:
            sep, decimal = (separator, ".") if separator else sniff(path)
            return pd.read_csv(path, sep=sep, decimal=decimal, low_memory=False, dtype=dict(types or {}))
    except ImportError as error:
        raise ImportError("reading a Parquet file needs pyarrow: pip install pyarrow") from error
    except (ValueError, UnicodeError, OSError, EOFError, OverflowError, csv.Error) as error:
        hint = "" if separator or ".parquet" in suffixes else " (another --separator may help)"
        raise ValueError(f"{path} cannot be read as a table: {error}{hint}") from error
    raise ValueError(f"{path} must end in .csv, .csv.gz, .tsv or .parquet")


def sniff(path: Path) -> tuple[str, str]:
    """Return the separator and the decimal mark of a CSV file, as its first lines show them.

    Parameters
    ----------
    path : Path
        A text file, plain or compressed.

    Returns
    -------
    separator : str
        The one that cuts every line into as many cells, and the most of them; a comma if none does, a tab for .tsv.
    decimal : {".", ","}
        A comma only where a semicolon separates and numbers are written with it.
    """
    if ".tsv" in [suffix.lower() for suffix in path.suffixes]:
        return "\t", "."
    opener: Any = _OPENERS.get(path.suffix.lower(), open)
    with opener(path, "rb") as file:
        text = file.read(1 << 18).decode("utf-8-sig", "replace")
    lines = text.splitlines(keepends=True)[:SNIFFED_LINES]
    best, width = ",", 1
    for candidate in SEPARATORS:
        widths = {len(row) for row in csv.reader(io.StringIO("".join(lines)), delimiter=candidate) if row}
        if len(widths) == 1 and max(widths) > width:
            best, width = candidate, max(widths)
    has_commas = best == ";" and re.search(r"(?:^|;)-?\d+,\d+(?:;|\s*$)", "".join(lines), re.MULTILINE)
    return best, "," if has_commas else "."


def drop_columns(frame: pd.DataFrame, names: Sequence[str], source: str) -> pd.DataFrame:
    """Return a frame without these columns; a ValueError names one that is not there."""
    for name in names:
        if name not in frame.columns:
            raise ValueError(f"--drop must be a column of {source}, one of {listed(frame)}; got {name!r}")
    return frame.drop(columns=list(names))


def listed(frame: pd.DataFrame, most: int = 20) -> str:
    """Names of the first columns, for messages."""
    return ", ".join(map(str, frame.columns[:most])) + (", ..." if frame.shape[1] > most else "")


def parse_dates(frame: pd.DataFrame, asked: Sequence[str], source: str) -> tuple[pd.DataFrame, list[str]]:
    """Turn columns of text that hold dates into columns of dates.

    Parameters
    ----------
    frame : DataFrame
        Features.
    asked : sequence of str
        Columns that must hold dates, in whatever way they are written.
    source : str
        What to call the frame in messages.

    Returns
    -------
    frame : DataFrame
        With those columns, and all whose every value is an ISO date, as dates.
    found : list of str
        ISO columns that nobody asked for.

    Raises
    ------
    ValueError
        If a column that was asked for is not there or holds something else.

    Examples
    --------
    >>> frame, found = parse_dates(pd.DataFrame({"day": ["2026-01-31", None], "word": ["a", "b"]}), [], "table")
    >>> found, frame["day"].dtype.kind
    (['day'], 'M')
    """
    parsed: dict[str, pd.Series] = {}
    for name in asked:
        if name not in frame.columns:
            raise ValueError(f"--date must be a column of {source}, one of {listed(frame)}; got {name!r}")
        parsed[name] = _as_dates(frame[name], name, source)
    found = []
    for name in frame.columns:
        if name not in parsed and _looks_iso(frame[name]):
            dates = pd.to_datetime(frame[name], format="ISO8601", errors="coerce", utc=True)
            if dates.isna().equals(frame[name].isna()):
                parsed[name] = dates.dt.tz_localize(None)
                found.append(str(name))
    return frame.assign(**parsed) if parsed else frame, found


def _as_dates(column: pd.Series, name: str, source: str) -> pd.Series:
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        return column
    if pd.api.types.is_numeric_dtype(column.dtype) and not column.isna().all():
        column = column.astype("Int64").astype("str").where(column.notna(), None)
    dates = pd.to_datetime(column, format="mixed", errors="coerce", utc=True)
    wrong = np.flatnonzero(dates.isna() & column.notna())
    if len(wrong):
        raise ValueError(
            f"--date {name}: row {wrong[0] + 1} of {source} holds {column.iloc[wrong[0]]!r}, which is no date"
        )
    return dates.dt.tz_localize(None)


def _looks_iso(column: pd.Series) -> bool:
    return is_text(column) and all(_ISO.fullmatch(value) for value in column.dropna())


def is_text(column: pd.Series) -> bool:
    """Whether a column holds text, and nothing else but missing values."""
    return column.dtype.kind == "O" and pd.api.types.infer_dtype(column, skipna=True) == "string"


def empty_columns(frame: pd.DataFrame) -> list[str]:
    """Names of the columns without a single value."""
    return [str(name) for name in frame.columns[frame.isna().all(axis=0).to_numpy()]]


def hints(frame: pd.DataFrame) -> tuple[str, ...]:
    """Say which columns cannot help or look as if they were no features.

    Parameters
    ----------
    frame : DataFrame
        Features of the rows to fit.

    Returns
    -------
    tuple of str
        One sentence a kind of column.

    Examples
    --------
    >>> hints(pd.DataFrame({"one": [1] * 50, "id": [f"u{i}" for i in range(50)]}))[0]
    "'one' holds one value in every row and cannot help: --drop it"
    """
    constant, numbered, prose = [], [], []
    for name in frame.columns:
        column = frame[name]
        values = column.dropna()
        distinct = values.nunique()
        if distinct <= 1 and not column.isna().any():
            constant.append(name)
        elif is_text(column):
            words = values.astype(str).head(200).str.split().str.len().mean()
            if distinct > MANY_VALUES and words > MANY_WORDS:
                prose.append(name)
            elif len(values) >= 50 and distinct > 0.95 * len(values):
                numbered.append(name)
        elif pd.api.types.is_integer_dtype(column.dtype) and len(values) >= 50 and distinct == len(values):
            ordered = np.sort(values.to_numpy(dtype=np.float64))
            if np.all(np.diff(ordered) == 1):
                numbered.append(name)
    said = (
        (constant, "one value in every row and cannot help: --drop"),
        (numbered, "another value in nearly every row, as an identifier does: --drop"),
        (prose, "what looks like prose, and is read as categories: consider --drop for"),
    )
    return tuple(
        f"{_named(names)} {'holds' if len(names) == 1 else 'hold'} {what} {'it' if len(names) == 1 else 'them'}"
        for names, what in said
        if names
    )


def _named(names: list[Any]) -> str:
    shown = ", ".join(repr(str(name)) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
