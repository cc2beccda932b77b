"""Shared by all tests: tiny checkpoints of every TabPFN generation, small tables, and classifiers on them."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: xdist's workers share the cores

import warnings
from pathlib import Path

import pytest
import torch
from sklearn.datasets import make_classification
from tabpfn import TabPFNClassifier

from tttabpfn import FastWeightCache, TTTTabPFNClassifier

from .tiny_models import save_tiny_checkpoint


@pytest.fixture(scope="session", autouse=True)
def torch_testing_is_loaded():
    """Let `torch.testing` load its parts now: it inspects all modules, which makes TabPFN's old names warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.testing.assert_close(torch.zeros(1), torch.zeros(1))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """A function from a generation's name to the path of a small random model of it."""
    folder = tmp_path_factory.mktemp("checkpoints")
    saved: dict[str, Path] = {}

    def path(generation: str = "v3") -> Path:
        if generation not in saved:
            saved[generation] = save_tiny_checkpoint(generation, folder)
        return saved[generation]

    return path


@pytest.fixture(scope="session")
def tiny_tabpfn(tiny_checkpoint):
    """A function that returns an unfitted `TabPFNClassifier` on a tiny model."""

    def estimator(generation: str = "v3", **parameters) -> TabPFNClassifier:
        settings = {"n_estimators": 2, "device": "cpu", "random_state": 0, **parameters}
        return TabPFNClassifier(model_path=str(tiny_checkpoint(generation)), **settings)

    return estimator


@pytest.fixture(scope="session")
def classifier(tiny_tabpfn):
    """A function that returns an unfitted classifier on a tiny model, with few gradient steps and its own cache."""

    def make(generation: str = "v3", *, inner: dict | None = None, **parameters) -> TTTTabPFNClassifier:
        settings = {
            "step_size": 1e-3,
            "n_steps": 2,
            "context_size": 24,
            "chunk_size": 16,
            "guard": False,
            "adaptation": "gradient",
            "random_state": 0,
            **parameters,
        }
        settings.setdefault("cache", FastWeightCache())
        settings.setdefault("estimator", tiny_tabpfn(generation, **(inner or {})))
        return TTTTabPFNClassifier(**settings)

    return make


@pytest.fixture(scope="session")
def table():
    """80 rows of 5 numbers in 3 classes to fit, 30 rows to predict."""
    X, y = make_classification(110, 5, n_informative=4, n_redundant=0, n_classes=3, random_state=0)
    return X[:80], y[:80], X[80:], y[80:]
