"""Fingerprints: equal content, equal print; any change, another print; the same in every process."""

import dataclasses
import datetime
import decimal
import enum
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pandas as pd
import polars
import pytest
import torch
from scipy import sparse

from tttabpfn.cache.fingerprint import fingerprint


class Colour(enum.IntEnum):
    RED = 1


@dataclasses.dataclass
class Point:
    x: int
    y: float


Pair = namedtuple("Pair", "a b")


def distinct_values():
    """Values that differ from one another in type or content, close ones side by side."""
    return [
        None, False, True, 0, 1, -1, 2**70, 0.0, -0.0, 1.0, float("nan"), float("inf"), 1j, "", "a", "1", b"", b"a",
        bytearray(b"a"), [], [1], [[1]], [1, 2], [[1], 2], [[1, 2]], (), (1,), Pair(1, 2), (1, 2), {}, {"a": 1},
        {"a": "1"}, {1: "a"}, {"a": 1, "b": 2}, {"a": 2, "b": 1}, set(), {1}, frozenset({1}), {1, 2}, "\ud800",
        ["ab", "c"], ["a", "bc"], ["abc"], ["abc", ""], ["astr", "b"], ["a", "strb"],
        Colour.RED, Point(1, 2.0), Point(2, 1.0), {"x": 1, "y": 2.0},
        Path("a/b"), "a/b", decimal.Decimal("1.0"), decimal.Decimal("1.00"), datetime.date(2020, 1, 1),
        datetime.datetime(2020, 1, 1), datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc),
        datetime.time(1), datetime.timedelta(1), pd.Timestamp("2020-01-01"), pd.Timestamp("2020-01-01", tz="UTC"),
        pd.Timedelta("1D"), pd.NA, pd.NaT, pd.Period("2020-01", "M"), pd.Interval(0, 1), pd.Interval(0, 1, "both"),
        np.float64(1.0), np.float32(1.0), np.int64(1), np.bool_(True), np.str_("a"), np.datetime64("2020-01-01"),
        np.zeros(0), np.zeros((0, 2)), np.zeros(1), np.zeros((1, 1)), np.array(0.0), np.zeros(1, np.float32),
        np.zeros(1, np.int64), np.zeros(2), np.zeros((2, 3)), np.zeros((3, 2)), np.array(["a", "b"]),
        np.array(["a", "b"], object), np.array(["ab", ""], object), np.array(["a", None], object),
        np.array(["a", np.nan], object), np.array(["a", pd.NA], object), np.array(["a", pd.NaT], object),
        np.array([1, "1"], object), np.array(["1", 1], object), np.array([True, 1], object),
        np.array([1, True], object), np.array([1.0, 1], object), np.array([decimal.Decimal(1), 1], object),
        np.ma.masked_array([1, 2], [True, False]), np.ma.masked_array([1, 2], [False, True]),
        np.array([(1, 2.0)], dtype=[("a", int), ("b", float)]), np.array([(1, 2.0)], dtype=[("a", int), ("c", float)]),
        np.longdouble(1) / 3, np.longdouble(1.0), np.dtype("f8"), np.dtype("f4"), torch.float32, torch.float64,
        torch.device("cpu"), torch.zeros(2), torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.int64),
        torch.zeros(1, 2), torch.zeros(0), torch.tensor(0.0),
        sparse.csr_matrix(np.eye(2)), sparse.csr_array(np.eye(2)), sparse.csr_array(2 * np.eye(2)), np.eye(2),
        pd.Index([1, 2]), pd.Index([1, 2], name="a"), pd.Series([1, 2]), pd.Series([1, 2], name="a"),
        pd.Series([1, 2], dtype="Int64"), pd.Series([1, None], dtype="Int64"), pd.Series([True, None], dtype="boolean"),
        pd.Series([0, None], dtype="Int64"), pd.Series(["a", "b"]), pd.Series(["a", "b"], dtype=object),
        pd.Series(["a", "b"], dtype="string"), pd.Series(["a", None]), pd.Series(["a", None], dtype="string"),
        pd.Series(["a", None], dtype=object), pd.Series(["a", "b"], dtype="category"),
        pd.Series(pd.Categorical(["a", "b"], categories=["b", "a"])),
        pd.Series(pd.Categorical(["a", "b"], categories=["a", "b", "c"])),
        pd.Series(pd.Categorical(["a", "b"], ordered=True)), pd.Series(pd.Categorical(["a", None], ["a", "b"])),
        pd.Series(pd.to_datetime(["2020-01-01"])), pd.Series(pd.to_datetime(["2020-01-01"], utc=True)),
        pd.Series(pd.arrays.SparseArray([0.0, 1.0])), pd.Series(pd.period_range("2020", periods=2, freq="M")),
        pd.Series([1, 2], dtype="int64[pyarrow]"), pd.MultiIndex.from_tuples([(1, "a"), (1, "b")]),
        pd.MultiIndex.from_tuples([(1, "a"), (2, "b")]), pd.DataFrame({"a": [1], "b": [2]}),
        pd.DataFrame({"a": [1]}), pd.DataFrame({0: [1]}), pd.DataFrame({"0": [1]}), pd.DataFrame({"a": []}),
        pd.DataFrame(), pd.DataFrame(index=range(3)), pd.CategoricalDtype(["a"]), pd.CategoricalDtype(["b"]),
        polars.DataFrame({"a": [1]}), polars.DataFrame({"b": [1]}), polars.Series("a", [1]), polars.Series("a", [1.0]),
        polars.Series("a", [1, None]), polars.Series("a", ["x", None]), polars.Series("a", ["x", "y"]),
        polars.Series("a", ["x", "y"], dtype=polars.Enum(["x", "y"])),
        polars.Series("a", ["x", "y"], dtype=polars.Enum(["y", "x"])),
        polars.Series("a", ["x", "y"], dtype=polars.Categorical),
    ]  # fmt: skip


# Seen to fail: with the tag left out of `Hasher.token`, 0 and False (among others) collide; with the length left out,
# ["astr", "b"] and ["a", "strb"] do.
def test_values_of_different_type_or_content_never_share_a_print():
    values = distinct_values()
    prints = [fingerprint(value) for value in values]
    seen = {}
    for value, text in zip(values, prints, strict=True):
        assert text not in seen, f"{value!r} collides with {seen[text]!r}"
        seen[text] = value
    assert all(len(text) == 64 and set(text) <= set("0123456789abcdef") for text in prints)


def test_equal_content_made_anew_has_an_equal_print():
    first = [fingerprint(value) for value in distinct_values()]
    assert first == [fingerprint(value) for value in distinct_values()]


def test_parts_do_not_run_into_one_another():
    assert len({fingerprint(), fingerprint(None), fingerprint([]), fingerprint("a", "b"), fingerprint(["a", "b"])}) == 5


def mixed_frame():
    return pd.DataFrame(
        {
            "number": [1.0, 2.0, np.nan, 0.0],
            "whole": np.array([1, 2, 3, 4]),
            "text": ["x", "y", None, "x"],
            "mixed": np.array([1, "1", None, pd.NA], dtype=object),
            "class": pd.Categorical(["b", "a", None, "b"], categories=["b", "a", "c"]),
            "flag": pd.array([True, None, False, True], dtype="boolean"),
            "when": pd.to_datetime(["2020-01-01", None, "2020-01-03", "2021-01-01"]),
        }
    )


def set_cell(row, column, value):
    def change(frame):
        frame = frame.copy()
        frame.iloc[row, frame.columns.get_loc(column)] = value
        return frame

    return change


CHANGES = {
    "number": set_cell(0, "number", np.nextafter(1.0, 2.0)),
    "minus_zero": set_cell(3, "number", -0.0),
    "missing_number": set_cell(1, "number", np.nan),
    "whole": set_cell(0, "whole", 2),
    "text": set_cell(0, "text", "y"),
    "missing_text": set_cell(0, "text", None),
    "none_to_nan": set_cell(2, "mixed", np.nan),
    "int_to_str": set_cell(0, "mixed", "1"),
    "int_to_bool": set_cell(0, "mixed", True),
    "category": set_cell(0, "class", "a"),
    "flag": set_cell(0, "flag", False),
    "missing_flag": set_cell(0, "flag", pd.NA),
    "date": set_cell(0, "when", pd.Timestamp("2020-01-02")),
    "dtype": lambda frame: frame.astype({"whole": "int32"}),
    "nullable": lambda frame: frame.astype({"whole": "Int64"}),
    "to_object": lambda frame: frame.astype({"class": object}),
    "column_name": lambda frame: frame.rename(columns={"whole": "Whole"}),
    "column_order": lambda frame: frame[["whole", "number", *frame.columns[2:]]],
    "column_dropped": lambda frame: frame.drop(columns="when"),
    "category_order": lambda frame: frame.assign(**{"class": frame["class"].cat.reorder_categories(["a", "b", "c"])}),
    "category_unused": lambda frame: frame.assign(**{"class": frame["class"].cat.remove_unused_categories()}),
    "category_ordered": lambda frame: frame.assign(**{"class": frame["class"].cat.as_ordered()}),
    "row_order": lambda frame: frame.iloc[[1, 0, 2, 3]],
    "row_dropped": lambda frame: frame.iloc[:3],
    "row_repeated": lambda frame: frame.iloc[[0, 1, 2, 3, 3]],
}


# Seen to fail: "category_unused" when categories are left out of `_write_pandas_dtype`, and "column_name" when the
# labels are left out of the frame's tokens.
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_one_change_in_a_frame_changes_the_print(change):
    frame = mixed_frame()
    before = fingerprint(frame)
    assert fingerprint(change(frame)) != before
    assert fingerprint(frame) == before


# Seen to fail: with row labels written too, the relabelled frame differs; without `ascontiguousarray`, layouts do.
def test_layout_and_row_labels_do_not_count():
    frame = mixed_frame()
    assert fingerprint(frame.set_axis([7, 5, 3, 1])) == fingerprint(frame)
    assert fingerprint(pd.concat([frame, frame]).iloc[:4]) == fingerprint(frame)
    values = np.arange(24.0).reshape(4, 6)
    assert fingerprint(np.asfortranarray(values)) == fingerprint(values)
    assert fingerprint(np.repeat(values, 2, axis=1)[:, ::2]) == fingerprint(values)
    assert fingerprint(values[::-1]) != fingerprint(values)
    tensor = torch.from_numpy(values)
    assert fingerprint(tensor.T.contiguous().T) == fingerprint(tensor)
    assert fingerprint(tensor.clone().requires_grad_()) == fingerprint(tensor)
    assert fingerprint(sparse.coo_array(([1, 2, 3], ([0, 0, 1], [1, 1, 0])))) == fingerprint(
        sparse.coo_array(([3, 3], ([1, 0], [0, 1])))
    )


def test_order_counts_in_sequences_and_not_in_dicts_and_sets():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({3, "x", None}) == fingerprint({None, "x", 3})
    assert fingerprint([1, 2]) != fingerprint([2, 1])


def test_padding_of_extended_precision_does_not_count():
    noisy = np.frombuffer(os.urandom(np.dtype(np.longdouble).itemsize * 2), dtype=np.uint8).copy()
    values = noisy.view(np.longdouble)
    values[:] = [1.5, -2.25]
    assert fingerprint(values) == fingerprint(np.array([1.5, -2.25], dtype=np.longdouble))


# Seen to fail: with `hash(member)` in place of the digest in `Hasher.unordered`.
def test_another_process_with_another_hash_seed_agrees():
    script = (
        "import pandas as pd, numpy as np, torch\n"
        "from tttabpfn.cache.fingerprint import fingerprint\n"
        "print(fingerprint({'b': {'x', 'y', 'z'}, 'a': None}, pd.DataFrame({'t': ['p', None], 'v': [1.0, 2.0],"
        " 'c': pd.Categorical(['u', 'w'])}), np.array(['s', 1, None], object), torch.arange(3)))"
    )
    prints = set()
    for seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        prints.add(run.stdout.strip())
    frame = pd.DataFrame({"t": ["p", None], "v": [1.0, 2.0], "c": pd.Categorical(["u", "w"])})
    parts = {"a": None, "b": {"z", "y", "x"}}, frame, np.array(["s", 1, None], object), torch.arange(3)
    assert prints == {fingerprint(*parts)}


@pytest.mark.parametrize(
    "value",
    [lambda: None, object(), sys, np.array([object()], object), [object()], torch.eye(2).to_sparse(), iter([1])],
    ids=["function", "object", "module", "object_array", "nested", "sparse_tensor", "iterator"],
)
def test_unknown_content_is_a_type_error(value):
    with pytest.raises(TypeError, match=r"cannot fingerprint a (value of type|tensor of layout)"):
        fingerprint(value)
