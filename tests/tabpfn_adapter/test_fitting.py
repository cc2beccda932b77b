"""A predictor made from the session's fitted preprocessing is the one that a fit of its own would give, bit for bit."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from tabpfn import TabPFNClassifier

from tttabpfn import FastWeightCache
from tttabpfn import tabpfn_adapter as adapter

from ..tiny_models import GENERATIONS

SETTINGS = {
    "plain": {},
    "float64": {"inference_precision": torch.float64},
    "autocast": {"inference_precision": "autocast", "kv_cache_precision": "int8"},
    # Its steps are fitted on the context at the first forward pass and must be remembered.
    "torch_preprocessing": {"inference_config": {"ENABLE_GPU_PREPROCESSING": True, "OUTLIER_REMOVAL_STD": 2.0}},
}


def _pair(estimator, X, y):
    """Both ways to a predictor with networks other than the base's."""
    base = adapter.load_base(estimator)
    fast = [{name: value.detach() * 1.01 for name, value in model.named_parameters()} for model in base.models]
    models = adapter.private_copies(base.models, fast, trainable=False)
    prepared = adapter.fit_tabpfn(estimator, base, X, y, fit_mode="fit_preprocessors")
    adapter.prepare_demonstrations(prepared, base, X, y)
    fresh = adapter.fit_tabpfn(estimator, base, X, y, models=models, fit_mode="fit_with_cache")
    return prepared, fresh, adapter.refit_with_cache(prepared, base, models)


# Seen to fail: without `keep_fitted_cache`.
@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_generation_predicts_the_same_bits(tiny_tabpfn, table, generation):
    X, y, X_new, _ = table
    prepared, fresh, reused = _pair(tiny_tabpfn(generation), X, y)
    wanted = fresh.predict_proba(X_new)
    np.testing.assert_array_equal(reused.predict_proba(X_new), wanted)
    assert not np.array_equal(prepared.predict_proba(X_new), wanted)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_every_setting_predicts_the_same_bits(tiny_tabpfn, table, settings):
    X, y, X_new, _ = table
    _, fresh, reused = _pair(tiny_tabpfn(**settings), X, y)
    np.testing.assert_array_equal(reused.predict_proba(X_new), fresh.predict_proba(X_new))
    assert (reused.fit_mode, reused.kv_cache_precision, reused.use_autocast_, reused.forced_inference_dtype_) == (
        fresh.fit_mode,
        fresh.kv_cache_precision,
        fresh.use_autocast_,
        fresh.forced_inference_dtype_,
    )


# Seen to fail: with its members not copied.
def test_the_fitted_one_is_neither_changed_nor_kept_alive(tiny_tabpfn, table):
    X, y, X_new, _ = table
    prepared, _, reused = _pair(tiny_tabpfn(), X, y)
    again = adapter.fit_tabpfn(tiny_tabpfn(), adapter.load_base(tiny_tabpfn()), X, y, fit_mode="fit_preprocessors")
    np.testing.assert_array_equal(prepared.predict_proba(X_new), again.predict_proba(X_new))
    rows, executor = (weakref.ref(prepared.executor_.ensemble_members[0].X_train), weakref.ref(prepared.executor_))
    wanted = reused.predict_proba(X_new)
    del prepared
    gc.collect()
    assert rows() is None
    assert executor() is None
    np.testing.assert_array_equal(reused.predict_proba(X_new), wanted)


@pytest.fixture
def fits(monkeypatch):
    counted = []
    real = TabPFNClassifier.fit
    monkeypatch.setattr(TabPFNClassifier, "fit", lambda self, X, y: counted.append(len(X)) or real(self, X, y))
    return counted


@pytest.mark.parametrize("settings", [{}, {"adaptation": "both"}, {"guard": True, "step_size": 5.0}], ids=str)
def test_preprocessing_is_fitted_once_for_all_candidates(classifier, table, tmp_path, fits, settings):
    X, y, X_new, _ = table
    cache = FastWeightCache(tmp_path)
    found = {
        rule: classifier(cache=cache, update_rule=rule, **settings).fit(X, y).predict_proba(X_new)
        for rule in ("sgd", "adamw")
    }
    assert fits == [24]
    for rule, wanted in found.items():
        # A cache that finds the fast weights on the disk has no session.
        other = classifier(cache=FastWeightCache(tmp_path), update_rule=rule, **settings).fit(X, y)
        np.testing.assert_array_equal(other.predict_proba(X_new), wanted)
    assert fits == [24] * 3


@pytest.mark.filterwarnings("ignore:You have `:UserWarning", "ignore:`y_pred` was renamed:FutureWarning")
def test_what_is_tuned_on_the_networks_predictions_is_tuned_anew(classifier, table, fits):
    X, y, _, _ = table
    tuned = {"eval_metric": "log_loss", "tuning_config": {"calibrate_temperature": True, "tuning_n_folds": 1}}
    fitted = classifier(inner=tuned, context_size=60).fit(X, y)
    fitted._lookup().session()
    session_alone = list(fits)
    fitted.predict(X)
    assert fits == session_alone * 2
    assert max(fits) == 60 > min(fits)


def test_threads_may_build_and_predict_from_one_session(classifier, table):
    X, y, X_new, _ = table
    sizes = [1e-3, 2e-3, 3e-3, 4e-3]

    def answer(size, cache):
        return classifier(cache=cache, step_size=size, n_steps=1).fit(X, y).predict_proba(X_new)

    together = FastWeightCache()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda size: answer(size, together), sizes))
    for size, probabilities in zip(sizes, found, strict=True):
        np.testing.assert_array_equal(probabilities, answer(size, FastWeightCache()))
