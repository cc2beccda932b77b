"""What a user can get wrong: one row per case, with the exception and how its message starts; nothing is changed."""

import decimal
import pickle
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from tabpfn import TabPFNClassifier

from tttabpfn import FastWeightCache, TTTTabPFNClassifier
from tttabpfn import tabpfn_adapter as adapter

PARAMETERS = [
    ({"step_size": -0.1}, ValueError, 'step_size must be a float from 0 to 10000 or "auto", got -0.1.'),
    ({"step_size": float("nan")}, ValueError, 'step_size must be a float from 0 to 10000 or "auto", got nan.'),
    ({"step_size": float("inf")}, ValueError, 'step_size must be a float from 0 to 10000 or "auto", got inf.'),
    ({"step_size": "big"}, TypeError, "step_size must be a float from 0 to 10000 or \"auto\", got 'big' of type str."),
    ({"step_size": True}, TypeError, 'step_size must be a float from 0 to 10000 or "auto", got True of type bool.'),
    ({"step_size": None}, TypeError, 'step_size must be a float from 0 to 10000 or "auto", got None of type NoneType.'),
    ({"step_size": 1e30}, ValueError, 'step_size must be a float from 0 to 10000 or "auto", got 1e+30.'),
    ({"step_size": 10**400}, ValueError, 'step_size must be a float from 0 to 10000 or "auto", got 1000'),
    ({"time_limit": 10**400}, ValueError, "time_limit must be None or a number of seconds >= 0"),
    ({"n_steps": -1}, ValueError, "n_steps must be an int >= 0, got -1."),
    ({"n_steps": 10**400}, ValueError, "n_steps must be an int <= 2147483647, got 1000"),
    ({"n_steps": 2.0}, TypeError, "n_steps must be an int >= 0, got 2.0 of type float."),
    ({"n_steps": True}, TypeError, "n_steps must be an int >= 0, got True of type bool."),
    ({"chunk_size": 0}, ValueError, "chunk_size must be an int >= 1, got 0."),
    ({"chunk_size": "512"}, TypeError, "chunk_size must be an int >= 1, got '512' of type str."),
    ({"context_size": 0}, ValueError, "context_size must be None (all rows), an int >= 1 (rows) or a"),
    (
        {"context_size": 1.0},
        ValueError,
        "context_size must be None (all rows), an int >= 1 (rows) or a float in (0, 1)",
    ),
    ({"context_size": -0.2}, ValueError, "context_size must be None (all rows), an int >= 1 (rows) or a"),
    ({"context_size": "half"}, TypeError, "context_size must be None (all rows), an int >= 1 (rows) or a"),
    (
        {"context_size": True},
        TypeError,
        "context_size must be None (all rows), an int >= 1 (rows) or a float in (0, 1)",
    ),
    ({"context_size": 2}, ValueError, "context_size=2 keeps 2 of 80 rows, fewer than the 3 classes;"),
    ({"context_size": 0.01}, ValueError, "context_size=0.01 keeps 1 of 80 rows, fewer than the 3 classes;"),
    (
        {"context_size": 60, "estimator__inference_config": {"MAX_NUMBER_OF_SAMPLES": 50}},
        ValueError,
        "context_size=60 keeps 60 of 80 rows, but the base model takes at most 50 here;",
    ),
    (
        {"context_size": 500, "estimator__inference_config": {"MAX_CPU_SAMPLES": 79}},
        ValueError,
        "context_size=500 keeps 80 of 80 rows, but the base model takes at most 79 here;",
    ),
    (
        {"context_size": 0.7, "estimator__inference_config": {"MAX_NUMBER_OF_SAMPLES": 50}},
        ValueError,
        "context_size=0.7 keeps 56 of 80 rows, but the base model takes at most 50 here;",
    ),
    (
        {"estimator__inference_config": {"MAX_NUMBER_OF_FEATURES": 4}},
        ValueError,
        "X has 5 features, but the base model takes at most 4;",
    ),
    ({"update_rule": "lion"}, ValueError, "update_rule must be one of 'sgd', 'momentum', 'muon', 'adamw', got 'lion'."),
    ({"update_rule": None}, ValueError, "update_rule must be one of 'sgd', 'momentum', 'muon', 'adamw', got None."),
    (
        {"fast_weights": "half"},
        ValueError,
        "fast_weights must be 'in_context', 'all', 'mlp', 'attention', 'last_quarter' or a",
    ),
    (
        {"fast_weights": []},
        ValueError,
        "fast_weights must be 'in_context', 'all', 'mlp', 'attention', 'last_quarter' or a",
    ),
    (
        {"fast_weights": [1]},
        ValueError,
        "fast_weights must be 'in_context', 'all', 'mlp', 'attention', 'last_quarter' or a",
    ),
    ({"guard": "yes"}, TypeError, "guard must be True or False, got 'yes'."),
    ({"adaptation": "lora"}, ValueError, "adaptation must be one of 'gradient', 'memory', 'both', got 'lora'."),
    ({"backend": "cuda"}, ValueError, "backend must be one of 'auto', 'torch', 'triton', got 'cuda'."),
    ({"cache": 3}, TypeError, "cache must be None (in memory), a path (also on disk) or a FastWeightCache, got int."),
    ({"random_state": -1}, ValueError, "random_state must be None, an int >= 0 or a NumPy random generator, got -1."),
    ({"random_state": 1.5}, ValueError, "random_state must be None, an int >= 0 or a NumPy random generator, got 1.5."),
    ({"verbose": -1}, ValueError, "verbose must be an int >= 0, got -1."),
    ({"verbose": "yes"}, TypeError, "verbose must be an int >= 0, got 'yes' of type str."),
    (
        {"estimator": LogisticRegression()},
        TypeError,
        "estimator must be None or a tabpfn.TabPFNClassifier, got LogisticRegression.",
    ),
    (
        {"estimator": TabPFNClassifier},
        TypeError,
        "estimator must be None or a tabpfn.TabPFNClassifier, got ",
    ),
    (
        {"estimator__fit_mode": "batched"},
        ValueError,
        'estimator.fit_mode must be "fit_preprocessors", "low_memory" or "fit_with_cache", got "batched".',
    ),
    (
        {"estimator__n_estimators": 0},
        ValueError,
        'estimator.n_estimators must be an int from 1 to 10000 or "auto", got 0 of',
    ),
    (
        {"estimator__n_estimators": 2.5},
        ValueError,
        'estimator.n_estimators must be an int from 1 to 10000 or "auto", got 2.5',
    ),
    ({"estimator__fit_mode": np.array([1, 2])}, ValueError, "estimator.fit_mode must be one of 'fit_preprocessors', "),
    ({"estimator__tuning_config": 1}, ValueError, "estimator.tuning_config must be None, a dict or a ClassifierTun"),
    ({"estimator__eval_metric": "auc"}, ValueError, "estimator.eval_metric must be None or one of 'f1', 'accuracy', "),
    ({"estimator__n_preprocessing_jobs": 0}, ValueError, "estimator.n_preprocessing_jobs must be an int from -1024 to"),
    ({"estimator__random_state": -1}, ValueError, "estimator.random_state must be None, an int from 0 to 2**32 - 1 or"),
    ({"estimator__balance_probabilities": "x"}, ValueError, "estimator.balance_probabilities must be True or False,"),
    (
        {"estimator__categorical_features_indices": 3},
        ValueError,
        "estimator.categorical_features_indices must be None or a list of ints, the positions of columns, got 3 of",
    ),
    (
        {"estimator__softmax_temperature": 0},
        ValueError,
        'estimator.softmax_temperature must be a float from 1e-3 to 1e3 or "auto", got 0 of',
    ),
    (
        {"estimator__inference_config": 3},
        ValueError,
        "estimator.inference_config must be None, a dict of settings or an InferenceConfig, got 3 of type int.",
    ),
    ({"estimator__inference_config": {"DATES": 1}}, ValueError, "estimator.inference_config: 'DATES' is no setting;"),
    ({"estimator__device": "cuda:99"}, ValueError, "estimator.device: 'cuda:99' is not there: torch finds"),
    ({"estimator__device": "gpu"}, ValueError, "estimator.device: 'gpu' cannot be used: "),
    ({"estimator__device": "meta"}, ValueError, "estimator.device: 'meta' holds no data;"),
    ({"estimator__differentiable_input": True}, ValueError, "estimator.differentiable_input must be False, got True."),
    (
        {"estimator__model_path": "nowhere/model.safetensors"},
        FileNotFoundError,
        "estimator.model_path: no checkpoint at 'nowhere/model.safetensors'.",
    ),
]


def _table():
    rng = np.random.default_rng(0)
    return rng.normal(size=(80, 5)), np.arange(80) % 3


def _frame(**columns):
    return pd.DataFrame({**{f"x{i}": _table()[0][:, i] for i in range(3)}, **columns})


def _with(value, row=3, column=2):
    X = _table()[0]
    X[row, column] = value
    return X


def _cells(values):
    """A frame with a column 'odd' of these objects, in turns."""
    odd = np.empty(80, dtype=object)
    odd[:] = [values[i % len(values)] for i in range(80)]
    return _frame(odd=pd.Series(odd, dtype=object))


def _labels(value, dtype=float):
    y = _table()[1].astype(dtype)
    y[4] = value
    return y


DATES = np.array(["2020-01-01", "NaT", "2021-01-01", "2020-01-01"] * 20, dtype="datetime64[D]")
ODD = "X: column 'odd' "
DATA = {
    "y_nat": (_table()[0], DATES, ValueError, "Input y contains NaN: every demonstration needs a label."),
    "y_nat_durations": (_table()[0], DATES - DATES[0], ValueError, "Input y contains NaN: every"),
    "y_nat_series": (_table()[0], pd.Series(DATES).dt.tz_localize("UTC"), ValueError, "Input y contains NaN: every"),
    "y_na": (_table()[0], pd.array([1, None] * 40, dtype="Int64"), ValueError, "Input y contains NaN: every"),
    "y_masked": (
        _table()[0],
        np.ma.array(_table()[1], mask=np.arange(80) == 5),
        ValueError,
        "Input y contains NaN: every",
    ),
    "y_gradient": (_table()[0], torch.ones(80, requires_grad=True), ValueError, "y is a tensor that requires"),
    "y_objects": (
        _table()[0],
        _cells([(1,), (2,)])["odd"],
        ValueError,
        "y must hold numbers, text, true or false, or dates, got labels of type tuple.",
    ),
    "y_far_too_large": (_table()[0], [1, 10**400] * 40, ValueError, "y holds whole numbers of more than 64 bits"),
    "X_gradient": (torch.ones(80, 5, requires_grad=True), _table()[1], ValueError, "X is a tensor that requires"),
    "lists": (_cells([[1, 2], [3]]), _table()[1], ValueError, ODD + "holds cells of type list; a cell must be a"),
    "arrays": (_cells([np.ones(2)]), _table()[1], ValueError, ODD + "holds cells of type ndarray;"),
    "dicts": (_cells([{"a": 1}]), _table()[1], ValueError, ODD + "holds cells of type dict;"),
    "bytes": (_cells([b"a", b"b"]), _table()[1], ValueError, ODD + "holds cells of type bytes;"),
    "functions": (_cells([len]), _table()[1], ValueError, ODD + "holds cells of type builtin_function_or_method;"),
    "text_and_numbers": (_cells([1, "1"]), _table()[1], ValueError, ODD + "mixes numbers (int), text (str); make it"),
    "text_and_truth": (_cells([True, "yes"]), _table()[1], ValueError, ODD + "mixes text (str), true or false (bool);"),
    "far_too_large": (_cells([10**400, 1]), _table()[1], ValueError, ODD[:3] + "column 'odd' holds a number too large"),
    "infinite_decimal": (_cells([decimal.Decimal("inf"), 1]), _table()[1], ValueError, "X contains infinity in column"),
    "complex_objects": (_cells([1j]), _table()[1], ValueError, "Complex data not supported: column 'odd'"),
    "raw_bytes": (np.full((80, 2), b"a"), _table()[1], ValueError, "X holds raw bytes (dtype |S1); decode them"),
    "wide_infinity": (
        np.full((80, 2), np.longdouble("1e4000")),
        _table()[1],
        ValueError,
        "X contains infinity in column",
    ),
    "one_class": (_table()[0], np.ones(80, dtype=int), ValueError, "y must hold at least 2 classes, got 1 class only"),
    "one_label_each": (_table()[0][:6], np.arange(6), ValueError, "too few rows per class: 6 rows of 6 classes leave"),
    "too_many_features": (
        np.zeros((80, 2001)),
        _table()[1],
        ValueError,
        "X has 2001 features, but the base model takes at most 2000;",
    ),
    "one_row": (_table()[0][:1], [1], ValueError, "Found array with 1 sample(s)"),
    "no_rows": (np.empty((0, 5)), [], ValueError, "Found array with 0 sample(s)"),
    "no_columns": (np.empty((80, 0)), _table()[1], ValueError, "Found array with 0 feature(s)"),
    "no_columns_frame": (_frame().iloc[:, :0], _table()[1], ValueError, "0 feature(s) (shape=(80, 0)) while a minimum"),
    "one_row_frame": (_frame().iloc[:1], [1], ValueError, "Found array with 1 sample(s) while a minimum of 2"),
    "flat": (np.arange(80.0), _table()[1], ValueError, "Expected 2D array, got 1D array instead"),
    "three_axes": (np.zeros((80, 2, 2)), _table()[1], ValueError, "Found array with dim 3"),
    "inf": (_with(np.inf), _table()[1], ValueError, "X contains infinity in column"),
    "minus_inf": (_with(-np.inf), _table()[1], ValueError, "X contains infinity in column"),
    "inf_in_frame": (_frame(big=[np.inf] * 80), _table()[1], ValueError, "X contains infinity in column 'big'"),
    "inf_in_objects": (
        _frame(mixed=pd.Series([1.0, np.inf] * 40, dtype=object)),
        _table()[1],
        ValueError,
        "X contains infinity in column 'mixed'",
    ),
    "inf_in_object_array": (_with(np.inf).astype(object), _table()[1], ValueError, "X contains infinity in column 2"),
    "complex": (_table()[0].astype(complex), _table()[1], ValueError, "Complex data not supported: X holds"),
    "complex_frame": (
        _frame(z=np.ones(80, complex)),
        _table()[1],
        ValueError,
        "Complex data not supported: column 'z'",
    ),
    "sparse": (sparse.csr_matrix(_table()[0]), _table()[1], TypeError, "Sparse data was passed for X"),
    "mixed_names": (
        _frame().rename(columns={"x1": 1}),
        _table()[1],
        TypeError,
        "Feature names are only supported if all input features have string names",
    ),
    "y_none": (_table()[0], None, ValueError, "TTTTabPFNClassifier requires y to be passed, but the target y is None."),
    "y_nan": (_table()[0], _labels(np.nan), ValueError, "Input y contains NaN"),
    "y_none_in_objects": (_table()[0], _labels(None, object), ValueError, "Input y contains NaN: every demonstration"),
    "y_inf": (_table()[0], _labels(np.inf), ValueError, "Input y contains infinity"),
    "y_continuous": (_table()[0], _labels(0.5), ValueError, "Unknown label type: continuous"),
    "y_short": (
        _table()[0],
        _table()[1][:-1],
        ValueError,
        "Found input variables with inconsistent numbers",
    ),
    "y_two_columns": (
        _table()[0],
        np.ones((80, 2)),
        ValueError,
        "y should be a 1d array, got an array of",
    ),
    "y_mixed": (
        _table()[0],
        _labels("a", object),
        ValueError,
        "y must hold labels of one kind, got a mix of",
    ),
}


@pytest.fixture
def nothing_loads(monkeypatch):
    def load(estimator):
        raise AssertionError("weights were loaded before the input was checked")

    monkeypatch.setattr(adapter, "load_base", load)


@pytest.mark.parametrize(("parameters", "kind", "start"), PARAMETERS, ids=lambda value: str(value)[:40])
def test_bad_parameters(classifier, nothing_loads, parameters, kind, start):
    made = classifier().set_params(**parameters)
    before = dict(vars(made))
    with pytest.raises(kind, match="^" + re.escape(start)):
        made.fit(*_table())
    assert vars(made) == before


# 7. Seen to fail: with `classes_` set before all checks are done, and without the check of the number of classes.
@pytest.mark.parametrize(("X", "y", "kind", "start"), DATA.values(), ids=DATA)
def test_bad_data_is_refused_and_leaves_the_former_fit(classifier, nothing_loads, X, y, kind, start):
    fitted = classifier(context_size=None).fit(*_table())
    before = dict(vars(fitted))
    with pytest.raises(kind, match="^" + re.escape(start)):
        fitted.fit(X, y)
    assert vars(fitted).keys() == before.keys()
    assert all(vars(fitted)[name] is before[name] for name in before)


@pytest.mark.parametrize(
    ("X", "kind", "start"),
    [
        (np.zeros((4, 6)), ValueError, "X has 6 features, but TTTTabPFNClassifier is expecting 5 features as input"),
        (np.zeros((0, 5)), ValueError, "Found array with 0 sample(s)"),
        (np.zeros(5), ValueError, "Expected 2D array, got 1D array instead"),
        (np.full((2, 5), np.inf), ValueError, "X contains infinity in column"),
        (sparse.csr_matrix(np.ones((2, 5))), TypeError, "Sparse data was passed for X"),
    ],
    ids=["features", "rows", "axes", "inf", "sparse"],
)
def test_bad_rows_to_predict(classifier, nothing_loads, X, kind, start):
    fitted = classifier().fit(*_table())
    with pytest.raises(kind, match="^" + re.escape(start)):
        fitted.predict(X)


# Seen to fail: without the kinds of `Columns` at predict.
def test_a_column_of_another_kind_than_at_fit_is_refused(classifier, nothing_loads):
    fitted = classifier().fit(_cells(["a", "b", None]), _table()[1])
    with pytest.raises(ValueError, match=r"^X: column 'odd' held text at fit, but holds numbers now\.$"):
        fitted.predict(_cells([1]).iloc[:1])


def test_nested_parameters_of_the_default_estimator_can_be_set(nothing_loads):
    made = TTTTabPFNClassifier(cache=FastWeightCache()).set_params(estimator__ignore_pretraining_limits=True)
    assert made.estimator.ignore_pretraining_limits is True
    X = np.random.default_rng(0).normal(size=(80, 2001))
    assert made.fit(X, _table()[1]).n_features_in_ == 2001
    plain = TTTTabPFNClassifier(random_state=0).fit(*_table())._fitted
    named = TTTTabPFNClassifier(random_state=0).set_params(estimator__n_estimators="auto").fit(*_table())._fitted
    assert named.request == plain.request


@pytest.mark.parametrize(
    "limit", [{"MAX_NUMBER_OF_SAMPLES": 50}, {"MAX_CPU_SAMPLES": 50}, {"MAX_NUMBER_OF_FEATURES": 4}], ids=str
)
def test_limits_can_be_ignored(classifier, nothing_loads, limit):
    settings = {"inference_config": limit, "ignore_pretraining_limits": True}
    fitted = classifier(context_size=60, inner=settings).fit(*_table())
    assert len(fitted.context_indices_) == 60


def test_other_column_names_or_order_are_refused(classifier, nothing_loads):
    frame = _frame()
    fitted = classifier().fit(frame, _table()[1])
    assert fitted.feature_names_in_.tolist() == ["x0", "x1", "x2"]
    with pytest.raises(ValueError, match=r"^The feature names should match those that"):
        fitted.predict(frame.rename(columns={"x1": "other"}))
    with pytest.raises(ValueError, match=r"^The feature names should match those that"):
        fitted.predict(frame[["x2", "x1", "x0"]])


def test_a_pattern_without_a_match_is_refused(classifier):
    cache = FastWeightCache()
    fitted = classifier(fast_weights=["nothing.*"], cache=cache).fit(*_table())
    with pytest.raises(ValueError, match=r"^fast_weights pattern 'nothing\.\*' matches no parameter; names look like"):
        fitted.predict(_table()[0])
    assert len(cache) == 0


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "pickle"])
def test_a_damaged_checkpoint_is_refused_at_fit(classifier, tiny_checkpoint, tmp_path, damage):
    whole = tiny_checkpoint().read_bytes()
    damaged = {"cut": whole[:-100], "garbage": b"\xff" * 500, "empty": b"", "pickle": pickle.dumps({"a": 1})}[damage]
    path = tmp_path / "model.safetensors"
    path.write_bytes(damaged)
    made = classifier(estimator=TabPFNClassifier(model_path=str(path)))
    with pytest.raises(ValueError, match=r"^estimator\.model_path: '.*model\.safetensors' is not a readable"):
        made.fit(*_table())


class Malicious:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (self.path, "executed"))


# The last lines show the harm that loading it without `weights_only` does.
def test_a_malicious_ckpt_is_refused_and_not_executed(classifier, tmp_path):
    trace = tmp_path / "trace"
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": {}, "config": Malicious(trace)}, path)
    made = classifier(estimator=TabPFNClassifier(model_path=str(path))).fit(*_table())
    with pytest.raises(ValueError, match="is damaged or holds more than weights"):
        made.predict(_table()[0])
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists()
