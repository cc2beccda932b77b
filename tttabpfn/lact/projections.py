"""The LaCT layer's slow part: initial weights, tokens to heads, heads to outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Projected", "initialise", "merge", "project", "set_operators"]


class Projected(NamedTuple):
    """What a layer makes of its tokens, heads in the batch axis [n * h, l, width]; `raw` are q, k, v for attention."""

    raw: tuple[Tensor, Tensor, Tensor]
    tokens: tuple[Tensor, ...]
    """q, k, v, lr0, lr1, lr2 as `lact_swiglu` takes them."""
    momentum: Tensor | None


def initialise(layer: Any, generator: torch.Generator | None) -> None:
    """Draw the slow weights of a `LaCTSwiGLU`; every rate starts at its base rate."""
    with torch.no_grad():
        for weight in (layer.to_qkv.weight, layer.to_output.weight, layer.w0, layer.w1, layer.w2):
            weight.normal_(0.0, weight.shape[-1] ** -0.5, generator=generator)
        linears = [layer.to_rates] if layer.to_momentum is None else [layer.to_rates, layer.to_momentum]
        for linear in linears:
            linear.weight.zero_()
            linear.bias.zero_()
        # softplus(bias) == base_rate at initialisation
        layer.to_rates.bias.fill_(math.log(math.expm1(layer.base_rate)))


def project(layer: Any, x: Tensor) -> Projected:
    """Queries, keys, values, rates and momentum factors of tokens [n, l, dim]."""
    q, k, v = (_heads(part, layer.n_heads) for part in layer.to_qkv(x).chunk(3, dim=-1))
    rates = (_heads(rate, layer.n_heads) for rate in F.softplus(layer.to_rates(x)).chunk(3, dim=-1))
    momentum = None
    if layer.to_momentum is not None:
        momentum = _heads(torch.sigmoid(layer.to_momentum(x)), layer.n_heads)
    unit = (F.normalize(F.silu(part), dim=-1) for part in (q, k))
    return Projected((q, k, v), (*unit, F.silu(v), *rates), momentum)


def merge(layer: Any, o: Tensor) -> Tensor:
    """[n * h, l, width] to the layer's output [n, l, dim]."""
    return layer.to_output(o.unflatten(0, (-1, layer.n_heads)).transpose(1, 2).flatten(2))


def _heads(x: Tensor, n_heads: int) -> Tensor:
    """[n, l, h * width] to [n * h, l, width]."""
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2).flatten(0, 1)


def set_operators(lengths: Sequence[int], chunk_size: int | None) -> list[tuple[int, int, bool, bool]]:
    """For each of the sequences, update on all tokens, chunk by chunk, then apply to all.

    Examples
    --------
    >>> set_operators([3, 2], 2)
    [(0, 2, True, False), (2, 3, True, False), (0, 3, False, True), (3, 5, True, False), (3, 5, False, True)]
    """
    operators: list[tuple[int, int, bool, bool]] = []
    first = 0
    for length in lengths:
        stop = first + length
        size = min(chunk_size or length, length)
        if length:
            operators += [(start, min(start + size, stop), True, False) for start in range(first, stop, size)]
            operators.append((first, stop, False, True))
        first = stop
    return operators
