"""Tables of many rows: the network reads some, boosted trees read all, one fold is held back."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import make_blobs
from sklearn.metrics import log_loss

from tests.helpers import fast_weights
from tttabpfn.adaptation import adapt
from tttabpfn.adaptation.episodes import rows_to_read
from tttabpfn.adaptation.outcome import memory_of
from tttabpfn.adaptation.session import Session
from tttabpfn.memory.boosted import BoostedRecipe
from tttabpfn.prediction import predictor as predictor_module

LIMITS = {"many_rows": 300, "crossed_rows": 200, "max_scored_rows": 50, "max_rows": 250}


@pytest.fixture(scope="module")
def clusters():
    X, y = make_blobs(700, 5, centers=3, cluster_std=4.0, random_state=0)
    return X[:600], y[:600], X[600:], y[600:]


def with_limits(fitted, **changes):
    """The same fit with other limits in its recipe: tables of many rows are slow to test."""
    settings = fitted._fitted.settings
    boosted = dataclasses.replace(BoostedRecipe(), updates=30)
    memory = dataclasses.replace(settings.recipe.memory, boosted=boosted, **{**LIMITS, **changes})
    recipe = dataclasses.replace(settings.recipe, memory=memory)
    fitted._fitted = dataclasses.replace(fitted._fitted, settings=dataclasses.replace(settings, recipe=recipe))
    return fitted


@pytest.fixture
def made(classifier, clusters):
    X, y, *_ = clusters
    parameters = {"adaptation": "memory", "guard": True, "step_size": "auto", "n_steps": 8, "context_size": 40}
    return lambda **changes: with_limits(classifier(**parameters).fit(X, y), **changes)


def test_rows_to_read_hold_the_context_and_keep_class_shares():
    labels = np.array([0] * 800 + [1] * 200)
    context = np.array([3, 900, 901])
    rows = rows_to_read(labels, context, 100, seed=0)
    assert len(rows) == 103
    assert set(context) <= set(rows)
    assert np.array_equal(rows, np.unique(rows))
    assert abs((labels[rows] == 1).mean() - 0.2) < 0.03
    assert np.array_equal(rows, rows_to_read(labels, context, 100, seed=0))
    assert not np.array_equal(rows, rows_to_read(labels, context, 100, seed=1))
    assert np.array_equal(rows_to_read(labels, context, 997, seed=0), np.arange(1000))


def test_the_session_numbers_the_rows_that_it_reads(made, clusters):
    X, y, *_ = clusters
    session = made()._lookup().session()
    assert isinstance(session, Session)
    assert session.n_demonstrations == 600
    assert len(session.labels) == 290
    assert session.n_unread == 310
    fitted = made()
    read = session.read_rows
    np.testing.assert_array_equal(read[session.split.context], fitted.context_indices_)
    np.testing.assert_array_equal(session.labels, y[read])
    unread = session.unread_rows()
    np.testing.assert_array_equal(unread.labels, np.delete(y, read))
    assert unread.cells.shape == (310, 5)
    np.testing.assert_allclose(unread.cells, np.delete(X, read, axis=0), rtol=1e-6)


def test_the_report_says_who_read_what(made):
    report = made().adapt().adaptation_report()
    assert "TabPFN reads 250 of 560 rows outside the context, boosted trees all" in report.notes
    assert report.n_demonstrations == 600
    # A quarter of what is outside the context and read: gradient steps are judged on these, so none is left out.
    assert report.n_held_back == 62


# Seen to fail: with the held-back rows written by all parts.
def test_held_back_rows_are_written_by_no_part_that_scores_them(made, clusters):
    _, y, *_ = clusters
    noise = np.random.default_rng(0).permutation(y)
    fitted = made()
    fitted._fitted = dataclasses.replace(fitted._fitted, labels=noise, codes=noise, data_print="noise")
    report = fitted.adaptation_report()
    # Labels without a pattern: whoever knew them would seem to gain.
    assert report.loss_adapted > report.loss_frozen - 0.02


def test_quality_rises_with_rows_that_the_network_does_not_read(classifier):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2400, 4))
    y = ((X[:, 0] > 0) ^ (X[:, 1] > 0)).astype(np.int64)
    losses = []
    for n_rows in (340, 2000):
        parameters = {"adaptation": "memory", "guard": True, "step_size": "auto", "n_steps": 8, "context_size": 40}
        fitted = with_limits(classifier(**parameters).fit(X[:n_rows], y[:n_rows]), max_scored_rows=100)
        losses.append(log_loss(y[2000:], fitted.predict_proba(X[2000:])))
    assert losses[1] < 0.7 * losses[0]


def test_rows_held_back_for_gradient_steps_are_among_the_scored(made):
    fitted = made()
    session, settings = fitted._lookup().session(), fitted._fitted.settings
    both = dataclasses.replace(settings, adaptation="both")
    adapt(session, both)
    (written,) = session.frozen_memories.values()
    assert len(session.split.held_back) >= 50
    assert set(session.split.held_back) <= set(written.rows)
    assert len(written.rows) == len(session.split.held_back)


def test_a_pickle_without_its_session_reads_columns_alike(made, clusters):
    *_, X_new, _ = clusters
    fitted = made()
    expected = fitted.predict_proba(X_new)
    lookup = pickle.loads(pickle.dumps(fitted))._lookup()
    own = lookup.fitted
    rebuilt = predictor_module.build_predictor(
        own.estimator,
        lookup.base,
        own.settings,
        fitted._lookup().entry().tensors,
        own.rows,
        own.labels,
        own.codes,
        own.context,
    )
    np.testing.assert_allclose(rebuilt.predict_proba(X_new), expected, atol=1e-6)


def test_rows_are_predicted_part_by_part(made, clusters, monkeypatch):
    *_, X_new, _ = clusters
    fitted = made()
    whole = fitted.predict_proba(X_new)
    monkeypatch.setattr(predictor_module, "ROWS_PER_PASS", 16)
    again = fitted.predict_proba(X_new)
    np.testing.assert_allclose(again, whole, atol=1e-5)
    np.testing.assert_array_equal(fitted.predict_proba(X_new[::-1])[::-1], again)


# Seen to fail: with a row for each that the network has read.
def test_all_demonstrations_are_embedded(made, clusters):
    X, *_ = clusters
    fitted = made().adapt()
    embedded = fitted._lookup().embed_demonstrations()
    assert len(embedded) == len(X)
    outside = np.setdiff1d(np.arange(len(X)), fitted.context_indices_)
    np.testing.assert_allclose(embedded[outside], fitted.transform(X[outside]), atol=1e-4)


def test_few_rows_are_written_as_before(made):
    fitted = made(many_rows=601, crossed_rows=5000, max_rows=20_000)
    fitted.adapt()
    assert not any(part.kind == "boosted" for part in memory_of(fast_weights(fitted)).parts)
    assert fitted.adaptation_report().n_held_back == 597


# Seen to fail: with class shares of levels that held-back labels went into; the memory then "gained" .06.
def test_levels_without_a_pattern_gain_nothing(classifier):
    rng = np.random.default_rng(0)
    X = np.column_stack(
        [rng.integers(0, 60, size=(300, 3)).astype(str), rng.normal(size=(300, 1)).round(2).astype(str)]
    )
    frame = pd.DataFrame(X, columns=list("abcd")).astype({"d": float})
    y = rng.integers(0, 2, size=300)
    parameters = {"adaptation": "memory", "guard": True, "step_size": "auto", "n_steps": 32, "context_size": 60}
    report = classifier(**parameters).fit(frame, y).adaptation_report()
    assert report.loss_adapted > report.loss_frozen - 0.03
