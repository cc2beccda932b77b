"""Selections pick what they name, in the model's order."""

import pytest

from tttabpfn.tabpfn_adapter import select_names

NAMES = [
    "embed.weight",
    "blocks.0.attn.q.weight",
    "blocks.0.mlp.0.weight",
    "blocks.0.mlp.0.bias",
    "blocks.1.attn.q.weight",
    "blocks.1.mlp.0.weight",
    "blocks.2.attn.q.weight",
    "blocks.2.mlp.0.weight",
    "blocks.3.attn.q.weight",
    "blocks.3.attn.softmax_scaling_layer.base_mlp.0.weight",
    "blocks.3.mlp.0.weight",
    "head.weight",
]


# Seen to fail: with all names for "mlp".
def test_named_selections():
    assert select_names(NAMES, "all") == NAMES
    assert select_names(NAMES, "in_context") == NAMES  # no row stage here
    assert select_names(NAMES, "mlp") == [name for name in NAMES if ".mlp." in name]
    assert select_names(NAMES, "attention") == [name for name in NAMES if ".attn." in name]
    assert select_names(NAMES, "last_quarter") == [name for name in NAMES if name.startswith(("blocks.3", "head"))]


def test_patterns_keep_the_models_order_and_overlap():
    patterns = ["head.*", "blocks.[01].mlp.*", "*.0.mlp.0.weight"]
    wanted = ["blocks.0.mlp.0.weight", "blocks.0.mlp.0.bias", "blocks.1.mlp.0.weight", "head.weight"]
    assert select_names(NAMES, patterns) == wanted


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
        select_names(NAMES, selection)
    assert str(caught.value).startswith(message)


def test_a_named_selection_of_a_model_without_that_part_is_refused():
    with pytest.raises(ValueError, match="fast_weights='mlp' selects no parameter of this model"):
        select_names(["weight"], "mlp")
