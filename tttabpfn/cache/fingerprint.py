"""Content fingerprints: one hex string for nested values, values of table libraries among them."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from tttabpfn.cache.hasher import Hasher


def fingerprint(*parts: Any) -> str:
    """Return a fingerprint of the content of nested values.

    Equal content gives equal prints in every process and on every machine; a change of one value, type, dtype, shape,
    column name, column order, category order or row order gives another print. Floats count by their bits: 0.0 and
    -0.0 differ, and a NaN equals a NaN of the same bits. The order of dict keys and of set members does not count,
    nor do the memory layout and device of arrays, nor the row labels of pandas objects.

    Parameters
    ----------
    *parts : object
        None, bool, int, float, complex, str, bytes, dates and times, Decimal, Fraction, UUID, enums, paths, NumPy
        scalars, arrays and dtypes, dense torch tensors, torch dtypes and devices, pandas and polars frames and series,
        pandas indexes and scalars, SciPy sparse matrices, dataclasses, and lists, tuples, dicts and sets of these.

    Returns
    -------
    str
        64 lower-case hex digits (SHA-256).

    Raises
    ------
    TypeError
        If a value is of a type whose content is not known, such as a function.

    Examples
    --------
    >>> fingerprint({"a": 1, "b": 2.0}) == fingerprint({"b": 2.0, "a": 1})
    True
    >>> fingerprint(1) == fingerprint(True) or fingerprint(1) == fingerprint(1.0)
    False
    >>> fingerprint(np.zeros((2, 3))) == fingerprint(np.zeros((3, 2)))
    False
    """
    hasher = Hasher(_write_table)
    hasher.count("parts", len(parts))
    for part in parts:
        hasher.value(part)
    return hasher.hexdigest()


def _write_table(hasher: Hasher, value: Any) -> bool:
    """Write a value of pandas, polars or SciPy, which are imported only when one is met; False if it is none."""
    roots = {base.__module__.partition(".")[0] for base in type(value).__mro__}
    writers = {"pandas": _write_pandas, "polars": _write_polars, "scipy": _write_scipy}
    return any(writer(hasher, value) for library, writer in writers.items() if library in roots)


def _write_pandas(hasher: Hasher, value: Any) -> bool:
    import pandas as pd

    if value is pd.NA:
        hasher.token("pd.NA")
    elif value is pd.NaT:
        hasher.token("pd.NaT")
    elif isinstance(value, pd.Timestamp):
        hasher.text("Timestamp", f"{value.tz}|{value.fold}")
        hasher.array(np.asarray(value.asm8))
    elif isinstance(value, pd.Timedelta):
        hasher.token("Timedelta")
        hasher.array(np.asarray(value.asm8))
    elif isinstance(value, pd.Period):
        hasher.text("Period", f"{value.ordinal}|{value.freqstr}")
    elif isinstance(value, pd.Interval):
        hasher.text("Interval", value.closed)
        hasher.value((value.left, value.right))
    elif isinstance(value, pd.DataFrame):
        hasher.count("DataFrame", value.shape[1])
        hasher.count("rows", value.shape[0])
        hasher.objects(list(value.columns))
        for position in range(value.shape[1]):
            _write_pandas_values(hasher, value.iloc[:, position].array)
    elif isinstance(value, pd.Series):
        hasher.token("Series")
        hasher.value(value.name)
        _write_pandas_values(hasher, value.array)
    elif isinstance(value, pd.MultiIndex):
        hasher.count("MultiIndex", value.nlevels)
        for level in range(value.nlevels):
            hasher.value(value.get_level_values(level))
    elif isinstance(value, pd.Index):
        hasher.token("Index")
        hasher.value(value.name)
        _write_pandas_values(hasher, value.array)
    elif isinstance(value, pd.api.extensions.ExtensionArray):
        hasher.token("ExtensionArray")
        _write_pandas_values(hasher, value)
    elif isinstance(value, pd.api.extensions.ExtensionDtype):
        hasher.token("ExtensionDtype")
        _write_pandas_dtype(hasher, value)
    else:
        return False
    return True


def _write_pandas_dtype(hasher: Hasher, dtype: Any) -> None:
    import pandas as pd

    hasher.text("dtype", str(dtype))
    if isinstance(dtype, pd.CategoricalDtype):
        hasher.value(dtype.ordered)
        if dtype.categories is not None:
            _write_pandas_values(hasher, dtype.categories.array)
    elif isinstance(dtype, pd.StringDtype):
        hasher.value(dtype.na_value)


def _write_pandas_values(hasher: Hasher, values: Any) -> None:
    import pandas as pd

    _write_pandas_dtype(hasher, values.dtype)
    if isinstance(values.dtype, np.dtype) or isinstance(values, pd.arrays.NumpyExtensionArray):
        hasher.array(values.to_numpy())
    elif isinstance(values.dtype, pd.CategoricalDtype):
        hasher.array(np.asarray(values.codes, dtype=np.int64))
    elif isinstance(values.dtype, pd.DatetimeTZDtype):
        hasher.array(values.astype(np.int64))
    elif isinstance(values.dtype, pd.SparseDtype):
        hasher.array(np.asarray(values))
    elif hasattr(values.dtype, "numpy_dtype") and values.dtype.kind in "biuf":
        missing = np.asarray(values.isna())
        hasher.array(missing)
        hasher.array(values[~missing].to_numpy(dtype=values.dtype.numpy_dtype))
    else:
        missing = np.asarray(values.isna())
        hasher.array(missing)
        hasher.objects(list(values[~missing]))
        # Which missing value stands there (None, NaN, NA) counts too, where a dtype allows several.
        hasher.objects(list(values[missing]))


def _write_polars(hasher: Hasher, value: Any) -> bool:
    polars = sys.modules["polars"]

    if isinstance(value, polars.DataFrame):
        hasher.count("polars.DataFrame", value.width)
        hasher.count("rows", value.height)
        for column in value.get_columns():
            hasher.value(column)
    elif isinstance(value, polars.Series):
        hasher.text("polars.Series", value.name)
        hasher.text("dtype", str(value.dtype))
        if isinstance(value.dtype, polars.Enum):
            hasher.objects(value.dtype.categories.to_list())
        if value.dtype.is_numeric() and not value.dtype.is_decimal() and value.null_count() == 0:
            hasher.array(value.to_numpy())
        else:
            missing = value.is_null()
            hasher.array(missing.to_numpy())
            hasher.objects(value.filter(~missing).to_list())
    else:
        return False
    return True


def _write_scipy(hasher: Hasher, value: Any) -> bool:
    from scipy import sparse

    if not sparse.issparse(value):
        return False
    rows = value.tocsr(copy=True)
    rows.sum_duplicates()
    hasher.text("sparse", f"{type(value).__name__}|{value.shape}")
    hasher.array(rows.data)
    hasher.array(rows.indices.astype(np.int64))
    hasher.array(rows.indptr.astype(np.int64))
    return True
