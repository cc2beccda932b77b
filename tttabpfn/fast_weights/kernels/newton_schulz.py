# mypy: disable-error-code="no-untyped-def"
"""Newton-Schulz for many small matrices in one launch, and in tiles for larger ones, in Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tttabpfn.fast_weights.dispatch import ON_CHIP_SIZE
from tttabpfn.fast_weights.kernels.product import affine_product
from tttabpfn.fast_weights.kernels.tiles import block_size, read, strides, write
from tttabpfn.fast_weights.reference.newton_schulz import EPS, coefficients, compute_dtype, iterates_transposed

__all__ = ["newton_schulz"]


@triton.jit
def _scaled(x, factor):
    """Multiply in float32 and round once, as torch does for a number times a low-precision tensor."""
    return (x.to(tl.float32) * factor).to(x.dtype)


@triton.jit
def _added(left, right):
    """Add in float32 and round once."""
    return (left.to(tl.float32) + right.to(tl.float32)).to(left.dtype)


@triton.jit
def _on_chip(
    matrix,
    out,
    triples,
    steps,
    rows,
    cols,
    matrix_b,
    matrix_m,
    matrix_n,
    out_b,
    out_m,
    out_n,
    EPSILON: tl.constexpr,
    LOW: tl.constexpr,
    SIZE_M: tl.constexpr,
    SIZE_N: tl.constexpr,
):
    """All steps for one matrix; it is read once and written once. Rounds where torch rounds."""
    entry = tl.program_id(0).to(tl.int64)
    m, n = tl.arange(0, SIZE_M), tl.arange(0, SIZE_N)
    x = read(matrix + entry * matrix_b, m, n, matrix_m, matrix_n, rows, cols)
    x = x.to(tl.bfloat16) if LOW else x.to(tl.float32)
    wide = x.to(tl.float32)
    norm = tl.sqrt(tl.sum(wide * wide)).to(x.dtype)
    norm = (norm + EPSILON).to(x.dtype).to(tl.float32)
    x = (wide / norm).to(x.dtype)
    for step in range(steps):
        a = tl.load(triples + 3 * step)
        b = tl.load(triples + 3 * step + 1)
        c = tl.load(triples + 3 * step + 2)
        gram = tl.dot(x, tl.trans(x), input_precision="ieee").to(x.dtype)
        square = tl.dot(_scaled(gram, c), gram, input_precision="ieee").to(x.dtype)
        poly = _added(_scaled(gram, b), square)
        x = _added(_scaled(x, a), tl.dot(poly, x, input_precision="ieee").to(x.dtype))
    write(out + entry * out_b, x, m, n, out_m, out_n, rows, cols)


def newton_schulz(matrix: Tensor, schedule: str = "schedule", steps: int = 5, dtype: str = "float32") -> Tensor:
    """See `tttabpfn.fast_weights.reference.newton_schulz.newton_schulz`; `matrix` is [B, D_out, D_in].

    Up to 64 x 64 (128 x 128 in bfloat16) a program holds its matrix on chip through all steps, one launch for the
    stack. Larger matrices take three tiled launches per step for the whole stack, Gram matrices computed on one side
    of the diagonal.
    """
    triples = coefficients(schedule, steps)
    low = compute_dtype(dtype, matrix.dtype) == torch.bfloat16
    transposed = iterates_transposed(matrix.shape[1], matrix.shape[2], schedule)
    x = matrix.mT if transposed else matrix
    fits = max(matrix.shape[1:]) <= ON_CHIP_SIZE["bfloat16" if low else "float32"]
    result = _small(x, triples, low) if fits else _tiled(x, triples, low)
    return result.mT if transposed else result


def _small(x: Tensor, triples: tuple[tuple[float, float, float], ...], low: bool) -> Tensor:
    batch, rows, cols = x.shape
    out = torch.empty(batch, rows, cols, dtype=x.dtype, device=x.device)
    table = torch.tensor(triples or ((0.0, 0.0, 0.0),), dtype=torch.float32, device=x.device)
    size_m, size_n = block_size(rows), block_size(cols)
    _on_chip[(batch,)](
        x,
        out,
        table,
        len(triples),
        rows,
        cols,
        *strides(x, out),
        EPSILON=EPS,
        LOW=low,
        SIZE_M=size_m,
        SIZE_N=size_n,
        num_warps=4 if low and max(size_m, size_n) <= 64 else 8,
        enable_fp_fusion=True,
    )
    return out


def _tiled(matrix: Tensor, triples: tuple[tuple[float, float, float], ...], low: bool) -> Tensor:
    x = matrix.to(torch.bfloat16 if low else torch.float32)
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + EPS)
    batch, rows, cols = x.shape
    gram, poly = (torch.empty(batch, rows, rows, dtype=x.dtype, device=x.device) for _ in range(2))
    other = torch.empty(batch, rows, cols, dtype=x.dtype, device=x.device)
    for a, b, c in triples:
        affine_product(x, x.mT, gram, symmetric=True)
        affine_product(gram, gram, poly, base=gram, alpha=b, beta=c, symmetric=True)
        affine_product(poly, x, other, base=x, alpha=a)
        x, other = other, x
    return x.to(matrix.dtype)
