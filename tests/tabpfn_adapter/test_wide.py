"""Tables of more columns than the base was trained on."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import log_loss

from tttabpfn import FastWeightCache, TTTTabPFNClassifier


# Seen to fail: with TabPFN's own limit left in the base's settings.
def test_a_thousand_columns_need_no_switch():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(160, 1000))
    y = (X[:, :3].sum(axis=1) > 0).astype(np.int64)
    # Half of the columns say the same: a member that sees a part of them has something to go by.
    X[:, 3:500] = X[:, :3].sum(axis=1, keepdims=True) + rng.normal(size=(160, 497))
    clf = TTTTabPFNClassifier(n_steps=2, adaptation="memory", context_size=40, random_state=0, cache=FastWeightCache())
    clf.set_params(estimator__n_estimators=2).fit(X[:120], y[:120])
    probabilities = clf.predict_proba(X[120:])
    assert log_loss(y[120:], probabilities) < 0.4
    assert clf.estimate_cost(X[:120], y[:120]).peak_bytes < 4 * 1024**3
