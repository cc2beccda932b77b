"""The bundled checkpoint: small, loadable by plain TabPFN, and better than chance by a wide margin."""

import json

import numpy as np
import pytest
from safetensors import safe_open
from sklearn.datasets import load_breast_cancer, load_iris, load_wine
from sklearn.metrics import roc_auc_score
from tabpfn import TabPFNClassifier

from tttabpfn import checkpoints
from tttabpfn.pretraining.config import load_config

LIMIT = 16 * 2**20


def test_the_file_fits_in_a_wheel_and_holds_what_the_recipe_says():
    path = checkpoints.bundled_model_path()
    assert path.stat().st_size <= LIMIT
    config = load_config("cpu")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    stored = json.loads(metadata["config"])
    assert json.loads(metadata["architecture_name"]) == config.architecture
    assert {name: stored[name] for name in config.model} == config.model
    inference = json.loads(metadata["inference_config"])
    assert inference["FINGERPRINT_FEATURE"] is False
    assert [t["name"] for t in inference["PREPROCESS_TRANSFORMS"]] == ["none", "quantile_uni_coarse"]


@pytest.mark.parametrize(("load", "least"), [(load_iris, 0.98), (load_wine, 0.98), (load_breast_cancer, 0.97)])
def test_plain_tabpfn_predicts_well_from_eighty_rows(load, least):
    X, y = load(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    train, test = order[:80], order[80:]
    model = TabPFNClassifier(
        model_path=str(checkpoints.bundled_model_path()), device="cpu", n_estimators=2, random_state=0
    )
    probabilities = model.fit(X[train], y[train]).predict_proba(X[test])
    scores = probabilities if probabilities.shape[1] > 2 else probabilities[:, 1]
    assert roc_auc_score(y[test], scores, multi_class="ovo") >= least


def test_a_missing_file_says_so(monkeypatch):
    monkeypatch.setattr(checkpoints, "BUNDLED_NAME", "none.safetensors")
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors; reinstall"):
        checkpoints.bundled_model_path()
