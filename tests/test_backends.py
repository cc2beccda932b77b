"""A forced backend reaches the updates of the classifier: it runs them or raises, and it leaves no other trace."""

import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

INTERPRETED = """
import sys
import numpy as np
from tabpfn import TabPFNClassifier
from tttabpfn import TTTTabPFNClassifier
estimator = TabPFNClassifier(model_path=sys.argv[1], n_estimators=1, device="cpu", random_state=0)
X, y, X_new = (np.load(f"{sys.argv[2]}/{name}.npy") for name in ("X", "y", "X_new"))
found = {}
for backend in ("torch", "triton"):
    clf = TTTTabPFNClassifier(
        estimator, step_size=1e-2, n_steps=2, context_size=24, chunk_size=16, guard=False, adaptation="gradient",
        fast_weights="mlp", backend=backend, random_state=0,
    ).fit(X, y)
    found[backend] = clf.predict_proba(X_new)
    assert clf.adaptation_report().n_steps == 2
    kernels = [name for name in sys.modules if name.startswith("tttabpfn.fast_weights.kernels.")]
    assert bool(kernels) == (backend == "triton"), (backend, kernels)
    found[backend + "_hit"] = clf.adaptation_report().cache_hit
np.savez(f"{sys.argv[2]}/found.npz", **found)
"""


# Seen to fail: with `backend` left out of `update_rules.update` in GradientPath.walk (no kernel is imported).
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is made for Linux alone")
def test_forced_triton_runs_the_kernels_and_agrees_with_torch(tiny_checkpoint, table, tmp_path):
    for name, values in zip(("X", "y", "X_new"), table, strict=False):
        np.save(tmp_path / f"{name}.npy", values)
    command = [sys.executable, "-c", INTERPRETED, str(tiny_checkpoint()), str(tmp_path)]
    run = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    found = np.load(tmp_path / "found.npz")
    np.testing.assert_allclose(found["triton"], found["torch"], atol=1e-5, rtol=0)
    assert not found["triton_hit"]


# Seen to fail: with `backend` left out of `update_rules.update` in GradientPath.walk.
@pytest.mark.parametrize("rule", ["muon", "sgd"])
def test_forced_triton_that_cannot_run_raises_and_leaves_nothing(classifier, table, monkeypatch, rule):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    fitted = classifier(backend="triton", update_rule=rule).fit(table[0], table[1])
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r'^backend="triton" cannot run (newton_schulz|step): '):
            fitted.predict(table[2])
    assert len(fitted.cache) == 0
    np.testing.assert_array_equal(
        fitted.set_params(backend="torch").fit(table[0], table[1]).predict_proba(table[2]),
        classifier(backend="torch", update_rule=rule).fit(table[0], table[1]).predict_proba(table[2]),
    )
