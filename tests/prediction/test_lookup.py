"""One way from what `fit` stored to what predicts: keys made once per call, versions read once per process."""

from __future__ import annotations

import numpy as np
import pytest

from tttabpfn.prediction import entries
from tttabpfn.prediction.entries import Request


@pytest.fixture
def keyed(monkeypatch):
    """Bases that keys were made for, in order."""
    made = []
    real = Request.keys

    def counted(request, base_content):
        made.append(base_content)
        return real(request, base_content)

    monkeypatch.setattr(Request, "keys", counted)
    return made


# Seen to fail: with `keys` as a property of `Lookup` that makes them at each use.
def test_a_call_makes_its_keys_once(classifier, table, keyed):
    X, y, X_new, _ = table
    fitted = classifier(guard=True, adaptation="both").fit(X, y)
    assert keyed == []
    for calls, call in enumerate((fitted.adapt, lambda: fitted.predict_proba(X_new), fitted.adaptation_report)):
        call()
        assert len(keyed) == calls + 1


# Seen to fail: without `cache` on `versions`.
def test_versions_are_not_read_at_every_prediction(classifier, table, monkeypatch):
    X, y, X_new, _ = table
    fitted = classifier().fit(X, y)
    first = fitted.predict_proba(X_new)
    monkeypatch.setattr(entries, "version", lambda package: pytest.fail(f"the version of {package} was read again"))
    np.testing.assert_array_equal(fitted.predict_proba(X_new), first)


# Seen to fail: with the settings left out of `Request.of`.
def test_what_fit_stored_asks_for_another_entry_with_another_recipe(classifier, table):
    from dataclasses import replace

    fitted = classifier().fit(table[0], table[1])._fitted
    recipe = replace(fitted.settings.recipe, evidence=3.0)
    other = replace(fitted, settings=replace(fitted.settings, recipe=recipe))
    assert other.request.adaptation != fitted.request.adaptation
    assert other.request.session == fitted.request.session
