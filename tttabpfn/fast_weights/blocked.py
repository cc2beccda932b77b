"""Fast-weight operations in blocks that stay in cache, with buffers allocated once per call.

Same names and signatures as in `reference`. Without autograd, each block is a few matrix products and in-place passes;
with autograd, long inputs are cut into checkpointed blocks. Either way memory beyond inputs and outputs depends on the
block, not on the number of tokens, so a chunk may have a million of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tttabpfn.fast_weights import onednn, reference
from tttabpfn.fast_weights.dispatch import differentiated

__all__ = ["block_tokens", "newton_schulz", "swiglu_apply", "swiglu_gradients"]

CPU_BLOCK_ELEMENTS = 1 << 19
"""Tokens x width of one buffer. Measured on Zen 5 (32 MiB of L3, shared and busy), float32, one thread: at width 256
blocks of 512, 1,024, 2,048, 4,096 and 8,192 tokens reach 84, 87, 92, 93 and 89 % of the matmul rate, at width 512
blocks of 256, 512, 1,024 and 2,048 tokens 89, 89, 94 and 94 %."""
CPU_STACK_ELEMENTS = 1 << 17
"""Entries of the matrices orthogonalised together. Measured as above: stacks of 48 at width 64, 128 and 192 run 21, 21
and 19 % faster in groups of this size than whole; at 256 it makes no difference."""
GPU_BLOCK_ELEMENTS = 1 << 25
"""Not measured; bounds the scratch memory (five buffers of this many elements)."""
GRAD_BLOCK_ELEMENTS = 1 << 22
"""Above this many, operations under autograd are checkpointed block by block."""


def block_tokens(width: int, device: str = "cpu", *, needs_grad: bool = False) -> int:
    """Tokens per block for buffers of `width` columns.

    Examples
    --------
    >>> block_tokens(256)
    2048
    """
    elements = CPU_BLOCK_ELEMENTS if device == "cpu" else GPU_BLOCK_ELEMENTS
    if needs_grad:
        elements = GRAD_BLOCK_ELEMENTS
    return max(256, elements // max(width, 1))


def newton_schulz(matrix: Tensor, schedule: str = "schedule", steps: int = 5, dtype: str = "float32") -> Tensor:
    """See `tttabpfn.fast_weights.reference.newton_schulz.newton_schulz`; `matrix` is [B, D_out, D_in]."""
    size = max(1, CPU_STACK_ELEMENTS // max(1, matrix.shape[1] * matrix.shape[2]))
    if matrix.device.type != "cpu" or matrix.shape[0] <= size or _needs_grad(matrix):
        return reference.newton_schulz(matrix, schedule, steps, dtype)
    out = matrix.new_empty(matrix.shape)
    for low, high in _windows(matrix.shape[0], size):
        out[low:high] = reference.newton_schulz(matrix[low:high], schedule, steps, dtype)
    return out


def swiglu_apply(w0: Tensor, w1: Tensor, w2: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
    """See `tttabpfn.fast_weights.reference.swiglu_apply`."""
    length, hidden = x.shape[1], w0.shape[1]
    if _needs_grad(w0, w1, w2, x):
        size = block_tokens(hidden, x.device.type, needs_grad=True)
        if length <= size:
            return reference.swiglu_apply(w0, w1, w2, x, out)
        parts = [
            checkpoint(reference.swiglu_apply, w0, w1, w2, x[:, a:b], use_reentrant=False, preserve_rng_state=False)
            for a, b in _windows(length, size)
        ]
        return torch.cat(parts, dim=1)
    if out is None:
        out = x.new_empty(x.shape[0], length, w1.shape[1])
    if onednn.usable(w0, x, w1, w2):
        return onednn.swiglu_apply(w0, w1, w2, x, out)
    group, size = _plan(x.shape[0], length, max(hidden, x.shape[2]), x.device.type)
    scratch = _scratch(2, group * size * hidden, x)
    for low, high in _windows(x.shape[0], group):
        t0, t1, t2 = w0[low:high].mT, w1[low:high].mT, w2[low:high].mT
        for a, b in _windows(length, size):
            gate, up = (_view(row, high - low, b - a, hidden) for row in scratch)
            torch.bmm(x[low:high, a:b], t0, out=gate)
            torch.bmm(x[low:high, a:b], t2, out=up)
            torch.ops.aten.silu_(gate).mul_(up)
            torch.bmm(gate, t1, out=out[low:high, a:b])
    return out


def swiglu_gradients(
    w0: Tensor, w1: Tensor, w2: Tensor, k: Tensor, v: Tensor, lr0: Tensor, lr1: Tensor, lr2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `tttabpfn.fast_weights.reference.swiglu_gradients`."""
    if _needs_grad(w0, w1, w2, k, v, lr0, lr1, lr2):
        return _differentiable_gradients(w0, w1, w2, k, v, lr0, lr1, lr2)
    length, hidden = k.shape[1], w0.shape[1]
    if onednn.usable(w0, k, w1, w2, v):
        return onednn.swiglu_gradients(w0, w1, w2, k, v, lr0, lr1, lr2)
    group, size = _plan(k.shape[0], length, max(hidden, k.shape[2]), k.device.type)
    scratch = _scratch(5, group * size * hidden, k)
    sums = tuple(torch.empty(w.shape, dtype=_accumulator(w.dtype), device=w.device) for w in (w0, w1, w2))
    for low, high in _windows(k.shape[0], group):
        entries = slice(low, high)
        for a, b in _windows(length, size):
            _add_block(
                [total[entries] for total in sums],
                (w0[entries], w1[entries], w2[entries]),
                (k[entries, a:b], v[entries, a:b]),
                (lr0[entries, a:b], lr1[entries, a:b], lr2[entries, a:b]),
                [_view(row, high - low, b - a, hidden) for row in scratch],
                first=a == 0,
            )
    g0, g1, g2 = sums if sums[0].dtype == w0.dtype else (total.to(w0.dtype) for total in sums)
    return g0, g1, g2


def _add_block(
    sums: list[Tensor],
    weights: tuple[Tensor, Tensor, Tensor],
    tokens: tuple[Tensor, Tensor],
    rates: tuple[Tensor, Tensor, Tensor],
    scratch: list[Tensor],
    *,
    first: bool,
) -> None:
    """Subtract one block's part from `sums` (the first block overwrites them); five scratch buffers hold the rest."""
    (w0, w1, w2), (k, v), (lr0, lr1, lr2) = weights, tokens, rates
    gate, up, hidden, activated, product = scratch
    torch.bmm(k, w0.mT, out=gate)
    torch.bmm(k, w2.mT, out=up)
    torch.bmm(v, w1, out=hidden)
    torch.ops.aten.silu.out(gate, out=activated)
    torch.mul(activated, up, out=product).mul_(lr1)
    _subtract_product(sums[1], v, product, first)
    activated.mul_(hidden).mul_(lr2)
    _subtract_product(sums[2], activated, k, first)
    hidden.mul_(up)
    torch.ops.aten.silu_backward.grad_input(hidden, gate, grad_input=hidden).mul_(lr0)
    _subtract_product(sums[0], hidden, k, first)


def _subtract_product(total: Tensor, left: Tensor, right: Tensor, first: bool) -> None:
    """``total -= left^T right``, summed over tokens; low-precision products are added up in float32."""
    if total.dtype == left.dtype:
        torch.baddbmm(total, left.mT, right, beta=0 if first else 1, alpha=-1, out=total)
        return
    if first:
        total.zero_()
    total.sub_(torch.bmm(left.mT, right))


def _differentiable_gradients(*args: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum the reference's gradients over checkpointed blocks, so that autograd keeps one block at a time."""
    weights, tokens = args[:3], args[3:]
    length = tokens[0].shape[1]
    size = block_tokens(weights[0].shape[1], tokens[0].device.type, needs_grad=True)
    if length <= size:
        return reference.swiglu_gradients(*args)
    total: list[Tensor] = []
    for a, b in _windows(length, size):
        block = [token[:, a:b] for token in tokens]
        part = checkpoint(reference.swiglu_gradients, *weights, *block, use_reentrant=False, preserve_rng_state=False)
        total = [left + right for left, right in zip(total, part, strict=True)] if total else list(part)
    return total[0], total[1], total[2]


def _plan(batch: int, length: int, width: int, device: str) -> tuple[int, int]:
    """Entries of the stack, and tokens, per block: few tokens are filled up with several entries."""
    tokens = block_tokens(width, device)
    return min(batch, max(1, tokens // length)), min(length, tokens)


def _windows(length: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, length, size):
        yield start, min(start + size, length)


def _scratch(buffers: int, elements: int, like: Tensor) -> tuple[Tensor, ...]:
    """Buffers out of one allocation: several of them make the C library give memory back and fault it in every call."""
    return like.new_empty(buffers, elements).unbind()


def _view(flat: Tensor, entries: int, tokens: int, width: int) -> Tensor:
    return flat.as_strided((entries, tokens, width), (tokens * width, width, 1))


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _needs_grad(*tensors: Tensor) -> bool:
    return differentiated(tensors)
