"""`adaptation="memory"` and `"both"` through the estimator, on small random networks and on the bundled base."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import make_blobs
from sklearn.metrics import log_loss
from tabpfn import TabPFNClassifier

from tests.helpers import base_weights, fast_weights, plain_on_context, same_tensors
from tests.tiny_models import GENERATIONS
from tttabpfn import FastWeightCache
from tttabpfn import tabpfn_adapter as adapter
from tttabpfn.adaptation.outcome import has_memory, memory_of

ROWS_ATOL = 1e-5
"""Probabilities of the same row in batches of different sizes, float32: TabPFN's own 1e-6, magnified by the memory."""


@pytest.fixture(scope="module")
def clusters():
    X, y = make_blobs(240, 5, centers=3, cluster_std=3.0, random_state=0)
    return X[:160], y[:160], X[160:], y[160:]


@pytest.fixture(scope="module")
def written(classifier, clusters):
    """A classifier whose memory was chosen, judged and written; 40 of 160 rows are context."""
    X, y, *_ = clusters
    made = classifier(adaptation="memory", guard=True, step_size="auto", n_steps=20, context_size=40)
    return made.fit(X, y).adapt()


# Seen to fail: with `logits - added` in Predictor.
def test_memory_lowers_the_loss_of_held_back_and_of_new_rows(written, clusters):
    X, y, X_new, y_new = clusters
    report = written.adaptation_report()
    assert report.accepted
    assert report.loss_adapted < report.loss_frozen - 0.2
    frozen = log_loss(y_new, plain_on_context(written, X, y).predict_proba(X_new))
    assert log_loss(y_new, written.predict_proba(X_new)) < frozen - 0.2


def test_report_says_what_was_written(written):
    report = written.adaptation_report()
    assert report.adaptation == "memory"
    assert "memory" in report.reason
    assert "gate" in report.reason
    assert report.n_held_back == 120  # every row outside the context, each held back once
    assert len(report.step_losses) == report.n_steps > 0
    assert report.step_losses[-1] < report.step_losses[0]
    assert report.held_back_steps[0] == 0
    assert report.held_back_losses[0] == pytest.approx(report.loss_frozen)
    assert min(report.held_back_losses) == pytest.approx(report.loss_adapted)
    assert report.fast_weight_bytes == sum(value.nbytes for value in fast_weights(written).values())
    assert report.seconds > 0


def test_only_a_memory_is_kept_and_the_base_is_not_written_to(classifier, clusters):
    X, y, X_new, _ = clusters
    made = classifier(adaptation="memory", guard=True, step_size="auto", n_steps=5, context_size=40)
    before = base_weights(made.estimator)
    made.fit(X, y).predict(X_new)
    assert same_tensors(before, base_weights(made.estimator))
    assert fast_weights(made)
    assert all(name.startswith("memory:") for name in fast_weights(made))


def test_size_does_not_depend_on_the_rows(classifier, clusters):
    X, y, *_ = clusters
    sizes = set()
    for n_rows in (80, 160):
        made = classifier(adaptation="memory", step_size=0.03, n_steps=5, context_size=30)
        weights = fast_weights(made.fit(X[:n_rows], y[:n_rows]))
        sizes.add(
            (
                next(value.nbytes for name, value in weights.items() if name.endswith(":mean")),
                memory_of(weights).scale.spread.nbytes,
            )
        )
    assert len(sizes) == 1


def test_one_row_and_many_agree(written, clusters):
    X_new = clusters[2]
    many = written.predict_proba(X_new)
    one = np.concatenate([written.predict_proba(X_new[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(one, many[:5], atol=ROWS_ATOL, rtol=0)


def test_same_bits_again_and_another_memory_for_other_data(classifier, clusters):
    X, y, X_new, _ = clusters
    parameters = {"adaptation": "memory", "guard": True, "step_size": "auto", "n_steps": 10, "context_size": 40}
    first = classifier(**parameters).fit(X, y).predict_proba(X_new)
    again = classifier(**parameters).fit(X, y).predict_proba(X_new)
    np.testing.assert_array_equal(first, again)
    shifted = classifier(**parameters).fit(X, (y + 1) % 3).predict_proba(X_new)
    assert np.abs(first - shifted).max() > 0.1


def test_cache_hit_gives_the_same_probabilities(classifier, clusters):
    X, y, X_new, _ = clusters
    cache = FastWeightCache()
    parameters = {"adaptation": "memory", "guard": True, "step_size": "auto", "n_steps": 5, "context_size": 40}
    first = classifier(cache=cache, **parameters).fit(X, y)
    expected = first.predict_proba(X_new)
    second = classifier(cache=cache, **parameters).fit(X, y)
    np.testing.assert_array_equal(second.predict_proba(X_new), expected)
    assert not first.adaptation_report().cache_hit
    assert second.adaptation_report().cache_hit


def test_another_process_predicts_the_same(written, clusters, tmp_path):
    X_new = clusters[2]
    (tmp_path / "fitted.pkl").write_bytes(pickle.dumps(written))
    np.save(tmp_path / "rows.npy", X_new)
    code = (
        "import pickle, numpy as np\n"
        "fitted = pickle.load(open('fitted.pkl', 'rb'))\n"
        "np.save('out.npy', fitted.predict_proba(np.load('rows.npy')))\n"
        "assert fitted.adaptation_report().cache_hit in (True, False)\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, check=True)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), written.predict_proba(X_new), atol=ROWS_ATOL, rtol=0)


def test_unpickled_in_an_empty_cache(written, clusters):
    again = pickle.loads(pickle.dumps(written))
    again.cache = FastWeightCache()
    np.testing.assert_allclose(
        again.predict_proba(clusters[2]), written.predict_proba(clusters[2]), atol=ROWS_ATOL, rtol=0
    )


@pytest.mark.parametrize("nothing", [{"n_steps": 0}, {"step_size": 0.0}])
@pytest.mark.parametrize("adaptation", ["memory", "both"])
def test_nothing_to_do_is_the_wrapped_classifier_bit_for_bit(classifier, clusters, nothing, adaptation):
    X, y, X_new, _ = clusters
    made = classifier(adaptation=adaptation, guard=True, context_size=40, **nothing).fit(X, y)
    np.testing.assert_array_equal(made.predict_proba(X_new), plain_on_context(made, X, y).predict_proba(X_new))


# Seen to fail: with the guard's verdict ignored in MemoryWriter.
def test_refusal_leaves_the_frozen_model(classifier, clusters):
    X, _, X_new, _ = clusters
    labels = np.random.default_rng(0).integers(0, 3, len(X))
    parameters = {"guard": True, "step_size": "auto", "context_size": 100}
    made = classifier(adaptation="memory", n_steps=20, **parameters).fit(X[:140], labels[:140])
    report = made.adaptation_report()
    assert not report.accepted
    assert report.n_steps == 0
    assert fast_weights(made) == {}
    frozen = adapter.fit_tabpfn(
        made.estimator,
        adapter.load_base(made.estimator),
        X[made.context_indices_],
        labels[made.context_indices_],
        fit_mode="fit_with_cache",
    )
    np.testing.assert_array_equal(made.predict_proba(X_new), frozen.predict_proba(X_new))


def test_without_guard_the_best_memory_is_written_anyway(classifier, clusters):
    X, y, *_ = clusters
    made = classifier(adaptation="memory", guard=False, step_size="auto", n_steps=5, context_size=40).fit(X, y)
    assert made.adaptation_report().reason.startswith("guard=False")
    assert has_memory(fast_weights(made))


def test_all_rows_as_context(classifier, clusters):
    X, y, X_new, y_new = clusters
    made = classifier(adaptation="memory", guard=True, step_size="auto", n_steps=20, context_size=None).fit(X, y)
    report = made.adaptation_report()
    assert len(made.context_indices_) == len(X)
    assert report.accepted
    assert report.n_held_back == 157  # each row once, but one of every class that only serves as context
    frozen = log_loss(y_new, plain_on_context(made, X, y).predict_proba(X_new))
    assert log_loss(y_new, made.predict_proba(X_new)) < frozen - 0.2


def test_too_few_rows_to_compare(classifier, clusters):
    X, y, X_new, _ = clusters
    rows = np.concatenate([np.flatnonzero(y == label)[:3] for label in range(3)])
    guarded = classifier(adaptation="memory", guard=True, step_size="auto", context_size=None).fit(X[rows], y[rows])
    assert not guarded.adaptation_report().accepted
    assert guarded.adaptation_report().loss_frozen is None
    unguarded = classifier(adaptation="memory", guard=False, step_size=0.03, context_size=None).fit(X[rows], y[rows])
    assert has_memory(fast_weights(unguarded))
    assert np.isfinite(unguarded.predict_proba(X_new)).all()


def test_string_labels_in_any_order(classifier, clusters, written):
    X, y, X_new, _ = clusters
    names = np.array(["walnut", "Apple", "mango"])
    made = classifier(adaptation="memory", guard=True, step_size="auto", n_steps=20, context_size=40).fit(X, names[y])
    assert made.classes_.tolist() == ["Apple", "mango", "walnut"]
    report = made.adaptation_report()
    assert report.accepted
    assert log_loss(names[clusters[3]], made.predict_proba(X_new), labels=made.classes_) < report.loss_frozen - 0.1
    assert set(made.predict(X_new)) <= set(names)


# Seen to fail: with class permutations not undone in `predict_with_embeddings`.
@pytest.mark.parametrize("fit_mode", ["fit_preprocessors", "fit_with_cache"])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_logits_beside_embeddings_are_the_models_own(tiny_tabpfn, table, generation, fit_mode):
    X, y, X_new, _ = table
    inner = tiny_tabpfn(generation, inference_precision=torch.float32)
    inner = adapter.fit_tabpfn(inner, adapter.load_base(inner), X, y, fit_mode=fit_mode)
    logits, embeddings = adapter.predict_with_embeddings(inner, X_new)
    np.testing.assert_array_equal(logits.numpy(), inner.predict_raw_logits(X_new))
    assert embeddings.shape[:2] == logits.shape[:2] == (2, 30)
    np.testing.assert_array_equal(adapter.probabilities(inner, logits), inner.predict_proba(X_new))


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_generation_has_a_memory(classifier, clusters, generation):
    X, y, X_new, y_new = clusters
    parameters = {"adaptation": "memory", "guard": True, "step_size": "auto", "n_steps": 10, "context_size": 40}
    made = classifier(generation, inner={"inference_precision": torch.float32}, **parameters).fit(X, y)
    frozen = log_loss(y_new, plain_on_context(made, X, y).predict_proba(X_new))
    assert made.adaptation_report().accepted
    assert log_loss(y_new, made.predict_proba(X_new)) < frozen - 0.1


# Seen to fail: with embeddings of the frozen model written where the adapted one predicts.
def test_both_is_no_worse_than_gradient_on_held_back_rows(classifier, clusters):
    X, y, X_new, y_new = clusters
    parameters = {"guard": True, "step_size": 3e-3, "n_steps": 15, "context_size": 40, "update_rule": "adamw"}
    gradient = classifier(adaptation="gradient", chunk_size=64, **parameters).fit(X, y).adapt()
    both = classifier(adaptation="both", chunk_size=64, **parameters).fit(X, y).adapt()
    assert gradient.adaptation_report().accepted
    assert both.adaptation_report().accepted
    assert both.adaptation_report().loss_adapted <= gradient.adaptation_report().loss_adapted
    assert both.adaptation_report().n_steps > gradient.adaptation_report().n_steps
    kept = fast_weights(both)
    assert has_memory(kept)
    assert set(fast_weights(gradient)) == {name for name in kept if not name.startswith("memory:")}
    frozen = log_loss(y_new, plain_on_context(both, X, y).predict_proba(X_new))
    assert log_loss(y_new, both.predict_proba(X_new)) < frozen - 0.2


# Seen to fail: with "both" returning nothing where the gradient steps were refused.
def test_both_with_refused_gradient_is_the_memory_alone(classifier, clusters):
    X, y, X_new, _ = clusters
    parameters = {"guard": True, "n_steps": 10, "context_size": 40, "update_rule": "sgd"}
    both = classifier(adaptation="both", step_size=1e-9, **parameters).fit(X, y)
    memory = classifier(adaptation="memory", step_size="auto", **parameters).fit(X, y)
    assert "refused" not in both.adaptation_report().reason
    assert set(fast_weights(both)) == set(fast_weights(memory))
    np.testing.assert_array_equal(both.predict_proba(X_new), memory.predict_proba(X_new))


def test_bundled_base_gains_from_memory():
    from tttabpfn import TTTTabPFNClassifier, bundled_model_path

    generator = np.random.default_rng(0)
    X = generator.normal(size=(360, 6))
    y = (X[:, 0] * X[:, 1] + 0.5 * X[:, 2] > 0).astype(int)
    inner = TabPFNClassifier(model_path=str(bundled_model_path()), n_estimators=2, device="cpu")
    made = TTTTabPFNClassifier(inner, adaptation="memory", context_size=40, random_state=0, cache=FastWeightCache())
    made.fit(X[:260], y[:260])
    frozen = log_loss(y[260:], plain_on_context(made, X, y).predict_proba(X[260:]))
    assert made.adaptation_report().accepted
    assert log_loss(y[260:], made.predict_proba(X[260:])) < frozen
