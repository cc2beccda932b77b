"""Frames as plain arrays and back: what a file that stores no code can hold, and no pandas internals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd


def pack_table(table: Any) -> Any:
    """Turn a frame into a dict of arrays, strings and lists; an array is returned as it is.

    Parameters
    ----------
    table : DataFrame or ndarray of shape (n_rows, n_features)

    Returns
    -------
    dict or ndarray
        What `unpack_table` reads. Row labels are not kept.
    """
    if not isinstance(table, pd.DataFrame):
        return table
    columns = [_pack(table.iloc[:, position].array) for position in range(table.shape[1])]
    return {"names": list(table.columns), "rows": len(table), "columns": columns}


def unpack_table(packed: Any) -> Any:
    """Rebuild what `pack_table` was given, with rows numbered from 0.

    Parameters
    ----------
    packed : dict or ndarray
        From `pack_table`.

    Returns
    -------
    DataFrame or ndarray

    Examples
    --------
    >>> frame = pd.DataFrame({"size": pd.array([1, None], dtype="Int64"), "day": pd.to_datetime(["2020-01-01", None])})
    >>> unpack_table(pack_table(frame)).equals(frame)
    True
    """
    if not isinstance(packed, dict):
        return packed
    # Built by position, since names may repeat.
    columns = dict(enumerate(map(_unpack, packed["columns"])))
    frame = pd.DataFrame(columns, index=range(packed["rows"]))
    frame.columns = pd.Index(packed["names"])
    return frame


def _pack(values: Any) -> Any:
    dtype = values.dtype
    # Some arrays of text are of a class below this one.
    if isinstance(dtype, np.dtype) or type(values) is pd.arrays.NumpyExtensionArray:
        return values.to_numpy()
    if isinstance(dtype, pd.CategoricalDtype):
        codes = np.asarray(values.codes)
        return {"type": "category", "codes": codes, "levels": _pack(dtype.categories.array), "ordered": dtype.ordered}
    packed: dict[str, Any] = {"type": str(dtype), "missing": np.asarray(values.isna())}
    if isinstance(dtype, pd.DatetimeTZDtype | pd.PeriodDtype):
        packed["numbers"] = np.asarray(values.asi8)
    elif hasattr(dtype, "numpy_dtype") and dtype.numpy_dtype.kind in "biuf":
        packed["values"] = values.to_numpy(dtype=dtype.numpy_dtype, na_value=dtype.numpy_dtype.type(0))
    elif isinstance(dtype, pd.SparseDtype):
        packed["values"] = np.asarray(values)
    else:
        packed["values"] = values.to_numpy(dtype=object, na_value=None)
    return packed


def _unpack(packed: Any) -> Any:
    if not isinstance(packed, dict):
        # Told its type, since pandas takes objects that are all text for a column of text.
        return pd.Series(packed, dtype=packed.dtype)
    if packed["type"] == "category":
        levels = pd.Index(_unpack(packed["levels"]))
        return pd.Categorical.from_codes(packed["codes"], levels, ordered=packed["ordered"])
    dtype = pd.api.types.pandas_dtype(packed["type"])
    if isinstance(dtype, pd.DatetimeTZDtype):
        moments = pd.Series(packed["numbers"].view(f"M8[{dtype.unit}]"))
        return moments.dt.tz_localize("UTC").dt.tz_convert(dtype.tz).array
    if isinstance(dtype, pd.PeriodDtype):
        return pd.PeriodIndex.from_ordinals(packed["numbers"], freq=dtype.freq).array
    values = packed["values"]
    if values.dtype != object and packed["missing"].any() and not isinstance(dtype, pd.SparseDtype):
        values = values.astype(object)
        values[packed["missing"]] = None
    return pd.array(values, dtype=dtype)
