"""Write trained weights as a checkpoint that plain ``TabPFNClassifier(model_path=...)`` loads."""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tabpfn.architectures import ARCHITECTURES
from tabpfn.constants import ModelVersion
from tabpfn.inference_config import InferenceConfig
from torch import Tensor, nn


def build_model(architecture: str, settings: Mapping[str, Any], seed: int) -> nn.Module:
    """Build a TabPFN architecture with freshly drawn weights, leaving torch's global generator as it was.

    Parameters
    ----------
    architecture : str
        A key of ``tabpfn.architectures.ARCHITECTURES``.
    settings : mapping
        Settings that the architecture's configuration class knows.
    seed : int
        Seed of the initial weights.

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    ValueError
        If the architecture or one of its settings is unknown.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture must be one of {sorted(ARCHITECTURES)}, got {architecture!r}")
    module = ARCHITECTURES[architecture]
    config, unused = module.parse_config(dict(settings))
    if unused:
        raise ValueError(f"model: {architecture} has no setting {sorted(unused)[0]!r}")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # Without regression, v3.5 has an empty head for it, of which torch says that nothing can be drawn for it.
        warnings.filterwarnings("ignore", "Initializing zero-element tensors", UserWarning)
        torch.manual_seed(seed)
        return module.get_architecture(config)


def inference_settings(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Complete the inference settings stored with the weights, from TabPFN's defaults for version 2.

    Parameters
    ----------
    overrides : mapping
        Fields of ``tabpfn.inference_config.InferenceConfig`` to set.

    Returns
    -------
    dict
        All fields, as plain values.
    """
    default = InferenceConfig.get_default("multiclass", ModelVersion.V2)
    return dataclasses.asdict(default.override_with_user_input_and_resolve_auto(dict(overrides)))


def _with_a_regression_head(
    model: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
    """Give v3.5 a regression head of one bucket where it has an empty one, at whose loading torch would warn."""
    head = "heads.output_projection"
    if head + ".weight" not in weights or model.get("num_buckets") != 0:
        return model, weights
    filled = dict(weights)
    filled[head + ".weight"] = torch.zeros(1, weights[head + ".weight"].shape[1])
    filled[head + ".bias"] = torch.zeros(1)
    filled["heads.regression_borders"] = torch.tensor([-1.0, 1.0])
    return {**model, "num_buckets": 1}, filled


def export_checkpoint(
    path: str | Path,
    weights: Mapping[str, Tensor],
    *,
    architecture: str,
    model: Mapping[str, Any],
    inference: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write weights and settings to one safetensors file, whole or not at all.

    Parameters
    ----------
    path : str or Path
        Destination; its folder must exist.
    weights : mapping of str to Tensor
        The model's state.
    architecture : str
        A key of ``tabpfn.architectures.ARCHITECTURES``.
    model, inference : mapping
        Settings of the architecture and of inference.
    dtype : torch.dtype
        Type that the floating-point weights are stored in.

    Returns
    -------
    Path
        `path`.
    """
    path = Path(path)
    model, weights = _with_a_regression_head(model, weights)
    config, _ = ARCHITECTURES[architecture].parse_config(dict(model))
    metadata = {
        "architecture_name": json.dumps(architecture),
        "config": json.dumps(dataclasses.asdict(config), sort_keys=True),
        "inference_config": json.dumps(inference_settings(inference), sort_keys=True),
    }
    tensors = {
        name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).detach().cpu().contiguous()
        for name, tensor in weights.items()
    }
    scratch = path.with_name(path.name + ".part")
    save_file(tensors, scratch, metadata=metadata)
    os.replace(scratch, path)
    return path
