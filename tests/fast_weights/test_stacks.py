"""Stacking is undone by unstacking."""

import torch

from tttabpfn.fast_weights.stacks import StackLayout

SHAPES = {
    "embed.weight": (4, 2),
    "blocks.0.attn.q.weight": (4, 4),
    "blocks.0.mlp.0.weight": (8, 4),
    "blocks.0.mlp.0.bias": (8,),
    "blocks.1.attn.q.weight": (4, 4),
    "blocks.1.mlp.0.weight": (8, 4),
    "blocks.2.attn.q.weight": (4, 4),
    "blocks.2.mlp.0.weight": (8, 4),
    "blocks.3.attn.q.weight": (4, 4),
    "blocks.3.attn.softmax_scaling_layer.base_mlp.0.weight": (3, 1),
    "blocks.3.mlp.0.weight": (8, 4),
    "head.weight": (10, 4),
}


def test_stacks_hold_equal_shapes_and_come_apart_again():
    weights = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    weights["conv.weight"] = torch.randn(4, 2, 2)
    weights["scale"] = torch.tensor(3.0)
    layout = StackLayout.of(weights)
    stacks = layout.stack(weights)
    assert stacks["8x4"].shape == (4, 8, 4)
    assert stacks["4x4"].shape == (5, 4, 4)  # four attention matrices and the flattened kernel
    back = layout.unstack(stacks)
    assert list(back) == list(weights)
    assert all(torch.equal(back[name], weights[name]) for name in weights)
    assert all(back[name].shape == weights[name].shape for name in weights)
    stacks["8x4"][0] += 1
    assert not torch.equal(layout.unstack(stacks)["blocks.0.mlp.0.weight"], weights["blocks.0.mlp.0.weight"])
