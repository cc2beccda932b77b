# mypy: disable-error-code="no-untyped-def"
"""Momentum, weight update and row-norm restoration in one pass over the weights, in Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tttabpfn.fast_weights.kernels.tiles import block_size, strides
from tttabpfn.fast_weights.reference.step import StepOptions

__all__ = ["step"]


@triton.jit
def _step(
    weight,
    gradient,
    buffer,
    momentum,
    step_size,
    norms,
    new_weight,
    new_buffer,
    weight_decay,
    norm_eps,
    rows,
    cols,
    weight_b,
    weight_m,
    weight_n,
    gradient_b,
    gradient_m,
    gradient_n,
    buffer_b,
    buffer_m,
    buffer_n,
    norms_b,
    norms_m,
    HAS_BUFFER: tl.constexpr,
    HAS_NORMS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One row per program; the row stays in registers."""
    program = tl.program_id(0).to(tl.int64)
    entry, row = program // rows, program % rows
    n = tl.arange(0, BLOCK_N)
    inside = n < cols
    size = tl.load(step_size + entry)
    before = tl.load(weight + entry * weight_b + row * weight_m + n * weight_n, mask=inside, other=0.0)
    direction = tl.load(gradient + entry * gradient_b + row * gradient_m + n * gradient_n, mask=inside, other=0.0).to(
        tl.float32
    )
    if HAS_BUFFER:
        running = tl.load(buffer + entry * buffer_b + row * buffer_m + n * buffer_n, mask=inside, other=0.0)
        direction += tl.load(momentum + entry) * running.to(tl.float32)
        tl.store(new_buffer + program * cols + n, direction.to(new_buffer.dtype.element_ty), mask=inside)
    wide = before.to(tl.float32)
    moved = wide - size * (direction + weight_decay * wide)
    if HAS_NORMS:
        wanted = tl.load(norms + entry * norms_b + row * norms_m).to(tl.float32)
        moved = moved * (wanted / (tl.sqrt(tl.sum(moved * moved)) + norm_eps))
    tl.store(new_weight + program * cols + n, tl.where(size == 0.0, before, moved.to(before.dtype)), mask=inside)


def step(weight: Tensor, gradient: Tensor, buffer: Tensor | None, options: StepOptions) -> tuple[Tensor, Tensor | None]:
    """See `tttabpfn.fast_weights.reference.step.step`; sums run in float32 whatever the dtype."""
    momentum, step_size, weight_decay, norms, norm_eps = options
    batch, rows, cols = weight.shape
    new_weight = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
    new_buffer = None if buffer is None else torch.empty(buffer.shape, dtype=buffer.dtype, device=buffer.device)
    held = weight if buffer is None else buffer
    wanted = weight[..., :1] if norms is None else norms
    block = block_size(cols)
    _step[(batch * rows,)](
        weight,
        gradient,
        held,
        _column(momentum, weight),
        _column(step_size, weight),
        wanted,
        new_weight,
        new_weight if new_buffer is None else new_buffer,
        weight_decay,
        norm_eps,
        rows,
        cols,
        *strides(weight, gradient, held, wanted[..., 0]),
        HAS_BUFFER=buffer is not None,
        HAS_NORMS=norms is not None,
        BLOCK_N=block,
        num_warps=16 if block > 4096 else 4,
        enable_fp_fusion=True,
    )
    return new_weight, new_buffer


def _column(value: float | Tensor, weight: Tensor) -> Tensor:
    """One float32 per entry of the stack, contiguous."""
    if isinstance(value, Tensor):
        return value.to(weight.device, torch.float32).expand(weight.shape[0]).contiguous()
    return torch.full((weight.shape[0],), float(value), dtype=torch.float32, device=weight.device)
