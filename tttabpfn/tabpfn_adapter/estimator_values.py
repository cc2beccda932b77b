"""Values of the wrapped classifier's settings, which TabPFN itself would meet late, or never."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tabpfn import TabPFNClassifier
from tabpfn.inference_config import InferenceConfig
from tabpfn.inference_tuning import ClassifierEvalMetrics, ClassifierTuningConfig
from tabpfn.utils import infer_devices

_FIT_MODES = ("fit_preprocessors", "low_memory", "fit_with_cache", "batched")
_METRICS = tuple(metric.value for metric in ClassifierEvalMetrics)
_FLAGS = (
    "differentiable_input",
    "balance_probabilities",
    "average_before_softmax",
    "ignore_pretraining_limits",
    "auto_scale_n_estimators",
    "enable_torch_compile",
    "keep_cache_on_device",
    "show_progress_bar",
)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool | np.bool_)


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not _is_flag(value)


def _is_auto(value: Any) -> bool:
    return isinstance(value, str) and value == "auto"


def _is_positive(value: Any) -> bool:
    number: Any = value
    return isinstance(value, numbers.Real) and not _is_flag(value) and bool(0 < number < np.inf)


def _is_metric(value: Any) -> bool:
    return value is None or isinstance(value, ClassifierEvalMetrics) or (isinstance(value, str) and value in _METRICS)


def _is_seed(value: Any) -> bool:
    if value is None or isinstance(value, np.random.RandomState | np.random.Generator):
        return True
    return _is_whole(value) and 0 <= value < 2**32


def _are_positions(value: Any) -> bool:
    return value is None or (isinstance(value, list | tuple | range) and all(_is_whole(one) for one in value))


_ALLOWED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "n_estimators": (
        'an int from 1 to 10000 or "auto"',
        lambda value: _is_auto(value) or (_is_whole(value) and 1 <= value <= 10_000),
    ),
    "softmax_temperature": (
        'a float from 1e-3 to 1e3 or "auto"',
        lambda value: _is_auto(value) or (_is_positive(value) and 1e-3 <= value <= 1e3),
    ),
    "fit_mode": (
        f"one of {', '.join(map(repr, _FIT_MODES[:-1]))}",
        lambda value: isinstance(value, str) and value in _FIT_MODES,
    ),
    "categorical_features_indices": ("None or a list of ints, the positions of columns", _are_positions),
    "n_preprocessing_jobs": (
        "an int from -1024 to 1024 and not 0",
        lambda value: _is_whole(value) and value != 0 and abs(value) <= 1024,
    ),
    "memory_saving_mode": (
        'True, False, "auto" or a number of gigabytes above 0',
        lambda value: _is_flag(value) or _is_auto(value) or _is_positive(value),
    ),
    "random_state": ("None, an int from 0 to 2**32 - 1 or a NumPy random generator", _is_seed),
    "inference_config": (
        "None, a dict of settings or an InferenceConfig",
        lambda value: value is None or isinstance(value, dict | InferenceConfig),
    ),
    "tuning_config": (
        "None, a dict or a ClassifierTuningConfig",
        lambda value: value is None or isinstance(value, dict | ClassifierTuningConfig),
    ),
    "eval_metric": (f"None or one of {', '.join(map(repr, _METRICS))}", _is_metric),
    **{name: ("True or False", _is_flag) for name in _FLAGS},
}


def check_values(estimator: TabPFNClassifier) -> None:
    """Check settings one by one; those of which nothing is known here are left to TabPFN.

    Parameters
    ----------
    estimator : TabPFNClassifier
        Unfitted.

    Raises
    ------
    ValueError
        If a setting is none of what is allowed, or names a device that is not there.
    """
    settings = estimator.get_params(deep=False)
    for name, (allowed, fits) in _ALLOWED.items():
        if name in settings and not fits(settings[name]):
            value = settings[name]
            raise ValueError(f"estimator.{name} must be {allowed}, got {value!r} of type {type(value).__name__}.")
    config = settings["inference_config"]
    if isinstance(config, dict):
        known = {field.name for field in dataclasses.fields(InferenceConfig)}
        unknown = sorted(set(map(str, config)) - known)
        if unknown:
            raise ValueError(
                f"estimator.inference_config: {unknown[0]!r} is no setting; known ones are {', '.join(sorted(known))}."
            )
    _check_device(settings["device"])


def _check_device(device: Any) -> None:
    """Raise a ValueError naming a device that torch cannot use here."""
    try:
        found = infer_devices(device)
    except (ValueError, RuntimeError, TypeError) as error:
        raise ValueError(f"estimator.device: {device!r} cannot be used: {error}") from error
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for one in found:
        if one.type == "cuda" and (one.index or 0) >= gpus:
            raise ValueError(f'estimator.device: {device!r} is not there: torch finds {gpus} CUDA GPUs; try "auto".')
        if one.type not in ("cpu", "cuda", "mps", "xpu"):
            raise ValueError(f'estimator.device: {device!r} holds no data; use "auto", "cpu" or "cuda".')
    if not found:
        raise ValueError(f'estimator.device: {device!r} names none; use "auto", "cpu" or "cuda".')
