# mypy: disable-error-code="no-untyped-def"
"""SwiGLU fast weights in Triton: forward, and gradients with per-token rates, the elementwise chain fused.

Letters as in `tttabpfn.fast_weights.swiglu`: B stack, L tokens, K key width, V value width, H hidden width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tttabpfn.fast_weights.kernels.product import affine_product, token_product

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
    tiles = tl.cdiv(tokens, BLOCK_L)
    program = tl.program_id(0)
    entry = (program // tiles).to(tl.int64)
    at = (program % tiles).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    k, v = tl.arange(0, SIZE_K), tl.arange(0, SIZE_V)
    rows = tl.load(
        x + entry * x_b + at[:, None] * x_l + k[None, :] * x_k,
        mask=(at[:, None] < tokens) & (k[None, :] < keys),
        other=0.0,
    )
    total = tl.zeros((BLOCK_L, SIZE_V), dtype=tl.float32)
    for start in range(0, hidden, BLOCK_H):
        h = start + tl.arange(0, BLOCK_H)
        inside = (k[:, None] < keys) & (h[None, :] < hidden)
        left = tl.load(w0 + entry * w0_b + h[None, :] * w0_h + k[:, None] * w0_k, mask=inside, other=0.0)
        right = tl.load(w2 + entry * w2_b + h[None, :] * w2_h + k[:, None] * w2_k, mask=inside, other=0.0)
        gate = tl.dot(rows, left, input_precision="ieee")
        up = tl.dot(rows, right, input_precision="ieee")
        product = (gate * _sigmoid(gate) * up).to(rows.dtype)
        down = tl.load(
            w1 + entry * w1_b + v[None, :] * w1_v + h[:, None] * w1_h,
            mask=(v[None, :] < values) & (h[:, None] < hidden),
            other=0.0,
        )
        total = tl.dot(product, down, total, input_precision="ieee")
    tl.store(
        out + entry * out_b + at[:, None] * out_l + v[None, :] * out_v,
        total.to(out.dtype.element_ty),
        mask=(at[:, None] < tokens) & (v[None, :] < values),
    )


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
    tiles_l, tiles_h = tl.cdiv(tokens, BLOCK_L), tl.cdiv(hidden, BLOCK_H)
    program = tl.program_id(0)
    tile = program % (tiles_l * tiles_h)
    entry = (program // (tiles_l * tiles_h)).to(tl.int64)
    at = (tile // tiles_h).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    h = (tile % tiles_h) * BLOCK_H + tl.arange(0, BLOCK_H)
    here = at < tokens
    gate = tl.zeros((BLOCK_L, BLOCK_H), dtype=tl.float32)
    up = tl.zeros((BLOCK_L, BLOCK_H), dtype=tl.float32)
    for start in range(0, keys, BLOCK_K):
        n = start + tl.arange(0, BLOCK_K)
        rows = tl.load(
            k + entry * k_b + at[:, None] * k_l + n[None, :] * k_k,
            mask=here[:, None] & (n[None, :] < keys),
            other=0.0,
        )
        inside = (n[:, None] < keys) & (h[None, :] < hidden)
        left = tl.load(w0 + entry * w0_b + h[None, :] * w0_h + n[:, None] * w0_k, mask=inside, other=0.0)
        right = tl.load(w2 + entry * w2_b + h[None, :] * w2_h + n[:, None] * w2_k, mask=inside, other=0.0)
        gate = tl.dot(rows, left, gate, input_precision="ieee")
        up = tl.dot(rows, right, up, input_precision="ieee")
    sigmoid = _sigmoid(gate)
    activated = gate * sigmoid
    place = entry * tokens * hidden + at[:, None] * hidden + h[None, :]
    inside = here[:, None] & (h[None, :] < hidden)
    kind = p1.dtype.element_ty
    if GRADIENTS:
        back = tl.zeros((BLOCK_L, BLOCK_H), dtype=tl.float32)
        for start in range(0, values, BLOCK_K):
            n = start + tl.arange(0, BLOCK_K)
            rows = tl.load(
                v + entry * v_b + at[:, None] * v_l + n[None, :] * v_v,
                mask=here[:, None] & (n[None, :] < values),
                other=0.0,
            )
            down = tl.load(
                w1 + entry * w1_b + n[:, None] * w1_v + h[None, :] * w1_h,
                mask=(n[:, None] < values) & (h[None, :] < hidden),
                other=0.0,
            )
            back = tl.dot(rows, down, back, input_precision="ieee")
        rate0 = tl.load(lr0 + entry * lr0_b + at * lr0_l, mask=here, other=0.0).to(tl.float32)
        rate1 = tl.load(lr1 + entry * lr1_b + at * lr1_l, mask=here, other=0.0).to(tl.float32)
        rate2 = tl.load(lr2 + entry * lr2_b + at * lr2_l, mask=here, other=0.0).to(tl.float32)
        slope = sigmoid * (1.0 + gate * (1.0 - sigmoid))
        tl.store(p0 + place, (back * up * slope * rate0[:, None]).to(kind), mask=inside)
        tl.store(p1 + place, (activated * up * rate1[:, None]).to(kind), mask=inside)
        tl.store(p2 + place, (back * activated * rate2[:, None]).to(kind), mask=inside)
    else:
        tl.store(p1 + place, (activated * up).to(kind), mask=inside)


def swiglu_apply(w0: Tensor, w1: Tensor, w2: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
    """See `tttabpfn.fast_weights.swiglu.swiglu_apply`.

    Keys and values up to 64 wide (128 in bfloat16) run in one launch with hidden rows on chip, wider ones in two per
    65,536 tokens.
    """
    batch, tokens, keys = x.shape
    hidden, values = w0.shape[1], w1.shape[1]
    if out is None:
        out = torch.empty(batch, tokens, values, dtype=x.dtype, device=x.device)
    if max(keys, values) <= NARROW[x.dtype]:
        block = 64 if x.dtype == torch.bfloat16 else 32
        size_k, size_v = (max(16, triton.next_power_of_2(size)) for size in (keys, values))
        _narrow_apply[(triton.cdiv(tokens, block) * batch,)](
            w0,
            w1,
            w2,
            x,
            out,
            tokens,
            keys,
            hidden,
            values,
            *w0.stride(),
            *w1.stride(),
            *w2.stride(),
            *x.stride(),
            *out.stride(),
            SIZE_K=size_k,
            SIZE_V=size_v,
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
    """See `tttabpfn.fast_weights.swiglu.swiglu_gradients`.

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
    p0, p1, p2 = rows * 3 if rates is None else rows
    lr0, lr1, lr2 = (k, k, k) if rates is None else rates
    _hidden_rows[(triton.cdiv(tokens, 64) * triton.cdiv(hidden, 64) * batch,)](
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
        *w0.stride(),
        *w1.stride(),
        *w2.stride(),
        *k.stride(),
        *v.stride(),
        *lr0.stride()[:2],
        *lr1.stride()[:2],
        *lr2.stride()[:2],
        GRADIENTS=rates is not None,
        BLOCK_L=64,
        BLOCK_H=64,
        BLOCK_K=32,
        num_warps=8,
        enable_fp_fusion=True,
    )
    return rows
