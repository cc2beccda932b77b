"""Which of a TabPFN network's parameters are fast weights: named selections and glob patterns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from tttabpfn.choices import SELECTIONS

NAMED_SELECTIONS = tuple(SELECTIONS)

_BLOCK_INDEX = re.compile(r"^(?P<stack>.*?(?:blocks|layers))\.(?P<index>\d+)\.")
_MLP = re.compile(r"(^|\.)(mlp|linear1|linear2|feed_?forward|ffn?)(\.|$)")
_ATTENTION = re.compile(r"(^|[._])(attn|attention)")
_IN_CONTEXT = re.compile(r"^(icl_|output_|many_class_decoder|heads\.)")


def select_names(names: Sequence[str], selection: str | Sequence[str]) -> list[str]:
    """Names of the parameters that a selection picks.

    Parameters
    ----------
    names : sequence of str
        Every parameter's name, in the model's order.
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
    >>> names = ["blocks.0.mlp.0.weight", "blocks.0.attn.q.weight", "norm.weight"]
    >>> select_names(names, "mlp")
    ['blocks.0.mlp.0.weight']
    >>> select_names(names, ["*.q.*", "norm.*"])
    ['blocks.0.attn.q.weight', 'norm.weight']
    """
    names = list(names)
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
