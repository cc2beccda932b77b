# mypy: disable-error-code="no-untyped-def"
"""Tiled products of stacks of matrices, in Triton: the building blocks of the larger kernels.

Letters: B stack, M x K times K x N. All sizes may be odd, all inputs strided; every axis is masked and the stack's
offsets are 64-bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tttabpfn.fast_weights.kernels.tiles import add_product, find_tile, read, strides, write

__all__ = ["affine_product", "token_product"]


@triton.jit
def _affine_product(
    lhs,
    rhs,
    base,
    out,
    alpha,
    beta,
    rows,
    cols,
    inner,
    lhs_b,
    lhs_m,
    lhs_k,
    rhs_b,
    rhs_k,
    rhs_n,
    base_b,
    base_m,
    base_n,
    out_b,
    out_m,
    out_n,
    HAS_BASE: tl.constexpr,
    SCALED: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Compute ``out = alpha * base + (beta * lhs) @ rhs``; a symmetric result is computed above the diagonal only."""
    entry, tile_m, tile_n = find_tile(rows, cols, BLOCK_M, BLOCK_N)
    if SYMMETRIC and tile_m > tile_n:
        return
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    lhs += entry * lhs_b
    rhs += entry * rhs_b
    out += entry * out_b
    total = add_product(
        total, lhs, rhs, m, n, 0, inner, rows, cols, lhs_m, lhs_k, rhs_k, rhs_n, beta, SCALED=SCALED, BLOCK_K=BLOCK_K
    )
    result = total.to(out.dtype.element_ty)
    if HAS_BASE:
        added = read(base + entry * base_b, m, n, base_m, base_n, rows, cols)
        added = (added.to(tl.float32) * alpha).to(result.dtype)
        result = (added.to(tl.float32) + result.to(tl.float32)).to(result.dtype)
    write(out, result, m, n, out_m, out_n, rows, cols)
    if SYMMETRIC and tile_m != tile_n:
        write(out, tl.trans(result), n, m, out_m, out_n, rows, cols)


def affine_product(
    lhs: Tensor,
    rhs: Tensor,
    out: Tensor,
    base: Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    *,
    symmetric: bool = False,
) -> Tensor:
    """Compute ``out = alpha * base + (beta * lhs) @ rhs`` for every entry of the stack, in one launch.

    Parameters
    ----------
    lhs : Tensor of shape [B, M, K]
    rhs : Tensor of shape [B, K, N]
    out : Tensor of shape [B, M, N]
        Written whole; must not overlap the inputs.
    base : Tensor of shape [B, M, N], optional
    alpha, beta : float
    symmetric : bool, default=False
        Promise that the result is symmetric; tiles below the diagonal are then mirrored, not computed.

    Returns
    -------
    Tensor
        `out`. Sums run in float32; products are rounded to the dtype of `out` before `base` is added, as torch does.
    """
    batch, rows, inner = lhs.shape
    cols = rhs.shape[2]
    block = 32 if min(rows, cols) <= 32 else 64
    base_or_out = out if base is None else base
    grid = (triton.cdiv(rows, block) * triton.cdiv(cols, block) * batch,)
    _affine_product[grid](
        lhs,
        rhs,
        base_or_out,
        out,
        alpha,
        beta,
        rows,
        cols,
        inner,
        *strides(lhs, rhs, base_or_out, out),
        HAS_BASE=base is not None,
        SCALED=beta != 1.0,
        SYMMETRIC=symmetric,
        BLOCK_M=block,
        BLOCK_N=block,
        BLOCK_K=32,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return out


@triton.jit
def _token_product(
    lhs,
    rhs,
    partial,
    tokens,
    per_split,
    rows,
    cols,
    batch,
    lhs_b,
    lhs_t,
    lhs_m,
    rhs_b,
    rhs_t,
    rhs_n,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Write one split's ``-lhs^T rhs`` over its tokens to ``partial[split, entry]``."""
    slot, tile_m, tile_n = find_tile(rows, cols, BLOCK_M, BLOCK_N)
    entry, split = slot % batch, slot // batch
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    first = split * per_split
    last = tl.minimum(first + per_split, tokens)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    lhs += entry * lhs_b
    rhs += entry * rhs_b
    total = add_product(
        total, lhs, rhs, m, n, first, last, rows, cols, lhs_m, lhs_t, rhs_t, rhs_n, 1.0, SCALED=False, BLOCK_K=BLOCK_T
    )
    write(partial + slot * rows * cols, -total, m, n, cols, 1, rows, cols)


def token_product(lhs: Tensor, rhs: Tensor, *, programs: int = 256) -> Tensor:
    """Sum ``-lhs^T rhs`` over tokens in float32, the tokens split over programs so that small weights fill the device.

    Parameters
    ----------
    lhs : Tensor of shape [B, L, M]
    rhs : Tensor of shape [B, L, N]
    programs : int, default=256
        About how many programs to launch. The split depends on sizes alone, so results repeat bit by bit.

    Returns
    -------
    Tensor of shape [B, M, N], float32
    """
    batch, tokens, rows = lhs.shape
    cols = rhs.shape[2]
    block, block_t = 64, 32
    tiles = triton.cdiv(rows, block) * triton.cdiv(cols, block)
    splits = max(1, min(triton.cdiv(tokens, 8 * block_t), programs // max(1, tiles * batch)))
    per_split = triton.cdiv(triton.cdiv(tokens, splits), block_t) * block_t
    splits = triton.cdiv(tokens, per_split)
    partial = torch.empty(splits, batch, rows, cols, dtype=torch.float32, device=lhs.device)
    _token_product[(tiles * batch * splits,)](
        lhs,
        rhs,
        partial,
        tokens,
        per_split,
        rows,
        cols,
        batch,
        *strides(lhs, rhs),
        BLOCK_M=block,
        BLOCK_N=block,
        BLOCK_T=block_t,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return partial.sum(dim=0)
