"""A fitted TabPFN: by its own `fit`, from one fitted on the same context already, or with some of another's members."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from tabpfn import TabPFNClassifier
from tabpfn.base import ModelSpecs, create_inference_engine, resolved_n_estimators
from tabpfn.preprocessing.ensemble import DEFAULT_N_ESTIMATORS
from torch import nn

from tttabpfn.tabpfn_adapter.base import Base, castable_copies


def fit_tabpfn(
    estimator: TabPFNClassifier,
    base: Base,
    X: Any,
    y: Any,
    *,
    models: Sequence[nn.Module] | None = None,
    fit_mode: str | None = None,
) -> TabPFNClassifier:
    """Fit a plain `TabPFNClassifier` on context rows, with the base's networks or with adapted ones.

    Parameters
    ----------
    estimator : TabPFNClassifier
        Settings; not changed.
    base : Base
        Its base.
    X, y : array-like of shape (n, n_features), (n,)
        Context rows and labels, as the user gave them.
    models : sequence of Module, optional
        Private networks to predict with, which TabPFN may cast. By default copies that share the base's tensors.
    fit_mode : str, optional
        By default the estimator's. Any given one turns ``inference_precision="auto"`` into float32, on every device,
        and ``"fit_with_cache"`` keeps the context's keys and values as computed.

    Returns
    -------
    TabPFNClassifier
        Fitted.
    """
    inner = clone(estimator)
    inner.model_path = model_specs(castable_copies(base.models) if models is None else models, base)
    # Both overrides are already applied in the base's settings, and TabPFN refuses to be told twice.
    inner.inference_config = None
    inner.softmax_temperature = "auto"
    if base.averages_logits:
        inner.average_before_softmax = True
    if fit_mode is not None:
        inner.fit_mode = fit_mode
        if fit_mode == "fit_with_cache":
            inner.kv_cache_precision = cached_kv_precision(inner)
        if inner.inference_precision == "auto":
            # What "auto" means, autocast to half precision, loses three digits and differs from the precision in which
            # the steps are taken and the guard compares. On a CPU it is no faster here.
            inner.inference_precision = torch.float32
    return inner.fit(X, y)


def model_specs(networks: Sequence[nn.Module], base: Base) -> list[ModelSpecs]:
    """What TabPFN takes as `model_path` for networks in memory, one of each of the base's architectures."""
    return [
        ModelSpecs(network, config, base.inference_config)
        for network, config in zip(networks, base.configs, strict=True)
    ]


def cached_kv_precision(estimator: TabPFNClassifier) -> str:
    """Precision of the context's keys and values: the user's, or the computed one, which TabPFN would quantize."""
    return "auto" if estimator.kv_cache_precision is None else estimator.kv_cache_precision


def can_be_refitted(fitted: TabPFNClassifier) -> bool:
    """Whether nothing that a fit found depends on the networks, so that other ones may take its preprocessing over."""
    # With a `tuning_config`, temperature and thresholds are tuned on the networks' own predictions.
    return fitted.tuning_config is None


def refit_with_cache(
    fitted: TabPFNClassifier, base: Base, models: Sequence[nn.Module] | None = None
) -> TabPFNClassifier:
    """What `fit_tabpfn` with ``fit_mode="fit_with_cache"`` returns, by way of a classifier fitted on the same rows.

    Parameters
    ----------
    fitted : TabPFNClassifier
        From `fit_tabpfn` with ``fit_mode="fit_preprocessors"`` and the same estimator, base, rows and labels; for which
        `can_be_refitted` holds. Not changed, and not kept alive by the new one.
    base : Base
        Its base.
    models : sequence of Module, optional
        Private networks to predict with, by default copies of the base's.

    Returns
    -------
    TabPFNClassifier
        Fitted; it shares the fitted preprocessing, which transforming rows only reads.
    """
    networks = castable_copies(base.models) if models is None else list(models)
    twin = copy.copy(fitted)
    twin.model_path = model_specs(networks, base)
    twin.models_ = networks
    twin.fit_mode = "fit_with_cache"
    twin.kv_cache_precision = cached_kv_precision(twin)
    members = [dataclasses.replace(member, gpu_preprocessor=_caching(member)) for member in _members(fitted)]
    twin.executor_ = create_inference_engine(
        fit_mode="fit_with_cache",
        # The members bring their rows; of these two the engine reads the shape.
        X_train=np.broadcast_to(np.float32(0), fitted.executor_.X_train_shape_before_preprocessing),
        y_train=np.empty(0, dtype=np.float32),
        ensemble_preprocessor=_Prepared(fitted.ensemble_preprocessor_, members),
        models=networks,
        devices_=twin.devices_,
        byte_size=fitted.executor_.dtype_byte_size,
        forced_inference_dtype_=twin.forced_inference_dtype_,
        memory_saving_mode=twin.memory_saving_mode,
        use_autocast_=twin.use_autocast_,
        task_type="multiclass",
        inference_mode=True,
        keep_cache_on_device=twin.keep_cache_on_device,
        kv_cache_precision=twin.kv_cache_precision,
        enable_torch_compile=twin.enable_torch_compile,
    )
    twin.executor_.ensemble_preprocessor = fitted.ensemble_preprocessor_
    return twin


def members_to_adapt(fitted: TabPFNClassifier, max_members: int) -> list[int]:
    """Members of an ensemble to adapt: all that were asked for, fewer where their number was left open.

    Parameters
    ----------
    fitted : TabPFNClassifier
        Fitted with ``fit_mode="fit_preprocessors"``.
    max_members : int
        Members where ``n_estimators="auto"`` came to TabPFN's usual number.

    Returns
    -------
    list of int
        Their positions, rising. All of them where a wide table takes more than usual to cover its columns, or where
        temperature and thresholds were tuned on all; else each checkpoint and each preprocessing in turn.
    """
    everyone = list(range(len(fitted.executor_.ensemble_members)))
    left_open = resolved_n_estimators(fitted) == "auto" and len(everyone) == DEFAULT_N_ESTIMATORS
    if not left_open or not can_be_refitted(fitted) or len(fitted.models_) > max_members:
        return everyone
    kinds: dict[tuple[int, str], list[int]] = {}
    for position, member in enumerate(fitted.executor_.ensemble_members):
        config = member.config
        kinds.setdefault((config._model_index, repr(config.preprocess_config)), []).append(position)
    rounds = max(map(len, kinds.values()))
    by_turns = [kind[turn] for turn in range(rounds) for kind in kinds.values() if turn < len(kind)]
    return sorted(by_turns[:max_members])


def with_members(fitted: TabPFNClassifier, members: Sequence[int]) -> TabPFNClassifier:
    """A classifier with some members of a fitted one, by position; it shares preprocessing and networks."""
    twin = copy.copy(fitted)
    twin.n_estimators_ = len(members)
    twin.executor_ = copy.copy(fitted.executor_)
    twin.executor_.ensemble_members = [fitted.executor_.ensemble_members[position] for position in members]
    return twin


def _members(fitted: TabPFNClassifier) -> list[Any]:
    return fitted.executor_.ensemble_members


def _caching(member: Any) -> Any:
    """A torch pipeline of one's own that keeps what it fits on the context, for rows that come without it."""
    if member.gpu_preprocessor is None:
        return None
    own = copy.deepcopy(member.gpu_preprocessor)
    own.keep_fitted_cache = True
    return own


class _Prepared:
    """Stands in for TabPFN's ensemble preprocessor where its members are fitted already."""

    def __init__(self, preprocessor: Any, members: list[Any]) -> None:
        self._preprocessor = preprocessor
        self._members = members

    def fit_transform_ensemble_members(self, X_train: Any, y_train: Any) -> list[Any]:
        return self._members

    def any_estimator_uses_gpu_svd(self) -> bool:
        return self._preprocessor.any_estimator_uses_gpu_svd()
