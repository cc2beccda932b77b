"""Candidates of a search share work, and come to the same bits as apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tttabpfn import FastWeightCache
from tttabpfn.fast_weights.update_rules import init_state, orthogonal_factors, update

SIZES = (3e-4, 1e-3, 5e-2)


def predict(classifier, table, cache, size, **parameters):
    X, y, X_test, _ = table
    return classifier(step_size=size, cache=cache, **parameters).fit(X, y).predict_proba(X_test)


@pytest.mark.parametrize("parameters", [{}, {"guard": True, "adaptation": "both"}, {"update_rule": "adamw"}])
def test_candidates_in_one_cache_predict_the_bits_of_candidates_apart(classifier, table, parameters):
    shared = FastWeightCache()
    for size in SIZES:
        together = predict(classifier, table, shared, size, **parameters)
        apart = predict(classifier, table, FastWeightCache(), size, **parameters)
        np.testing.assert_array_equal(together, apart)


def count_predictions(model, monkeypatch):
    calls = []
    inner = model._lookup().predictor().inner
    plain = inner.predict_proba
    monkeypatch.setattr(inner, "predict_proba", lambda X: calls.append(len(X)) or plain(X))
    return calls


# Seen to fail: with the entry's own key where it was refused, and without the copy.
def test_candidates_that_are_refused_share_their_predictions_and_nobody_can_change_them(classifier, table, monkeypatch):
    X, y, X_test, _ = table
    cache = FastWeightCache()
    models = [classifier(step_size=size, guard=True, cache=cache).fit(X, y) for size in (1e-9, 2e-9, 3e-9)]
    for model in models[:2]:
        assert not model.adaptation_report().accepted
    calls = count_predictions(models[0], monkeypatch)
    first = models[0].predict_proba(X_test)
    assert len(calls) == 1
    expected = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(models[1].predict_proba(X_test), expected)
    np.testing.assert_array_equal(models[2].predict_proba(X_test), expected)
    assert len(calls) == 1
    models[2].predict_proba(X_test[:5])
    assert len(calls) == 2


# Seen to fail: with predictions kept from the first adaptation on.
def test_a_single_adaptation_keeps_no_predictions(classifier, table, monkeypatch):
    X, y, X_test, _ = table
    model = classifier().fit(X, y)
    calls = count_predictions(model, monkeypatch)
    model.predict_proba(X_test)
    model.predict_proba(X_test)
    assert len(calls) == 2
    assert model._lookup().session().predictions.nbytes == 0


def test_orthogonal_factors_of_one_step_size_serve_another():
    draw = torch.Generator().manual_seed(0)
    weights = {"w": torch.randn(2, 6, 4, generator=draw), "b": torch.randn(2, 4, generator=draw)}
    gradients = {name: torch.randn(value.shape, generator=draw) for name, value in weights.items()}
    state = init_state("muon", weights)
    kept = orthogonal_factors(gradients, state)
    assert set(kept) == {"w"}
    served, _ = update("muon", weights, gradients, state, 0.02, orthogonal=kept)
    anew, _ = update("muon", weights, gradients, state, 0.02)
    for name in weights:
        assert torch.equal(served[name], anew[name])
    kept["w"] = torch.zeros_like(kept["w"])
    still, _ = update("muon", weights, gradients, state, 0.02, orthogonal=kept)
    assert torch.equal(still["w"], weights["w"])
