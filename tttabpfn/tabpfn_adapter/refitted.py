"""The predicting TabPFN, made from one fitted on the same context already: its preprocessing is not run again."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from tabpfn import TabPFNClassifier
from tabpfn.base import create_inference_engine
from torch import nn

from tttabpfn.tabpfn_adapter.base import Base, cached_kv_precision, model_specs


def can_be_refitted(fitted: TabPFNClassifier) -> bool:
    """Whether nothing that a fit found depends on the networks, so that other ones may take its preprocessing over.

    Parameters
    ----------
    fitted : TabPFNClassifier
        Fitted with ``fit_mode="fit_preprocessors"``.

    Returns
    -------
    bool
        False with a `tuning_config`: temperature and thresholds are tuned on the networks' own predictions.
    """
    return fitted.tuning_config is None


def twin_of(fitted: TabPFNClassifier) -> TabPFNClassifier:
    """Another classifier with the attributes of a fitted one, to replace some of them.

    Parameters
    ----------
    fitted : TabPFNClassifier
        Not changed.

    Returns
    -------
    TabPFNClassifier
        It shares every attribute.
    """
    twin = object.__new__(type(fitted))
    vars(twin).update(vars(fitted))
    return twin


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
        Networks to predict with, by default the base's own.

    Returns
    -------
    TabPFNClassifier
        Fitted; it shares the fitted preprocessing, which transforming rows only reads.
    """
    networks = list(base.models if models is None else models)
    twin = twin_of(fitted)
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
