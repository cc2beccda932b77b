"""SwiGLU fast weights through oneDNN's float32 products, which PyTorch on a CPU uses for bfloat16 alone.

PyTorch's float32 products go to MKL, which on AMD processors reaches half of what oneDNN does (measured on Zen 5, one
thread: 81 and 164 GFLOP/s on 2,048 x 2,048). oneDNN also applies silu, and the product with `w2 x`, as it writes a
result. The operator is one that `torch.compile` emits; where a build of PyTorch lacks it, `usable` says so and the
caller stays with PyTorch's own products. Same names and signatures as in `reference`, without autograd.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["block_tokens", "swiglu_apply", "swiglu_gradients", "usable"]

LEAST_TOKENS = 256
LEAST_WIDTH = 128
"""Smaller products gain nothing, and their entries of the stack are better done together. Measured on Zen 5, one
thread: 64 tokens at width 256 run at 0.9 times the speed, 1,024 tokens at width 64 at the same, at 256 at 1.6 times."""
BLOCK_ELEMENTS = 1 << 18
"""Tokens x width of one intermediate. Measured as above, at width 256: the gradients in blocks of 512, 1,024, 2,048 and
4,096 tokens reach 117, 126, 125 and 101 % of the rate of `torch.mm`."""


def usable(weight: Tensor, tokens: Tensor, *others: Tensor) -> bool:
    """Whether a stack of weights [B, H, K] and tokens [B, L, K] can and should take this way.

    Examples
    --------
    >>> usable(torch.ones(1, 128, 128, dtype=torch.float64), torch.ones(1, 256, 128))
    False
    """
    return bool(
        tokens.shape[1] >= LEAST_TOKENS
        and min(weight.shape[1:]) >= LEAST_WIDTH
        and all(one.device.type == "cpu" and one.dtype == torch.float32 for one in (weight, tokens, *others))
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def block_tokens(width: int) -> int:
    """Tokens per block for intermediates of `width` columns.

    Examples
    --------
    >>> block_tokens(256)
    1024
    """
    return max(LEAST_TOKENS, BLOCK_ELEMENTS // max(width, 1))


def swiglu_apply(w0: Tensor, w1: Tensor, w2: Tensor, x: Tensor, out: Tensor) -> Tensor:
    """See `tttabpfn.fast_weights.swiglu.swiglu_apply`; `out` is written."""
    size = block_tokens(max(w0.shape[1], x.shape[2]))
    for entry in range(x.shape[0]):
        for start in range(0, x.shape[1], size):
            rows = x[entry, start : start + size].contiguous()
            gate = _product(rows, w0[entry], "swish")
            hidden = _product(rows, w2[entry], "mul", gate)
            out[entry, start : start + size] = _product(hidden, w1[entry])
    return out


def swiglu_gradients(
    w0: Tensor, w1: Tensor, w2: Tensor, k: Tensor, v: Tensor, lr0: Tensor, lr1: Tensor, lr2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `tttabpfn.fast_weights.swiglu.swiglu_gradients`."""
    size = block_tokens(max(w0.shape[1], k.shape[2]))
    sums = tuple(torch.empty_like(weight, memory_format=torch.contiguous_format) for weight in (w0, w1, w2))
    for entry in range(k.shape[0]):
        weights = (w0[entry].contiguous(), w1[entry].mT.contiguous(), w2[entry].contiguous())
        totals: list[Tensor] | None = None
        for start in range(0, k.shape[1], size):
            k_block, v_block, *rates = (tensor[entry, start : start + size] for tensor in (k, v, lr0, lr1, lr2))
            totals = _with_block(totals, weights, k_block.contiguous(), v_block.contiguous(), rates)
        for total, found in zip(sums, totals or [], strict=True):
            torch.neg(found, out=total[entry])
    return sums[0], sums[1], sums[2]


def _with_block(
    totals: list[Tensor] | None, weights: tuple[Tensor, Tensor, Tensor], k: Tensor, v: Tensor, rates: list[Tensor]
) -> list[Tensor]:
    """Add one block's products. Hidden rows are columns here, [H, L]: as oneDNN wants both factors along the tokens."""
    w0, w1_t, w2 = weights
    gate, up, hidden = _product(w0, k), _product(w2, k), _product(w1_t, v)
    lr0, lr1, lr2 = (rate.mT.to(k.dtype) for rate in rates)
    keys, values = k.mT.contiguous(), v.mT.contiguous()
    activated = torch.ops.aten.silu(gate)
    output = torch.mul(activated, up).mul_(lr1)
    activated.mul_(hidden).mul_(lr2)
    hidden.mul_(up)
    torch.ops.aten.silu_backward.grad_input(hidden, gate, grad_input=hidden).mul_(lr0)
    pairs = [(hidden, keys), (values, output), (activated, keys)]
    if totals is None:
        return [_product(left, right) for left, right in pairs]
    return [_product(left, right, "add", total) for (left, right), total in zip(pairs, totals, strict=True)]


def _product(left: Tensor, right: Tensor, then: str = "none", other: Tensor | None = None) -> Tensor:
    """``left @ right.mT`` of contiguous matrices, then a function of it, or an operation with `other`."""
    operator: Any = torch.ops.mkldnn._linear_pointwise
    if other is None:
        return operator(left, right, None, then, [], "")
    return operator.binary(left, other, right, None, then)
