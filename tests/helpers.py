"""What several test modules measure with."""

from __future__ import annotations

import os
import random
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from tabpfn import TabPFNClassifier

from tttabpfn import TTTTabPFNClassifier
from tttabpfn import tabpfn_adapter as adapter
from tttabpfn.adaptation import Settings

ATOL = 5e-6
"""Probabilities of one row alone against the same row among many, in float32: matrix products are blocked otherwise.
Seen on the bundled base: 1.4e-6."""


def global_state() -> dict[str, Any]:
    """What of the process a library must leave alone, as comparable values."""
    name, keys, *rest = np.random.get_state()
    return {
        "numpy": (name, keys.tobytes(), *rest),
        "python": random.getstate(),
        "torch": torch.get_rng_state().numpy().tobytes(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "filters": list(warnings.filters),
        "errstate": np.geterr(),
        "environment": dict(os.environ),
    }


def gradient_settings(**changes: Any) -> Settings:
    """Settings of a few gradient steps, for sessions and paths without an estimator above them."""
    plain = Settings(
        step_size=1e-3,
        n_steps=4,
        chunk_size=16,
        update_rule="adamw",
        fast_weights="in_context",
        guard=True,
        adaptation="gradient",
        backend="auto",
        seed=0,
    )
    return replace(plain, **changes)


def base_weights(estimator: TabPFNClassifier) -> dict[str, torch.Tensor]:
    """A copy of every tensor of the estimator's shared base."""
    models = adapter.load_base(estimator).models
    return {
        f"{i}:{name}": value.clone() for i, model in enumerate(models) for name, value in model.state_dict().items()
    }


def same_tensors(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Whether two dicts of tensors are equal bit for bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def fast_weights(fitted: TTTTabPFNClassifier) -> dict[str, torch.Tensor]:
    """What the adaptation left in the cache; adapts if nothing has yet."""
    return fitted._lookup().entry().tensors


def plain_on_context(fitted: TTTTabPFNClassifier, X: Any, y: Any) -> TabPFNClassifier:
    """The wrapped classifier, on its own, fitted on the rows that `fitted` keeps as context."""
    rows = fitted.context_indices_
    return clone(fitted._fitted.estimator).fit(X.iloc[rows] if hasattr(X, "iloc") else X[rows], np.asarray(y)[rows])


def key_of(fitted: TTTTabPFNClassifier) -> str:
    """The cache key of what the next prediction needs."""
    return fitted._lookup().keys.adaptation
