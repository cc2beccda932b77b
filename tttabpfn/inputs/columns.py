"""How cells are read: a column's kind is found at `fit`, so that no batch decides by itself what a cell means."""

from __future__ import annotations

import datetime
import decimal
import numbers
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

KINDS: dict[str, tuple[type, ...]] = {
    "true or false": (bool, np.bool_),
    "text": (str,),
    "numbers": (numbers.Real, decimal.Decimal),
    "dates": (
        datetime.date,
        datetime.time,
        datetime.timedelta,
        np.datetime64,
        np.timedelta64,
        pd.Period,
        pd.Interval,
    ),
}
"""What one cell of a column of objects may be; True is a number to Python, so it is looked for first."""
ANYTHING = "anything"
"""Kind of a column without any value, and of one whose type says all there is to know."""


@dataclass(frozen=True)
class Columns:
    """What `fit` found in each column, and how later cells are read by it.

    Parameters
    ----------
    kinds : tuple of str
        One of `KINDS`, or `ANYTHING`, a column.
    types : tuple
        The dtype of each column that held dates as a dtype of their own, else None.
    as_frame : bool
        Whether an array is read as a frame, since only a frame can hold dates.

    Examples
    --------
    >>> frame = pd.DataFrame({"answer": [True, None, False], "colour": ["red", "blue", None]}, dtype=object)
    >>> columns = Columns.of(frame)
    >>> columns.kinds
    ('true or false', 'text')
    >>> columns.read(frame)["answer"].tolist()
    [1.0, nan, 0.0]
    """

    kinds: tuple[str, ...]
    types: tuple[Any, ...]
    as_frame: bool = False

    @classmethod
    def of(cls, table: Any) -> Columns:
        """Find the kinds of a table's columns.

        Parameters
        ----------
        table : DataFrame or ndarray of shape (n_rows, n_features)
            Rows to fit, as `check_rows` returns them.

        Returns
        -------
        Columns

        Raises
        ------
        ValueError
            If a column mixes kinds or holds something else; names it.
        """
        if isinstance(table, np.ndarray):
            n = table.shape[1]
            if table.dtype.kind in "mM":
                return cls(("dates",) * n, (None,) * n, as_frame=True)
            if table.dtype != object:
                return cls((ANYTHING,) * n, (None,) * n)
            kinds = tuple(_kind_of_cells(table[:, position], position) for position in range(n))
            return cls(kinds, (None,) * n, as_frame="dates" in kinds)
        found = [_kind_of_column(table.iloc[:, i], table.columns[i]) for i in range(table.shape[1])]
        return cls(tuple(kind for kind, _ in found), tuple(dtype for _, dtype in found))

    @property
    def has_dates(self) -> bool:
        """Whether a column holds points in time that TabPFN has to expand."""
        return self.as_frame or any(dtype is not None for dtype in self.types)

    def read(self, table: Any) -> Any:
        """Return rows with each column of objects as its kind at `fit` says; rows without any are returned as they are.

        Parameters
        ----------
        table : DataFrame or ndarray of shape (n_rows, n_features)
            Rows as `check_rows` returns them.

        Returns
        -------
        DataFrame or ndarray
            A shallow copy where something is to be read; the caller's table is not written to.

        Raises
        ------
        ValueError
            If a column holds what it did not hold at `fit`; names it.
        """
        if isinstance(table, np.ndarray):
            if self.as_frame:
                table = pd.DataFrame(table)
            elif table.dtype != object or len(self.kinds) != table.shape[1]:
                return table
            else:
                table = table.copy()
                for position, kind in enumerate(self.kinds):
                    table[:, position] = _read_cells(table[:, position], kind, position)
                return table
        if len(self.kinds) != table.shape[1]:
            return table
        found = [i for i, dtype in enumerate(table.dtypes) if dtype.kind == "O" and isinstance(dtype, np.dtype)]
        if found:
            table = table.copy(deep=False)
        for position in found:
            name = table.columns[position]
            values = _read_cells(table.iloc[:, position].to_numpy(), self.kinds[position], name)
            column = pd.Series(values, index=table.index)
            if self.as_frame:
                column = column.infer_objects()
            elif self.types[position] is not None:
                column = column.astype(self.types[position])
            table.isetitem(position, column)
        return table


def _kind_of_column(column: pd.Series, name: Any) -> tuple[str, Any]:
    if column.dtype == object:
        return _kind_of_cells(column.to_numpy(), name), None
    if pd.api.types.is_bool_dtype(column.dtype):
        return "true or false", None
    if pd.api.types.is_numeric_dtype(column.dtype):
        return "numbers", None
    if pd.api.types.is_datetime64_any_dtype(column.dtype) or isinstance(column.dtype, pd.PeriodDtype):
        return "dates", column.dtype
    return ("text" if pd.api.types.is_string_dtype(column.dtype) else ANYTHING), None


def _kind_of_cells(values: NDArray[Any], name: Any) -> str:
    """The one kind of a column's cells."""
    missing = np.asarray(pd.isna(values))
    kinds: dict[str, type] = {}
    for kind in set(map(type, values[~missing].tolist())):
        kinds.setdefault(_kind_of_type(kind, name), kind)
    if set(kinds) == {"true or false", "numbers"}:
        return "numbers"
    if len(kinds) > 1:
        named = ", ".join(sorted(f"{kind} ({example.__name__})" for kind, example in kinds.items()))
        raise ValueError(f"X: column {name!r} mixes {named}; make it of one kind, for instance all text.")
    return next(iter(kinds), ANYTHING)


def _kind_of_type(kind: type, name: Any) -> str:
    for known, types in KINDS.items():
        if issubclass(kind, types):
            return known
    if issubclass(kind, complex | np.complexfloating):
        raise ValueError(f"Complex data not supported: column {name!r}.")
    raise ValueError(
        f"X: column {name!r} holds cells of type {kind.__name__}; a cell must be a number, text, true or false, a date "
        "or missing."
    )


def _read_cells(values: NDArray[Any], kind: str, name: Any) -> NDArray[Any]:
    """Objects as a column of this kind at `fit` holds them: truth and numbers as floats, all else as it is."""
    found = _kind_of_cells(values, name)
    if ANYTHING not in (kind, found) and found != kind and {kind, found} != {"numbers", "true or false"}:
        raise ValueError(f"X: column {name!r} held {kind} at fit, but holds {found} now.")
    if kind not in ("true or false", "numbers"):
        return values
    missing = np.asarray(pd.isna(values))
    numeric = np.full(len(values), np.nan)
    try:
        numeric[~missing] = values[~missing].astype(np.float64)
    except OverflowError as error:
        raise ValueError(f"X: column {name!r} holds a number too large for a float.") from error
    if np.isinf(numeric).any():
        raise ValueError(f"X contains infinity in column {name!r}; replace it by a number or by NaN (missing).")
    return numeric
