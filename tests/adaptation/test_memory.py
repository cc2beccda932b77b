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

from tests.helpers import base_weights, fast_weights, key_of, plain_on_context, same_tensors
from tests.tiny_models import GENERATIONS
from tttabpfn import FastWeightCache
from tttabpfn import tabpfn_adapter as adapter
from tttabpfn.adaptation.outcome import gradient_share, has_memory, memory_of
from tttabpfn.prediction.predictor import build_predictor

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
    assert report.reason.startswith("counts ")
    assert "on 157 rows" in report.reason
    assert report.n_held_back == 157  # each row once, but one of every class that only serves as context
    assert report.n_steps == 20
    assert sum(report.shares.values()) == pytest.approx(1.0)
    assert report.shares == memory_of(fast_weights(written)).describe()
    assert list(report.shares.values()) == sorted(report.shares.values(), reverse=True)
    assert 0.0 < report.gain_standard_error < report.loss_frozen - report.loss_adapted
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


def frozen_on_context(made, X, labels):
    """The frozen model in the numerics of an adapted one: on the same context, without the memory's part."""
    base, rows = adapter.load_base(made.estimator), made.context_indices_
    return adapter.fit_tabpfn(made.estimator, base, X[rows], labels[rows], fit_mode="fit_with_cache")


@pytest.fixture(scope="module")
def noise(clusters):
    """The rows with labels that no row tells; of this draw the held-back rows say that the memory is worse."""
    return clusters[0], np.random.default_rng(2).integers(0, 3, len(clusters[0]))


def test_refusal_leaves_the_frozen_model(classifier, clusters, noise):
    X, labels = noise
    X_new = clusters[2]
    parameters = {"guard": True, "step_size": "auto", "context_size": 40}
    made = classifier(adaptation="memory", n_steps=20, **parameters).fit(X, labels)
    report = made.adaptation_report()
    assert not report.accepted
    assert report.loss_adapted > report.loss_frozen
    assert report.n_steps == 0
    assert report.shares == {}
    assert fast_weights(made) == {}
    np.testing.assert_array_equal(made.predict_proba(X_new), frozen_on_context(made, X, labels).predict_proba(X_new))


def test_without_guard_a_memory_of_noise_is_written_in_full(classifier, noise):
    made = classifier(adaptation="memory", guard=False, step_size="auto", n_steps=20, context_size=40).fit(*noise)
    report = made.adaptation_report()
    assert report.accepted
    assert report.reason.startswith("guard=False; ")
    assert report.loss_adapted > report.loss_frozen
    assert has_memory(fast_weights(made))


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


@pytest.mark.parametrize("guard", [True, False])
def test_too_few_rows_to_compare(classifier, clusters, guard):
    X, y, X_new, _ = clusters
    rows = np.concatenate([np.flatnonzero(y == label)[:3] for label in range(3)])
    made = classifier(adaptation="memory", guard=guard, step_size="auto", context_size=None).fit(X[rows], y[rows])
    report = made.adaptation_report()
    assert not report.accepted
    assert report.reason.startswith("too few demonstrations")
    assert report.loss_frozen is None
    np.testing.assert_allclose(made.predict_proba(X_new).sum(axis=1), 1.0, atol=1e-6)


# Seen to fail: with rows of the context left out.
@pytest.mark.parametrize("context_size", [6, 24, 100])
def test_every_row_is_read_however_small_the_context(classifier, clusters, context_size):
    X, y, *_ = clusters
    made = classifier(adaptation="memory", guard=True, step_size="auto", n_steps=5, context_size=context_size)
    made.fit(X, y).adapt()
    (written,) = made._lookup().session().frozen_memories.values()
    kept_out = np.setdiff1d(np.arange(160), written.rows)
    assert len(np.unique(written.rows)) == len(written.rows) == 157
    assert set(kept_out) <= set(made.context_indices_)
    assert sorted(y[kept_out]) == [0, 1, 2]
    assert made.adaptation_report().n_held_back == 157


@pytest.mark.parametrize("adaptation", ["gradient", "memory", "both"])
def test_no_time_leaves_the_frozen_model_and_says_so(classifier, clusters, adaptation):
    X, y, X_new, _ = clusters
    parameters = {"adaptation": adaptation, "guard": True, "step_size": "auto", "context_size": 40}
    made = classifier(time_limit=0, **parameters).fit(X, y)
    report = made.adaptation_report()
    assert not report.accepted
    assert report.n_steps == 0
    assert any("time limit" in said for said in (report.reason, *report.notes))
    assert (adaptation == "gradient") or any("families not written" in note for note in report.notes)
    np.testing.assert_array_equal(made.predict_proba(X_new), frozen_on_context(made, X, y).predict_proba(X_new))


def test_a_long_time_limit_changes_the_key_and_no_bit(classifier, clusters):
    X, y, X_new, _ = clusters
    cache = FastWeightCache()
    parameters = {"adaptation": "both", "guard": True, "step_size": "auto", "context_size": 40, "cache": cache}
    free, limited, longer = (classifier(time_limit=limit, **parameters).fit(X, y) for limit in (None, 1e6, 2e6))
    assert len({key_of(made) for made in (free, limited, longer)}) == 3
    np.testing.assert_array_equal(free.predict_proba(X_new), limited.predict_proba(X_new))
    assert not limited.adaptation_report().cache_hit
    assert limited.adaptation_report().notes == free.adaptation_report().notes == ()


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
    logits, embeddings, table = adapter.predict_with_embeddings(inner, X_new)
    assert table.shape == X_new.shape
    np.testing.assert_allclose(table, X_new, rtol=1e-6)
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


# Seen to fail: with the shares of memory and network exchanged.
def test_both_is_the_mixture_of_memory_and_adapted_network(classifier, clusters):
    X, y, X_new, y_new = clusters
    parameters = {"guard": False, "step_size": "auto", "n_steps": 15, "context_size": 40, "update_rule": "adamw"}
    both = classifier(adaptation="both", chunk_size=64, **parameters).fit(X, y)
    report, tensors = both.adaptation_report(), fast_weights(both)
    share = gradient_share(tensors)
    assert 0.01 < share < 0.99
    assert report.shares["TabPFN, adapted by gradient steps"] == share
    assert sum(report.shares.values()) == pytest.approx(1.0)
    assert report.n_steps > 15  # the memory's and the network's
    fitted = both._fitted

    def predicted(kept):
        given = fitted.rows, fitted.labels, fitted.codes, fitted.context
        base = adapter.load_base(fitted.estimator)
        return build_predictor(fitted.estimator, base, fitted.settings, kept, *given).predict_proba(X_new)

    memory = predicted({name: value for name, value in tensors.items() if name.startswith("memory:")})
    network = predicted({name: value for name, value in tensors.items() if name[0].isdigit()})
    assert np.abs(memory - network).max() > 0.1
    np.testing.assert_allclose(both.predict_proba(X_new), (1 - share) * memory + share * network, atol=2e-6, rtol=0)
    alone = classifier(adaptation="memory", **parameters).fit(X, y)
    assert set(fast_weights(alone)) == {name for name in tensors if name.startswith("memory:")}
    frozen = log_loss(y_new, plain_on_context(both, X, y).predict_proba(X_new))
    assert log_loss(y_new, both.predict_proba(X_new)) < frozen - 0.2


# Seen to fail: with "both" returning nothing where the gradient steps were refused.
def test_both_with_refused_gradient_is_the_memory_alone(classifier, clusters):
    X, y, X_new, _ = clusters
    parameters = {"guard": True, "n_steps": 10, "context_size": 40, "update_rule": "sgd"}
    both = classifier(adaptation="both", step_size=1e-9, **parameters).fit(X, y)
    memory = classifier(adaptation="memory", step_size="auto", **parameters).fit(X, y)
    assert both.adaptation_report().accepted
    assert both.adaptation_report().reason.startswith("memory accepted: ")
    assert "; then gradient steps refused: " in both.adaptation_report().reason
    assert both.adaptation_report().shares == memory.adaptation_report().shares
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


# Seen to fail: with the share of the adapted network left at 1 where no row was held back.
def test_without_evidence_the_memory_keeps_its_prior_share(classifier, clusters):
    X, y, *_ = clusters
    made = classifier(adaptation="both", guard=False, step_size=1e-3, n_steps=2, context_size=40).fit(X, y)
    report = made.adaptation_report()
    share = 1.0 - made._fitted.settings.recipe.memory_share
    assert report.shares["TabPFN, adapted by gradient steps"] == pytest.approx(share)
    assert sum(report.shares.values()) == pytest.approx(1.0)
    assert report.loss_frozen is not None
    assert report.loss_adapted is not None
    assert report.n_held_back > 0


# Seen to fail: with the comparison made on what predicts alone.
def test_the_report_says_where_more_context_would_be_better(monkeypatch):
    from sklearn.datasets import load_digits

    from tttabpfn import TTTTabPFNClassifier
    from tttabpfn.adaptation import memory as module

    X, y = load_digits(return_X_y=True)
    parameters = {"n_steps": 1, "adaptation": "memory", "random_state": 0}
    few = TTTTabPFNClassifier(context_size=40, cache=FastWeightCache(), **parameters).fit(X[:300], y[:300])
    (note,) = few.adaptation_report().notes
    assert note.startswith("TabPFN with all 300 rows as context does better by ")
    assert note.endswith("on 75 rows: try context_size=None")
    most = TTTTabPFNClassifier(context_size=240, cache=FastWeightCache(), **parameters).fit(X[:300], y[:300])
    assert not most.adaptation_report().notes
    monkeypatch.setattr(module, "_CLEAR", 10.0)
    again = TTTTabPFNClassifier(context_size=40, cache=FastWeightCache(), **parameters).fit(X[:300], y[:300])
    assert not again.adaptation_report().notes
