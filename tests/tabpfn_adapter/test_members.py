"""How many ensemble members adapt and predict."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch


def members(model) -> int:
    return len(model._lookup().predictor().inner.executor_.ensemble_members)


@pytest.mark.parametrize(("asked", "expected"), [("auto", 4), (2, 2), (6, 6)])
def test_half_the_members_adapt_where_their_number_is_left_open_and_all_that_were_asked_for(
    classifier, table, asked, expected
):
    X, y, *_ = table
    model = classifier(inner={"n_estimators": asked}, guard=False).fit(X, y)
    report = model.adaptation_report()
    assert report.accepted
    assert report.n_members == expected
    assert members(model) == expected


def test_a_refused_adaptation_predicts_with_all_members(classifier, tiny_tabpfn, table):
    X, y, X_test, _ = table
    model = classifier(inner={"n_estimators": "auto"}, guard=True, step_size=1e-9).fit(X, y)
    assert not model.adaptation_report().accepted
    assert members(model) == 8
    rows = model.context_indices_
    plain = tiny_tabpfn(n_estimators=8, inference_precision=torch.float32).fit(X[rows], y[rows])
    np.testing.assert_allclose(model.predict_proba(X_test), plain.predict_proba(X_test), atol=1e-5)


def test_another_process_builds_the_same_ensemble_without_the_session(classifier, table):
    X, y, X_test, _ = table
    model = classifier(inner={"n_estimators": "auto"}, guard=False).fit(X, y)
    expected = model.predict_proba(X_test)
    packed = pickle.dumps(model)
    model.cache.clear()
    copied = pickle.loads(packed)
    assert members(copied) == 4
    np.testing.assert_array_equal(copied.predict_proba(X_test), expected)


def test_the_guard_compares_with_all_members_that_would_predict_otherwise(classifier, tiny_tabpfn, table):
    X, y, *_ = table
    model = classifier(inner={"n_estimators": "auto"}).fit(X, y)
    session = model._lookup().session()
    few, standing = session.scores.frozen_losses([0, 1, 2, 3]), session.scores.baseline_losses()
    context, held_back = session.split.guard_context, session.split.held_back
    assert set(context) == set(model.context_indices_)
    plain = tiny_tabpfn(n_estimators=8, inference_precision=torch.float32).fit(X[context], y[context])
    chosen = plain.predict_proba(X[held_back])[np.arange(len(held_back)), np.searchsorted(plain.classes_, y[held_back])]
    np.testing.assert_allclose(standing, -np.log(chosen), atol=1e-4)
    assert not np.allclose(few, standing, atol=1e-3)
    assert session.scores.worth_of_other_members() == max(0.0, (few - standing).mean())
