"""A frame comes back from plain arrays as it was, and an estimator fitted on it can be kept without any code."""

import io
import pickle

import numpy as np
import pandas as pd
import pytest

from tttabpfn.inputs.packing import pack_table, unpack_table

from .test_input_types import COLUMNS, N, _rows

DAYS = pd.to_datetime(["2020-06-01", None, "2021-01-02"])
MORE = {
    "zone": DAYS.tz_localize("Europe/Berlin"),
    "period": DAYS.to_period("M"),
    "duration": DAYS - DAYS[0],
    "ordered": pd.Categorical(["b", None, "a"], categories=["b", "a"], ordered=True),
    "str": pd.array(["a", None, "nan"], dtype="str"),
    "sparse": pd.arrays.SparseArray([0.0, np.nan, 1.0]),
    "Float32": pd.array([0.5, None, 1.5], dtype="Float32"),
    "boolean": pd.array([True, None, False], dtype="boolean"),
    "interval": pd.arrays.IntervalArray.from_tuples([(0, 1), None, (1, 2)]),
}


@pytest.mark.parametrize("columns", [COLUMNS, MORE], ids=["common", "more"])
def test_every_kind_of_column_comes_back(columns):
    frame = pd.DataFrame(columns)
    packed = pickle.loads(pickle.dumps(pack_table(frame)))
    assert "pandas" not in {type(value).__module__.partition(".")[0] for value in packed["columns"]}
    pd.testing.assert_frame_equal(unpack_table(packed), frame)


def test_repeated_names_and_no_columns():
    twice = pd.DataFrame([[1, "a"], [2, "b"]], columns=["x", "x"])
    pd.testing.assert_frame_equal(unpack_table(pack_table(twice)), twice)
    empty = pd.DataFrame(index=range(3))
    assert unpack_table(pack_table(empty)).shape == (3, 0)


# Seen to fail: with the frame itself in the state, with "no default __reduce__".
def test_skops_keeps_an_estimator_that_was_fitted_on_a_frame(classifier):
    skops = pytest.importorskip("skops.io")
    _, number, colour, y = _rows()
    frame = pd.DataFrame({"number": number, "colour": colour, "gap": COLUMNS["Int64 with NA"]})
    fitted = classifier(n_steps=1, cache=None).fit(frame, y)
    wanted = fitted.predict_proba(frame[:5])
    file = skops.dumps(fitted)
    found = skops.loads(file, trusted=skops.get_untrusted_types(data=file))
    np.testing.assert_array_equal(found.predict_proba(frame[:5]), wanted)


def test_a_pickle_holds_no_pandas_internals(classifier):
    _, number, colour, y = _rows()
    frame = pd.DataFrame({"number": number, "colour": colour})
    fitted = classifier(n_steps=1).fit(frame.set_index(np.arange(N)[::-1]), y)

    class Refusing(pickle.Unpickler):
        def find_class(self, module, name):
            assert not module.startswith("pandas"), (module, name)
            return super().find_class(module, name)

    copy = Refusing(io.BytesIO(pickle.dumps(fitted))).load()
    np.testing.assert_array_equal(copy.predict_proba(frame[:5]), fitted.predict_proba(frame[:5]))
