"""More classes than a base was trained on: label embeddings shared by codes, everything else as with few classes."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV

from tttabpfn import FastWeightCache
from tttabpfn import tabpfn_adapter as adapter
from tttabpfn.inputs.parameters import resolve_context_size
from tttabpfn.memory.inputs import MemoryInputs

from ..helpers import ATOL, base_weights, fast_weights, key_of, same_tensors

RETRIEVING, EARLIER = ("v3", "v3.5"), ("v2", "v2.5", "v2.6")
N_CLASSES = 26


@pytest.fixture(scope="module")
def letters():
    """130 rows of 26 classes that lie apart to fit, 52 to predict."""
    X, codes = make_blobs([7] * N_CLASSES, 6, center_box=(-20, 20), cluster_std=1.0, random_state=0)
    y = np.array(list("abcdefghijklmnopqrstuvwxyz"))[codes]
    rows = np.random.default_rng(0).permutation(len(y))
    first = np.concatenate([np.flatnonzero(y == label)[:5] for label in np.unique(y)])
    fit, new = rows[np.isin(rows, first)], rows[~np.isin(rows, first)]
    return X[fit], y[fit], X[new], y[new]


@pytest.fixture(scope="module")
def memory(classifier):
    """A function that returns a classifier with a memory alone, on an estimator of two members."""
    return lambda **changes: classifier(**{"adaptation": "memory", "context_size": 52, "guard": True, **changes})


@pytest.mark.parametrize("generation", RETRIEVING)
def test_a_widened_base_gives_ten_classes_the_bits_of_the_base(tiny_tabpfn, table, generation):
    X, y, _, _ = table
    estimator = tiny_tabpfn(generation)
    base = adapter.load_base(estimator)
    assert adapter.load_base_for(estimator, 10) is base
    wide = adapter.load_base_for(estimator, 30)
    own, widened = dict(base.models[0].named_parameters()), dict(wide.models[0].named_parameters())
    changed = [name for name in own if own[name] is not widened[name]]
    assert len(changed) == 2
    assert all("y_encoder" in name for name in changed)
    for name in changed:
        torch.testing.assert_close(widened[name], own[name].repeat(3, 1), rtol=0, atol=0)
    x = torch.as_tensor(X, dtype=torch.float32)[:, None]
    labels = torch.as_tensor(y[:50], dtype=torch.float32)
    with torch.no_grad():
        few, many = (
            model(x, labels, **({"task_type": "multiclass"} if generation == "v3.5" else {}))
            for model in (base.models[0], wide.models[0])
        )
    assert many.shape == (30, 1, 30)
    torch.testing.assert_close(many[..., :10], few, rtol=0, atol=0)


def test_classes_of_one_group_are_told_apart_by_the_rows_they_share_a_label_embedding_with(tiny_tabpfn):
    wide = adapter.load_base_for(tiny_tabpfn(), 20).models[0]
    rng = np.random.default_rng(0)
    x = torch.as_tensor(rng.normal(size=(60, 1, 4)), dtype=torch.float32)
    labels = torch.as_tensor(np.arange(40) % 20, dtype=torch.float32)
    with torch.no_grad():
        many = wide(x, labels).softmax(-1)[:, 0]
        grouped = wide(x, labels % 10).softmax(-1)[:, 0]
    # The label embeddings are the same, and so is what a query attends to: groups get the sum of their classes.
    torch.testing.assert_close(many[:, :10] + many[:, 10:], grouped[:, :10] + grouped[:, 10:], rtol=1e-3, atol=1e-4)
    assert (many[:, :10] - many[:, 10:]).abs().max() > 1e-3


def test_members_are_other_codes_and_their_logits_are_averaged(tiny_tabpfn, letters):
    X, y, X_new, _ = letters
    estimator = tiny_tabpfn(n_estimators=4, inference_config={"CLASS_SHIFT_METHOD": "rotate"})
    base = adapter.load_base_for(estimator, N_CLASSES)
    inner = adapter.fit_tabpfn(estimator, base, X, y, fit_mode="fit_preprocessors")
    groups = [np.asarray(member.config.class_permutation) % 10 for member in inner.executor_.ensemble_members]
    together = [{(a, b) for a in range(26) for b in range(a) if own[a] == own[b]} for own in groups]
    assert all(len(one & other) < len(one) / 2 for one in together for other in together if one is not other)
    rows = adapter.predict_with_embeddings(inner, X_new)
    assert rows.logits.shape == (4, 52, N_CLASSES)
    wanted = (rows.logits.mean(dim=0) / 0.5 / base_temperature(estimator)).softmax(dim=-1)
    np.testing.assert_allclose(adapter.probabilities(inner, rows.logits), wanted.numpy(), rtol=0, atol=1e-6)


def base_temperature(estimator):
    return adapter.load_base(estimator).inference_config.SOFTMAX_TEMPERATURE


def test_a_temperature_of_ones_own_is_kept(tiny_tabpfn):
    wide = adapter.load_base_for(tiny_tabpfn(softmax_temperature=0.7), 12)
    assert wide.inference_config.SOFTMAX_TEMPERATURE == 0.7
    other = adapter.load_base_for(tiny_tabpfn(softmax_temperature=0.7), 13)
    assert len({wide.content, other.content, adapter.load_base(tiny_tabpfn(softmax_temperature=0.7)).content}) == 3


@pytest.mark.parametrize("generation", EARLIER)
def test_an_earlier_network_sees_groups_and_shares_their_output_among_their_classes(tiny_tabpfn, generation):
    estimator = tiny_tabpfn(generation)
    base, wide = adapter.load_base(estimator), adapter.load_base_for(estimator, 14)
    rng = np.random.default_rng(0)
    x = torch.as_tensor(rng.normal(size=(50, 1, 4)), dtype=torch.float32)
    labels = torch.as_tensor(np.arange(40) % 14, dtype=torch.float32)[:, None]
    with torch.no_grad():
        few = base.models[0](x, labels % 10).softmax(-1)[:, 0]
        output = wide.models[0](x, labels, only_return_standard_out=False)
    many = output["standard"].softmax(-1)[:, 0]
    assert many.shape == (10, 14)
    assert output["test_embeddings"].shape[0] == 10
    torch.testing.assert_close(many[:, 4:10], few[:, 4:10], rtol=1e-5, atol=1e-7)
    for group in range(4):
        for one in (group, 10 + group):
            torch.testing.assert_close(many[:, one], few[:, group] / 2, rtol=1e-5, atol=1e-7)
    own, widened = dict(base.models[0].named_parameters()), dict(wide.models[0].named_parameters())
    assert all(own[name] is widened[name] for name in own)


@pytest.mark.parametrize(
    ("generation", "adaptation"),
    [(one, way) for one in RETRIEVING for way in ("memory", "gradient", "both")] + [(one, "both") for one in EARLIER],
)
def test_26_classes_are_predicted_without_a_wrapper(classifier, letters, generation, adaptation):
    X, y, X_new, y_new = letters
    made = classifier(generation, adaptation=adaptation, context_size=60, n_steps=8)
    weights = base_weights(made.estimator)
    fitted = made.fit(X, y)
    probabilities = fitted.predict_proba(X_new)
    assert probabilities.shape == (52, N_CLASSES)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=0, atol=1e-6)
    assert same_tensors(base_weights(made.estimator), weights)
    assert fast_weights(fitted)
    if adaptation != "gradient":
        assert log_loss(y_new, probabilities, labels=fitted.classes_) < 0.7 * np.log(N_CLASSES)
    # Rows alone, and in another order.
    np.testing.assert_allclose(fitted.predict_proba(X_new[3:4]), probabilities[3:4], rtol=0, atol=ATOL)
    assert np.array_equal(fitted.predict_proba(X_new[::-1]), probabilities[::-1])
    # Another process would find the same: a fresh cache, and a pickle.
    again = clone(fitted).set_params(cache=FastWeightCache()).fit(X, y)
    assert np.array_equal(again.predict_proba(X_new), probabilities)
    copied = pickle.loads(pickle.dumps(fitted))
    assert copied.adaptation_report().cache_hit
    assert np.array_equal(copied.predict_proba(X_new), probabilities)


def test_trees_start_from_what_the_codes_say_together(memory, letters):
    X, y, X_new, _ = letters
    fitted = memory(guard=False).fit(X, y).adapt()
    reader = fitted._lookup().predictor().memory
    assert reader.averages_logits
    rows = adapter.predict_with_embeddings(reader.inner, X_new)
    scaled = rows.logits / reader.inner.softmax_temperature_
    inputs = MemoryInputs(rows.embeddings, scaled, scaled[0], np.empty((0, 0)), averages_logits=True)
    start = torch.as_tensor(inputs.mean_start("model", reader.memory.log_shares)).softmax(-1).numpy()
    np.testing.assert_allclose(start, adapter.averaged(reader.inner, rows.logits), rtol=0, atol=1e-4)


def test_nothing_to_adapt_is_what_the_widened_base_predicts(memory, letters):
    X, y, X_new, _ = letters
    fitted = memory(n_steps=0).fit(X, y)
    probabilities = fitted.predict_proba(X_new)
    estimator = fitted._fitted.estimator
    rows = fitted.context_indices_
    inner = adapter.fit_tabpfn(estimator, adapter.load_base_for(estimator, N_CLASSES), X[rows], y[rows])
    assert np.array_equal(probabilities, inner.predict_proba(X_new))


def test_the_number_of_classes_is_part_of_the_key(memory, letters):
    X, y, _, _ = letters
    fitted = memory().fit(X, y)
    ten = np.isin(y, list("abcdefghij"))
    few = memory().fit(X[ten], y[ten])
    assert key_of(fitted) != key_of(few)
    assert few._lookup().base is adapter.load_base(few._fitted.estimator)


def test_a_grid_search_over_many_classes(memory, letters):
    X, y, X_new, _ = letters
    grid = {"step_size": [0.02, 0.06]}
    search = GridSearchCV(memory(), grid, cv=2, scoring="neg_log_loss", error_score="raise").fit(X, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.predict_proba(X_new).shape == (52, N_CLASSES)


def test_the_context_has_room_for_a_row_of_each_class():
    assert resolve_context_size(None, 9000, 200, 700, None).rows == 700
    assert resolve_context_size(None, 9000, 200, 7, None).rows == 500
    with pytest.raises(ValueError, match="y holds 700 classes, but the base model takes at most 600 context rows"):
        resolve_context_size(None, 9000, 200, 700, 600)


def test_the_report_says_that_classes_share_label_embeddings(memory, letters):
    notes = memory().fit(letters[0], letters[1]).adaptation_report().notes
    assert "26 classes share the base's 10 labels, by another code for each ensemble member" in notes
