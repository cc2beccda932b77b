"""The wrapped classifier before anything loads: its checkpoints, declared limits and settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from sklearn.base import clone
from tabpfn import TabPFNClassifier
from tabpfn.base import ModelSpecs
from tabpfn.inference_config import InferenceConfig, cpu_sample_limit
from tabpfn.model_loading import resolve_model_path, resolve_model_version
from tabpfn.settings import settings
from tabpfn.utils import infer_devices, infer_random_state

from tttabpfn import checkpoints
from tttabpfn.tabpfn_adapter.estimator_values import check_values

HALF_PRECISIONS = (torch.bfloat16, torch.float16)
"""Forced precisions of predictions in which nothing can be trained."""
PRECISIONS = ("auto", "autocast", torch.float32, torch.float64, *HALF_PRECISIONS)
"""What `inference_precision` may be."""


def default_estimator() -> TabPFNClassifier:
    """The unfitted classifier that is adapted when the user gives none: on the bundled checkpoint, offline."""
    path = str(checkpoints.bundled_model_path())
    return TabPFNClassifier(model_path=path, inference_config={"TRANSFORM_DATES": True})


def declared_limits(estimator: TabPFNClassifier) -> dict[str, Any]:
    """Inference settings declared in the checkpoint's header, read without loading any weights.

    Parameters
    ----------
    estimator : TabPFNClassifier
        Unfitted.

    Returns
    -------
    dict
        Settings by name: the checkpoint's, or those of models in memory, with the user's own over them. A `.ckpt` or a
        model still to be downloaded tells none before it is loaded.

    Raises
    ------
    FileNotFoundError
        If a checkpoint path was given that does not exist.
    ValueError
        If a safetensors checkpoint is damaged.
    """
    declared: dict[str, Any] = {}
    for path in checkpoint_paths(estimator):
        if not path.exists():
            if _is_official_name(path):
                continue  # TabPFN knows where to get it, which the user asked for by this name
            raise FileNotFoundError(f"estimator.model_path: no checkpoint at {str(path)!r}.")
        if path.suffix == ".safetensors":
            try:
                with safe_open(str(path), framework="pt") as file:
                    header = file.metadata() or {}
                declared.update(json.loads(header.get("inference_config", "{}")))
            except (SafetensorError, ValueError, OSError) as error:
                raise ValueError(
                    f"estimator.model_path: {str(path)!r} is not a readable checkpoint: {error}"
                ) from error
    for specs in _models_in_memory(estimator):
        declared.update(vars(specs.inference_config))
    declared.update(_own_settings(estimator))
    return declared


def _models_in_memory(estimator: TabPFNClassifier) -> list[ModelSpecs]:
    given = estimator.model_path if isinstance(estimator.model_path, list) else [estimator.model_path]
    return [specs for specs in given if isinstance(specs, ModelSpecs)]


def _own_settings(estimator: TabPFNClassifier) -> dict[str, Any]:
    """Inference settings that the user gave: some of them by name, or all."""
    given = estimator.inference_config
    return vars(given) if isinstance(given, InferenceConfig) else dict(given or {})


def checkpoint_paths(estimator: TabPFNClassifier) -> list[Path]:
    """Paths of the checkpoints an estimator names; empty for models given in memory.

    Parameters
    ----------
    estimator : TabPFNClassifier
        Unfitted.

    Returns
    -------
    list of Path
        Existing or not.
    """
    given = estimator.model_path
    if _models_in_memory(estimator):
        return []
    if isinstance(given, str | Path) and str(given) != "auto":
        return [Path(given)]
    if isinstance(given, list):
        return [Path(item) for item in given]
    paths, *_ = resolve_model_path(model_path=None, which="classifier")
    return [Path(path) for path in paths]


def _is_official_name(path: Path) -> bool:
    return path.name.startswith("tabpfn-v")


def is_bundled(estimator: TabPFNClassifier) -> bool:
    """Whether an estimator names the bundled checkpoint."""
    paths = checkpoint_paths(estimator)
    return len(paths) == 1 and paths[0].resolve().parent == Path(checkpoints.__file__).resolve().parent


def max_context_rows(estimator: TabPFNClassifier, declared: dict[str, Any]) -> int | None:
    """Context rows that the wrapped estimator takes at most unless told to ignore its limits; None: not known yet.

    `declared` is what `declared_limits` returned.
    """
    if estimator.ignore_pretraining_limits:
        return None
    limits = [declared.get("MAX_NUMBER_OF_SAMPLES")]
    on_cpu = any(device.type == "cpu" for device in infer_devices(estimator.device))
    if on_cpu and not is_bundled(estimator) and not settings.tabpfn.allow_cpu_large_dataset:
        limits += _cpu_limits(estimator, declared)
    return min((int(limit) for limit in limits if limit is not None), default=None)


def _cpu_limits(estimator: TabPFNClassifier, declared: dict[str, Any]) -> list[int | None]:
    """Rows on a CPU: TabPFN goes by the generation, whatever a checkpoint's header declares."""
    paths = checkpoint_paths(estimator)
    own = _own_settings(estimator).get("MAX_CPU_SAMPLES")
    if own is not None or not paths:
        return [own if own is not None else declared.get("MAX_CPU_SAMPLES")]
    return [cpu_sample_limit(resolve_model_version(path)) for path in paths]


def max_features(estimator: TabPFNClassifier, declared: dict[str, Any]) -> int | None:
    """Columns that the wrapped estimator takes at most unless told to ignore its limits; None: not known yet.

    `declared` is what `declared_limits` returned. Dates and texts may become several columns each, which only TabPFN
    can count. The bundled base takes any number: of more than 500 each ensemble member sees a random part, and the
    memory reads them all.
    """
    if is_bundled(estimator):
        return None
    limit = declared.get("MAX_NUMBER_OF_FEATURES")
    return None if limit is None or estimator.ignore_pretraining_limits else int(limit)


def check_estimator_settings(estimator: TabPFNClassifier) -> None:
    """Check the wrapped estimator's settings that TabPFN itself would meet late, or never.

    Parameters
    ----------
    estimator : TabPFNClassifier
        Unfitted.

    Raises
    ------
    TypeError
        If a setting has a wrong type.
    ValueError
        If its value is out of range, adaptation cannot honour it, or the device is not there.
    """
    check_values(estimator)
    if estimator.fit_mode == "batched":
        raise ValueError(
            'estimator.fit_mode must be "fit_preprocessors", "low_memory" or "fit_with_cache", got "batched".'
        )
    if estimator.differentiable_input:
        raise ValueError("estimator.differentiable_input must be False, got True.")
    precision = estimator.inference_precision
    if not any(precision is allowed or precision == allowed for allowed in PRECISIONS):
        named = ", ".join(repr(allowed) for allowed in PRECISIONS)
        raise ValueError(f"estimator.inference_precision must be one of {named}, got {precision!r}.")


def with_dates(estimator: TabPFNClassifier) -> TabPFNClassifier:
    """A clone that expands columns of dates, which TabPFN refuses by default; itself if its settings say otherwise."""
    config = estimator.inference_config
    if isinstance(config, InferenceConfig) or "TRANSFORM_DATES" in (config or {}):
        return estimator
    return clone(estimator).set_params(inference_config={**(config or {}), "TRANSFORM_DATES": True})


def with_settled_seed(estimator: TabPFNClassifier, fallback: int) -> TabPFNClassifier:
    """A clone whose `random_state` is an int, so that preparing, scoring and predicting draw the same ensemble.

    `fallback` stands in for None; a random generator gives the seed that the estimator's own `fit` would draw.
    """
    settled = clone(estimator)
    if settled.random_state is None:
        settled.random_state = fallback
    elif not isinstance(settled.random_state, int | np.integer):
        settled.random_state, _ = infer_random_state(settled.random_state)
    return settled
