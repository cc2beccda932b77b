# mypy: disable-error-code="no-untyped-def"
"""SwiGLU fast weights in Triton: forward, and gradients with per-token rates, the elementwise chain fused.

Letters as in `tttabpfn.fast_weights.reference.swiglu`: B stack, L tokens, K key width, V value width, H hidden width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tttabpfn.fast_weights.kernels.product import affine_product, token_product
from tttabpfn.fast_weights.kernels.tiles import add_product, block_size, find_tile, read, strides, write

__all__ = ["swiglu_apply", "swiglu_gradients"]

SCRATCH_TOKENS = 1 << 16
"""Tokens whose hidden rows are in memory at a time; bounds scratch memory for chunks of any size."""
NARROW = {torch.float32: 64, torch.bfloat16: 128}
"""Up to this width of keys and values the forward keeps hidden rows on chip; wider, registers spill."""


@triton.jit
def _sigmoid(x):
    """Logistic function whose exponential cannot overflow."""
    small = tl.exp(-tl.abs(x))
    return tl.where(x >= 0.0, 1.0, small) / (1.0 + small)


@triton.jit
def _narrow_apply(
    w0,
    w1,
    w2,
    x,
    out,
    tokens,
    keys,
    hidden,
    values,
    w0_b,
    w0_h,
    w0_k,
    w1_b,
    w1_v,
    w1_h,
    w2_b,
    w2_h,
    w2_k,
    x_b,
    x_l,
    x_k,
    out_b,
    out_l,
    out_v,
    SIZE_K: tl.constexpr,
    SIZE_V: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Whole forward of one block of tokens; hidden rows never leave the chip."""
    entry, tile, _ = find_tile(tokens, values, BLOCK_L, SIZE_V)
    at = tile.to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    k, v = tl.arange(0, SIZE_K), tl.arange(0, SIZE_V)
    w0 += entry * w0_b
    w1 += entry * w1_b
    w2 += entry * w2_b
    rows = read(x + entry * x_b, at, k, x_l, x_k, tokens, keys)
    total = tl.zeros((BLOCK_L, SIZE_V), dtype=tl.float32)
    for start in range(0, hidden, BLOCK_H):
        h = start + tl.arange(0, BLOCK_H)
        gate = tl.dot(rows, read(w0, k, h, w0_k, w0_h, keys, hidden), input_precision="ieee")
        up = tl.dot(rows, read(w2, k, h, w2_k, w2_h, keys, hidden), input_precision="ieee")
        product = (gate * _sigmoid(gate) * up).to(rows.dtype)
        total = tl.dot(product, read(w1, h, v, w1_h, w1_v, hidden, values), total, input_precision="ieee")
    write(out + entry * out_b, total, at, v, out_l, out_v, tokens, values)


@triton.jit
def _hidden_rows(
    w0,
    w1,
    w2,
    k,
    v,
    lr0,
    lr1,
    lr2,
    p0,
    p1,
    p2,
    tokens,
    keys,
    hidden,
    values,
    w0_b,
    w0_h,
    w0_k,
    w1_b,
    w1_v,
    w1_h,
    w2_b,
    w2_h,
    w2_k,
    k_b,
    k_l,
    k_k,
    v_b,
    v_l,
    v_v,
    lr0_b,
    lr0_l,
    lr1_b,
    lr1_l,
    lr2_b,
    lr2_l,
    GRADIENTS: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile of hidden rows. Forward: silu(gate) * up into p1. Gradients: the three rated factors into p0, p1, p2."""
    entry, tile_l, tile_h = find_tile(tokens, hidden, BLOCK_L, BLOCK_H)
    at = tile_l.to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    h = tile_h * BLOCK_H + tl.arange(0, BLOCK_H)
    w0 += entry * w0_b
    w2 += entry * w2_b
    gate = tl.zeros((BLOCK_L, BLOCK_H), dtype=tl.float32)
    up = tl.zeros((BLOCK_L, BLOCK_H), dtype=tl.float32)
    for start in range(0, keys, BLOCK_K):
        n = start + tl.arange(0, BLOCK_K)
        rows = read(k + entry * k_b, at, n, k_l, k_k, tokens, keys)
        gate = tl.dot(rows, read(w0, n, h, w0_k, w0_h, keys, hidden), gate, input_precision="ieee")
        up = tl.dot(rows, read(w2, n, h, w2_k, w2_h, keys, hidden), up, input_precision="ieee")
    sigmoid = _sigmoid(gate)
    activated = gate * sigmoid
    place = entry * tokens * hidden
    if GRADIENTS:
        back = tl.zeros((BLOCK_L, BLOCK_H), dtype=tl.float32)
        v += entry * v_b
        w1 += entry * w1_b
        back = add_product(
            back, v, w1, at, h, 0, values, tokens, hidden, v_l, v_v, w1_v, w1_h, 1.0, SCALED=False, BLOCK_K=BLOCK_K
        )
        here = at < tokens
        rate0 = tl.load(lr0 + entry * lr0_b + at * lr0_l, mask=here, other=0.0).to(tl.float32)
        rate1 = tl.load(lr1 + entry * lr1_b + at * lr1_l, mask=here, other=0.0).to(tl.float32)
        rate2 = tl.load(lr2 + entry * lr2_b + at * lr2_l, mask=here, other=0.0).to(tl.float32)
        slope = sigmoid * (1.0 + gate * (1.0 - sigmoid))
        write(p0 + place, back * up * slope * rate0[:, None], at, h, hidden, 1, tokens, hidden)
        write(p1 + place, activated * up * rate1[:, None], at, h, hidden, 1, tokens, hidden)
        write(p2 + place, back * activated * rate2[:, None], at, h, hidden, 1, tokens, hidden)
    else:
        write(p1 + place, activated * up, at, h, hidden, 1, tokens, hidden)


def swiglu_apply(w0: Tensor, w1: Tensor, w2: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
    """See `tttabpfn.fast_weights.reference.swiglu.swiglu_apply`.

    Keys and values up to 64 wide (128 in bfloat16) run in one launch with hidden rows on chip, wider ones in two per
    65,536 tokens.
    """
    batch, tokens, keys = x.shape
    hidden, values = w0.shape[1], w1.shape[1]
    if out is None:
        out = torch.empty(batch, tokens, values, dtype=x.dtype, device=x.device)
    if max(keys, values) <= NARROW[x.dtype]:
        block = 64 if x.dtype == torch.bfloat16 else 32
        _narrow_apply[(triton.cdiv(tokens, block) * batch,)](
            *(w0, w1, w2, x, out),
            *(tokens, keys, hidden, values),
            *strides(w0, w1, w2, x, out),
            SIZE_K=block_size(keys),
            SIZE_V=block_size(values),
            BLOCK_L=block,
            BLOCK_H=32,
            num_warps=8,
            enable_fp_fusion=True,
        )
        return out
    for start in range(0, tokens, SCRATCH_TOKENS):
        window = slice(start, start + SCRATCH_TOKENS)
        rows = x[:, window]
        (product,) = _hidden(w0, w1, w2, rows, rows, None)
        affine_product(product, w1.mT, out[:, window])
    return out


def swiglu_gradients(
    w0: Tensor, w1: Tensor, w2: Tensor, k: Tensor, v: Tensor, lr0: Tensor, lr1: Tensor, lr2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `tttabpfn.fast_weights.reference.swiglu.swiglu_gradients`.

    Per 65,536 tokens one launch makes the rated hidden rows and three more their products with keys and values.
    """
    sums: list[Tensor] = []
    for start in range(0, k.shape[1], SCRATCH_TOKENS):
        window = slice(start, start + SCRATCH_TOKENS)
        keys, values = k[:, window], v[:, window]
        p0, p1, p2 = _hidden(w0, w1, w2, keys, values, (lr0[:, window], lr1[:, window], lr2[:, window]))
        part = [token_product(p0, keys), token_product(values, p1), token_product(p2, keys)]
        sums = [left + right for left, right in zip(sums, part, strict=True)] if sums else part
    return sums[0].to(w0.dtype), sums[1].to(w1.dtype), sums[2].to(w2.dtype)


def _hidden(
    w0: Tensor, w1: Tensor, w2: Tensor, k: Tensor, v: Tensor, rates: tuple[Tensor, Tensor, Tensor] | None
) -> list[Tensor]:
    """Hidden rows [B, L, H]: one for the forward, three rated ones for the gradients."""
    batch, tokens, keys = k.shape
    hidden, values = w0.shape[1], w1.shape[1]
    rows = [
        torch.empty(batch, tokens, hidden, dtype=k.dtype, device=k.device) for _ in range(1 if rates is None else 3)
    ]
    products = rows * 3 if rates is None else rows
    weighted = (k, k, k) if rates is None else rates
    _hidden_rows[(triton.cdiv(tokens, 64) * triton.cdiv(hidden, 64) * batch,)](
        *(w0, w1, w2, k, v, *weighted, *products),
        *(tokens, keys, hidden, values),
        *strides(w0, w1, w2, k, v),
        *strides(*(rate[..., 0] for rate in weighted)),
        GRADIENTS=rates is not None,
        BLOCK_L=64,
        BLOCK_H=64,
        BLOCK_K=32,
        num_warps=8,
        enable_fp_fusion=True,
    )
    return rows
