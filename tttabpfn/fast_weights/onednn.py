"""SwiGLU fast weights through oneDNN's float32 products, which PyTorch on a CPU uses for bfloat16 alone.

PyTorch's float32 products go to MKL, which on AMD processors reaches half of what oneDNN does (measured on Zen 5, one
thread: 81 and 164 GFLOP/s on 2,048 x 2,048). oneDNN also applies silu, and the product with `w2 x`, as it writes a
result. The operator is a private one that `torch.compile` emits: `usable` says no where a build of PyTorch lacks it, or
where it fails or errs on a small product, and the caller stays with PyTorch's own. Same names and signatures as in
`reference`, without autograd of either mode.

Bits: oneDNN's products came out the same with 1, 2, 4, 8 and 16 threads at every size tried that comes here (128 to
2,048 wide, odd widths among them), where `torch.mm`'s changed at 16. The gradients' silu is PyTorch's, whose last bit
may change with the number of threads where that cuts its vectors, with oneDNN or without. Neither library promises
more.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tttabpfn.fast_weights.dispatch import differentiated

__all__ = ["block_tokens", "swiglu_apply", "swiglu_gradients", "usable"]

MIN_TOKENS = 256
MIN_WIDTH = 128
"""Smaller products gain nothing, and their entries of the stack are better done together. Measured on Zen 5, one
thread: 64 tokens at width 256 run at 0.9 times the speed, 1,024 tokens at width 64 at the same, at 256 at 1.6 times."""
BLOCK_ELEMENTS = 1 << 18
"""Tokens x width of one intermediate. Measured as above, at width 256: the gradients in blocks of 512, 1,024, 2,048 and
4,096 tokens reach 117, 126, 125 and 101 % of the rate of `torch.mm`."""
_BINARY = ("mul", "add")
"""What `_product` does with `other`."""


def usable(weight: Tensor, tokens: Tensor, *others: Tensor) -> bool:
    """Whether a stack of weights [B, H, K] and tokens [B, L, K] can and should take this way.

    Examples
    --------
    >>> usable(torch.ones(1, 128, 128, dtype=torch.float64), torch.ones(1, 256, 128))
    False
    """
    used = (weight, tokens, *others)
    return bool(
        tokens.shape[1] >= MIN_TOKENS
        and min(weight.shape[1:]) >= MIN_WIDTH
        and all(_taken(one) for one in used)
        and not differentiated(used)
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and not torch.compiler.is_compiling()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and _works(torch.ops.mkldnn._linear_pointwise)
    )


def _taken(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tensor.layout == torch.strided


@lru_cache(maxsize=4)
def _works(operator: Any) -> bool:
    """Whether an operator gives the products needed here; tried once, on small matrices."""
    left = torch.linspace(-1.0, 1.0, 48).reshape(8, 6)
    right = torch.linspace(2.0, -1.0, 60).reshape(10, 6)
    plain = left @ right.mT
    wanted = {"none": plain, "swish": torch.nn.functional.silu(plain), "mul": plain * plain, "add": plain + plain}
    try:
        found = {then: _call(operator, left, right, then, plain if then in _BINARY else None) for then in wanted}
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
    return all(torch.allclose(found[then], wanted[then], rtol=1e-4, atol=1e-4) for then in wanted)


def block_tokens(width: int) -> int:
    """Tokens per block for intermediates of `width` columns.

    Examples
    --------
    >>> block_tokens(256)
    1024
    """
    return max(MIN_TOKENS, BLOCK_ELEMENTS // max(width, 1))


def swiglu_apply(w0: Tensor, w1: Tensor, w2: Tensor, x: Tensor, out: Tensor) -> Tensor:
    """See `tttabpfn.fast_weights.reference.swiglu.swiglu_apply`; `out` is written."""
    size = block_tokens(max(w0.shape[1], x.shape[2]))
    for entry in range(x.shape[0]):
        t0, t1, t2 = w0[entry].contiguous(), w1[entry].contiguous(), w2[entry].contiguous()
        for start in range(0, x.shape[1], size):
            rows = x[entry, start : start + size].contiguous()
            gate = _product(rows, t0, "swish")
            hidden = _product(rows, t2, "mul", gate)
            out[entry, start : start + size] = _product(hidden, t1)
    return out


def swiglu_gradients(
    w0: Tensor, w1: Tensor, w2: Tensor, k: Tensor, v: Tensor, lr0: Tensor, lr1: Tensor, lr2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `tttabpfn.fast_weights.reference.swiglu.swiglu_gradients`."""
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
    return _call(torch.ops.mkldnn._linear_pointwise, left, right, then, other)


def _call(operator: Any, left: Tensor, right: Tensor, then: str, other: Tensor | None) -> Tensor:
    if other is None:
        return operator(left, right, None, then, [], "")
    return operator.binary(left, other, right, None, then)
