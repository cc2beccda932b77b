"""The wrapped classifier before anything loads: its checkpoints, declared limits and settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from sklearn.base import clone
from tabpfn import TabPFNClassifier
from tabpfn.base import ModelSpecs
from tabpfn.inference_config import cpu_sample_limit
from tabpfn.model_loading import resolve_model_path, resolve_model_version
from tabpfn.utils import infer_devices, infer_random_state

from tttabpfn import checkpoints


def default_estimator() -> TabPFNClassifier:
    """Return the `TabPFNClassifier` that is adapted when the user gives none: the bundled checkpoint, offline.

    Returns
    -------
    TabPFNClassifier
        Unfitted.
    """
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
        Settings by name; empty where they are not known before loading (a `.ckpt`, a model still to be downloaded).

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
    declared.update(estimator.inference_config if isinstance(estimator.inference_config, dict) else {})
    return declared


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
    if isinstance(given, ModelSpecs) or (isinstance(given, list) and given and isinstance(given[0], ModelSpecs)):
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
    """Most context rows that the wrapped estimator takes without being told to ignore its limits.

    Parameters
    ----------
    estimator : TabPFNClassifier
        Unfitted.
    declared : dict
        What `declared_limits` returned.

    Returns
    -------
    int or None
        None where it is not known before the weights load.
    """
    most = declared.get("MAX_NUMBER_OF_SAMPLES")
    on_cpu = all(device.type == "cpu" for device in infer_devices(estimator.device))
    if most is None or not on_cpu or is_bundled(estimator):
        return most
    paths = checkpoint_paths(estimator)
    limits = [cpu_sample_limit(resolve_model_version(path)) for path in paths]
    return min([int(most), *limits])


def check_estimator_settings(estimator: TabPFNClassifier) -> None:
    """Refuse settings of the wrapped estimator that adaptation cannot honour.

    Parameters
    ----------
    estimator : TabPFNClassifier
        Unfitted.

    Raises
    ------
    ValueError
        Names the setting, what is allowed and what came.
    """
    if estimator.fit_mode == "batched":
        raise ValueError(
            'estimator.fit_mode must be "fit_preprocessors", "low_memory" or "fit_with_cache", got "batched".'
        )
    if estimator.differentiable_input:
        raise ValueError("estimator.differentiable_input must be False, got True.")


def with_settled_seed(estimator: TabPFNClassifier, fallback: int) -> TabPFNClassifier:
    """Return a clone whose `random_state` is an int, so that preparing, scoring and predicting draw the same ensemble.

    Parameters
    ----------
    estimator : TabPFNClassifier
        Unfitted; not changed.
    fallback : int
        Seed where the estimator's is None.

    Returns
    -------
    TabPFNClassifier
        For a random generator: with the seed that its own `fit` would draw.
    """
    settled = clone(estimator)
    if settled.random_state is None:
        settled.random_state = fallback
    elif not isinstance(settled.random_state, int | np.integer):
        settled.random_state, _ = infer_random_state(settled.random_state)
    return settled
