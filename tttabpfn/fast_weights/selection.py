"""Which of a model's parameters are fast weights, and how they are stacked for one batched update."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

NAMED_SELECTIONS = ("in_context", "all", "mlp", "attention", "last_quarter")

_BLOCK_INDEX = re.compile(r"^(?P<stack>.*?(?:blocks|layers))\.(?P<index>\d+)\.")
_MLP = re.compile(r"(^|\.)(mlp|linear1|linear2|feed_?forward|ffn?)(\.|$)")
_ATTENTION = re.compile(r"(^|[._])(attn|attention)")
_IN_CONTEXT = re.compile(r"^(icl_|output_|many_class_decoder|heads\.)")


def select_names(shapes: Mapping[str, Sequence[int]], selection: str | Sequence[str]) -> list[str]:
    """Names of the parameters that a selection picks.

    Parameters
    ----------
    shapes : mapping of str to sequence of int
        Every parameter's name and shape, in the model's order.
    selection : {"in_context", "all", "mlp", "attention", "last_quarter"} or sequence of str
        ``"in_context"``: the stage that compares rows, behind the one that embeds each row (v3 and later); everything
        where a network has no such stage. ``"mlp"``: the feed-forward matrices. ``"attention"``: the attention
        projections. ``"last_quarter"``: everything in the last quarter of the deepest block stack, and what follows it.
        A sequence of str: glob patterns on parameter names (`fnmatch` rules, case-sensitive).

    Returns
    -------
    list of str
        Selected names in the model's order.

    Raises
    ------
    ValueError
        If nothing is selected, or a pattern matches no parameter.

    Examples
    --------
    >>> shapes = {"blocks.0.mlp.0.weight": (4, 2), "blocks.0.attn.q.weight": (2, 2), "norm.weight": (2,)}
    >>> select_names(shapes, "mlp")
    ['blocks.0.mlp.0.weight']
    >>> select_names(shapes, ["*.q.*", "norm.*"])
    ['blocks.0.attn.q.weight', 'norm.weight']
    """
    names = list(shapes)
    if isinstance(selection, str):
        if selection not in NAMED_SELECTIONS:
            allowed = ", ".join(repr(name) for name in NAMED_SELECTIONS)
            raise ValueError(f"fast_weights must be one of {allowed} or a list of glob patterns, got {selection!r}.")
        picked = _pick_named(names, selection)
        if not picked:
            raise ValueError(f"fast_weights={selection!r} selects no parameter of this model (it has {len(names)}).")
        return picked
    patterns = list(selection)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            examples = ", ".join(names[:3])
            raise ValueError(f"fast_weights pattern {pattern!r} matches no parameter; names look like {examples}.")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _pick_named(names: list[str], selection: str) -> list[str]:
    if selection == "in_context":
        return in_context_names(names) or names
    if selection == "all":
        return names
    if selection == "mlp":
        return [name for name in names if _MLP.search(name) and "softmax_scaling" not in name]
    if selection == "attention":
        return [name for name in names if _ATTENTION.search(name) and not _MLP.search(name.replace("_mlp.", "."))]
    return _last_quarter(names)


def in_context_names(names: Iterable[str]) -> list[str]:
    """Parameters of the in-context stage of a network that embeds each row first; none of any other network's.

    Parameters
    ----------
    names : iterable of str
        Parameter names.

    Returns
    -------
    list of str
        In the given order.

    Examples
    --------
    >>> in_context_names(["x_embed.weight", "icl_blocks.0.mlp.0.weight", "output_norm.weight"])
    ['icl_blocks.0.mlp.0.weight', 'output_norm.weight']
    >>> in_context_names(["transformer.blocks.0.mlp.weight", "output_projection.weight"])
    []
    """
    names = list(names)
    if not any(name.startswith("icl_") for name in names):
        return []
    return [name for name in names if _IN_CONTEXT.match(name)]


def _last_quarter(names: list[str]) -> list[str]:
    """Parameters of the last quarter of the deepest stack of blocks, and those that come after the stack."""
    depths: dict[str, int] = {}
    for name in names:
        if match := _BLOCK_INDEX.match(name):
            stack = match["stack"]
            depths[stack] = max(depths.get(stack, 0), int(match["index"]) + 1)
    if not depths:
        return []
    stack = max(depths, key=lambda key: depths[key])
    first = depths[stack] - max(1, depths[stack] // 4)
    in_stack = [match["stack"] == stack if (match := _BLOCK_INDEX.match(name)) else False for name in names]
    end_of_stack = max(position for position, inside in enumerate(in_stack) if inside)
    picked = []
    for position, name in enumerate(names):
        match = _BLOCK_INDEX.match(name)
        if in_stack[position] and match:
            if int(match["index"]) >= first:
                picked.append(name)
        elif position > end_of_stack:
            picked.append(name)
    return picked


@dataclass(frozen=True)
class StackLayout:
    """How named parameters of equal shape are stacked along a leading batch axis.

    Parameters
    ----------
    groups : tuple of (str, tuple of str)
        Each stack's key and its members' names in order.
    shapes : dict of str to tuple of int
        Each parameter's own shape.

    Examples
    --------
    >>> weights = {"a.weight": torch.zeros(3, 2), "b.weight": torch.ones(3, 2), "a.bias": torch.zeros(3)}
    >>> layout = StackLayout.of(weights)
    >>> stacks = layout.stack(weights)
    >>> {key: tuple(stack.shape) for key, stack in stacks.items()}
    {'3x2': (2, 3, 2), '3': (1, 3)}
    >>> torch.equal(layout.unstack(stacks)["b.weight"], weights["b.weight"])
    True
    """

    groups: tuple[tuple[str, tuple[str, ...]], ...]
    shapes: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> StackLayout:
        """Group parameters by shape.

        Parameters
        ----------
        weights : mapping of str to Tensor
            Named parameters. Tensors of three or more dimensions are flattened to matrices ``[D_out, -1]``.

        Returns
        -------
        StackLayout
            The layout, groups in order of first appearance.
        """
        groups: dict[str, list[str]] = {}
        for name, weight in weights.items():
            groups.setdefault("x".join(str(size) for size in _flat_shape(weight.shape)), []).append(name)
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        return cls(tuple((key, tuple(names)) for key, names in groups.items()), shapes)

    def stack(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Stack named tensors.

        Parameters
        ----------
        weights : mapping of str to Tensor
            Tensors with this layout's names and shapes.

        Returns
        -------
        dict of str to Tensor
            Stacks of shape ``[B, D_out, D_in]`` or ``[B, D]``; new memory.
        """
        return {
            key: torch.stack([weights[name].reshape(_flat_shape(self.shapes[name])) for name in names])
            for key, names in self.groups
        }

    def unstack(self, stacks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return each parameter's part of the stacks, as views.

        Parameters
        ----------
        stacks : mapping of str to Tensor
            What `stack` returned, or tensors of the same shapes.

        Returns
        -------
        dict of str to Tensor
            Tensors in the parameters' own shapes, sharing the stacks' memory.
        """
        named = {
            name: stacks[key][position].view(self.shapes[name])
            for key, names in self.groups
            for position, name in enumerate(names)
        }
        return {name: named[name] for name in self.shapes}


def _flat_shape(shape: Iterable[int]) -> tuple[int, ...]:
    sizes = tuple(shape)
    if len(sizes) <= 1:
        return sizes or (1,)
    width = 1
    for size in sizes[1:]:
        width *= size
    return (sizes[0], width)
