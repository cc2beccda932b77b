"""Selections pick what they name, in the model's order, and stacking is undone by unstacking."""

import pytest
import torch

from tttabpfn.fast_weights.selection import StackLayout, select_names

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


# Seen to fail: with all names for "mlp".
def test_named_selections():
    assert select_names(SHAPES, "all") == list(SHAPES)
    assert select_names(SHAPES, "in_context") == list(SHAPES)  # no row stage here
    assert select_names(SHAPES, "mlp") == [name for name in SHAPES if ".mlp." in name]
    assert select_names(SHAPES, "attention") == [name for name in SHAPES if ".attn." in name]
    assert select_names(SHAPES, "last_quarter") == [name for name in SHAPES if name.startswith(("blocks.3", "head"))]


def test_patterns_keep_the_models_order_and_overlap():
    patterns = ["head.*", "blocks.[01].mlp.*", "*.0.mlp.0.weight"]
    wanted = ["blocks.0.mlp.0.weight", "blocks.0.mlp.0.bias", "blocks.1.mlp.0.weight", "head.weight"]
    assert select_names(SHAPES, patterns) == wanted


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ("half", "fast_weights must be one of 'in_context', 'all', 'mlp', 'attention', 'last_quarter' or a list"),
        (["head.*", "tail.*"], "fast_weights pattern 'tail.*' matches no parameter; names look like embed.weight, bl"),
        (["HEAD.*"], "fast_weights pattern 'HEAD.*' matches no parameter"),
    ],
)
def test_selections_that_pick_nothing_are_refused(selection, message):
    with pytest.raises(ValueError) as caught:
        select_names(SHAPES, selection)
    assert str(caught.value).startswith(message)


def test_a_named_selection_of_a_model_without_that_part_is_refused():
    with pytest.raises(ValueError, match="fast_weights='mlp' selects no parameter of this model"):
        select_names({"weight": (2, 2)}, "mlp")


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
