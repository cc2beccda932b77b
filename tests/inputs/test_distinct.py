"""A row never gets another row's answer: equal hashes are confirmed by equal cells, one row and many agree."""

import datetime
import decimal

import numpy as np
import pandas as pd
import pytest

from tttabpfn.inputs.distinct import distinct_rows

from ..helpers import ATOL

N = 60
WORDS = np.array(["nan", None, "b"] * 20, dtype=object)
DAYS = pd.Timestamp("2020-01-01") + pd.to_timedelta(np.arange(N) * 7 % 50, unit="D")
NUMBERS = np.random.default_rng(0).normal(size=N)


def same(left, right):
    """Whether two cells are one and the same value."""
    return type(left) is type(right) and (left is right or left == right or (left != left and right != right))


PAIRS = [
    ["nan", None],
    ["nan", float("nan")],
    ["None", None],
    ["<NA>", pd.NA],
    ["1", 1],
    ["True", True],
    [True, 1],
    [1, 1.0],
    [np.float64("nan"), "NaN"],
]


# Seen to fail: with the cells hashed as pandas hashes them, where "nan" and a missing value hash alike.
@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("wrap", [np.asarray, pd.DataFrame], ids=["array", "frame"])
def test_cells_that_look_alike_stay_apart(pair, wrap):
    cells = np.empty((6, 1), dtype=object)
    cells[:, 0] = pair * 3
    positions, inverse = distinct_rows(wrap(cells))
    assert len(positions) == 2
    assert all(same(cells[positions][inverse][i, 0], cells[i, 0]) for i in range(6))


@pytest.mark.parametrize("dtype", ["str", "string", "category"])
def test_text_and_missing_stay_apart_in_columns_of_text(dtype):
    positions, inverse = distinct_rows(pd.DataFrame({"a": pd.Series(WORDS).astype(dtype)}))
    assert len(positions) == 3
    assert len(np.unique(inverse[:3])) == 3


# Seen to fail: without `_equal_rows`.
def test_rows_with_one_hash_are_compared(monkeypatch):
    monkeypatch.setattr(pd.util, "hash_pandas_object", lambda frame, **options: pd.Series(np.arange(len(frame)) // 20))
    for rows in (np.arange(60.0).reshape(-1, 1) % 7, np.where(np.arange(60) % 4, "a", "b").reshape(-1, 1)):
        positions, inverse = distinct_rows(rows)
        np.testing.assert_array_equal(rows[positions][inverse], rows)
    holes = np.array([[np.nan], [1.0]] * 30)
    positions, inverse = distinct_rows(holes)
    np.testing.assert_array_equal(holes[positions][inverse], holes)


COLUMNS = {
    "text": WORDS,
    "str": pd.array(WORDS, dtype="str"),
    "string": pd.array(WORDS, dtype="string"),
    "category": pd.Categorical(WORDS),
    "long double": NUMBERS.astype(np.longdouble),
    "big-endian": NUMBERS.astype(">f8"),
    "big-endian int": (NUMBERS * 9).astype(">i4"),
    "float16": NUMBERS.astype(np.float16),
    "uint64": (np.abs(NUMBERS) * 1e18).astype(np.uint64),
    "truth with blanks": np.array([True, None, False] * 20, dtype=object),
    "truth and numbers": np.array([True, 1, 0] * 20, dtype=object),
    "whole and broken": np.array([1, 1.5, None] * 20, dtype=object),
    "decimals": np.array([decimal.Decimal(i % 7) / 3 for i in range(N)], dtype=object),
    "dates": DAYS,
    "date objects": np.array(DAYS.date, dtype=object),
    "timestamps": np.array(DAYS.to_pydatetime(), dtype=object),
    "dates with a zone": DAYS.tz_localize("Europe/Berlin"),
    "durations": DAYS - DAYS[0],
    "periods": DAYS.to_period("M"),
    "times": np.array([datetime.time(i % 24) for i in range(N)], dtype=object),
    "boolean": pd.array([True, None, False] * 20, dtype="boolean"),
    "Int64": pd.array([1, None, 3] * 20, dtype="Int64"),
    "sparse": pd.arrays.SparseArray(np.arange(N) % 3.0),
}


def as_frame(column):
    return pd.DataFrame({"number": NUMBERS, "column": column})


def as_array(column):
    column = np.asarray(column)
    if column.dtype.kind in "biuf":
        return np.column_stack([column, column])
    rows = np.empty((N, 2), dtype=object)
    rows[:, 0], rows[:, 1] = NUMBERS, list(column)
    return rows


# Seen to fail: "text" and "str" by the hash of pandas, "long double" and the "big-endian" ones with an error from its
# hash, "truth with blanks" with one from inside scikit-learn, arrays of dates with one from TabPFN.
@pytest.mark.parametrize("wrap", [as_frame, as_array])
@pytest.mark.parametrize("name", COLUMNS)
def test_one_row_and_many_agree(classifier, name, wrap):
    rows = wrap(COLUMNS[name])
    take = (lambda at: rows.iloc[at]) if isinstance(rows, pd.DataFrame) else (lambda at: rows[at])
    settings = {"n_estimators": 1, "inference_config": {"TRANSFORM_DATES": True}}
    fitted = classifier(inner=settings).fit(rows, (NUMBERS > 0).astype(int))
    many = fitted.predict_proba(take(slice(0, 12)))
    for i in range(4):
        np.testing.assert_allclose(fitted.predict_proba(take(slice(i, i + 1))), many[i : i + 1], atol=ATOL, rtol=0)
