"""Several checkpoints in one estimator: every network of the ensemble adapts, and the invariants hold."""

import pickle

import numpy as np
import pytest
from tabpfn import TabPFNClassifier

from tttabpfn import FastWeightCache

from ..helpers import base_weights, fast_weights, key_of, plain_on_context
from ..tiny_models import save_tiny_checkpoint


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folders = [tmp_path_factory.mktemp("checkpoint") for _ in range(2)]
    return [str(save_tiny_checkpoint("v3", folder, seed=seed)) for seed, folder in enumerate(folders)]


@pytest.fixture
def several(classifier, paths):
    def make(*, order=1, **parameters):
        estimator = TabPFNClassifier(model_path=paths[::order], n_estimators=4, device="cpu", random_state=0)
        return classifier(estimator=estimator, **parameters)

    return make


# Seen to fail: with every member's `model_index` 0.
def test_every_network_adapts(several, table):
    X, y, X_new, _ = table
    fitted = several(n_steps=3).fit(X, y)
    found, base = fast_weights(fitted), base_weights(fitted.estimator)
    for position in ("0:", "1:"):
        moved = [name for name in found if name.startswith(position) and not found[name].equal(base[name])]
        assert len(moved) > 10
    frozen = several(n_steps=0).fit(X, y).predict_proba(X_new)
    assert np.abs(fitted.predict_proba(X_new) - frozen).max() > 1e-4


@pytest.mark.parametrize("off", [{"n_steps": 0}, {"step_size": 0}], ids=str)
def test_without_steps_it_is_tabpfn_bit_for_bit(several, table, off):
    X, y, X_new, _ = table
    fitted = several(**off).fit(X, y)
    np.testing.assert_array_equal(fitted.predict_proba(X_new), plain_on_context(fitted, X, y).predict_proba(X_new))


@pytest.mark.parametrize("adaptation", ["gradient", "both"])
def test_it_is_cached_and_pickled(several, table, tmp_path, adaptation):
    X, y, X_new, _ = table
    fitted = several(adaptation=adaptation, cache=FastWeightCache(tmp_path)).fit(X, y)
    wanted = fitted.predict_proba(X_new)
    report = fitted.adaptation_report()
    assert (report.accepted, report.cache_hit) == (True, False)
    again = several(adaptation=adaptation, cache=FastWeightCache(tmp_path)).fit(X, y)
    np.testing.assert_array_equal(again.predict_proba(X_new), wanted)
    assert again.adaptation_report().cache_hit is True
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).predict_proba(X_new), wanted)


def test_their_order_is_part_of_the_key(several, table):
    assert key_of(several().fit(table[0], table[1])) != key_of(several(order=-1).fit(table[0], table[1]))
