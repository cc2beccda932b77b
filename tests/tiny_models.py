"""Small randomly initialised models of every TabPFN generation, saved as safetensors checkpoints."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from tabpfn.architectures import ARCHITECTURES
from tabpfn.checkpoint import save_as_safetensors
from tabpfn.constants import ModelVersion
from tabpfn.inference_config import InferenceConfig

# The newer generations bring their inference settings in their checkpoints; v2.5 is the last with a default.
GENERATIONS = {
    "v2": ("tabpfn_v2", ModelVersion.V2, {"emsize": 32, "nlayers": 4, "nhead": 2}),
    "v2.5": ("tabpfn_v2_5", ModelVersion.V2_5, {"emsize": 32, "nlayers": 4, "nhead": 2}),
    "v2.6": ("tabpfn_v2_6", ModelVersion.V2_5, {"emsize": 32, "nlayers": 4, "nhead": 2}),
    "v3": ("tabpfn_v3", ModelVersion.V2_5, {}),
    "v3.5": ("tabpfn_v3_5", ModelVersion.V2_5, {}),
}
SMALL_V3 = {
    "embed_dim": 16,
    "dist_embed_num_blocks": 1,
    "dist_embed_num_heads": 2,
    "dist_embed_num_inducing_points": 8,
    "feat_agg_num_blocks": 1,
    "feat_agg_num_heads": 2,
    "feat_agg_num_cls_tokens": 2,
    "nlayers": 4,
    "icl_num_heads": 2,
    "decoder_head_dim": 8,
    "decoder_num_heads": 2,
    "softmax_scaling_mlp_hidden_dim": 8,
}


def save_tiny_checkpoint(generation: str, folder: Path, seed: int = 0) -> Path:
    """Save a random model of the generation, with that generation's default inference settings."""
    architecture_name, version, sizes = GENERATIONS[generation]
    module = ARCHITECTURES[architecture_name]
    sizes = sizes or SMALL_V3
    config, _ = module.parse_config({"max_num_classes": 10, "num_buckets": 100, **sizes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = module.get_architecture(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1 and not parameter.any():
                    parameter.normal_(std=0.05)
    path = folder / f"tiny-{generation}.safetensors"
    checkpoint = {
        "state_dict": model.state_dict(),
        "config": dataclasses.asdict(config),
        "architecture_name": architecture_name,
        "inference_config": dataclasses.asdict(InferenceConfig.get_default("multiclass", version)),
    }
    save_as_safetensors(checkpoint, path)
    return path
