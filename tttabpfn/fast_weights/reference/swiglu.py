r"""LaCT's SwiGLU fast weight in plain PyTorch: forward, and gradients with per-token rates.

Letters: B stack, L tokens, K key width, V value width, H hidden width. Weights w0, w2 [B, H, K], w1 [B, V, H]; tokens
k, x [B, L, K], v [B, L, V]; rates [B, L, 1]. The fast weight is :math:`f(x) = w_1 (\mathrm{silu}(w_0 x) \odot w_2 x)`.

These are the reference operations: pure, differentiable, in the dtype of their inputs.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["swiglu_apply", "swiglu_gradients"]


def swiglu_apply(w0: Tensor, w1: Tensor, w2: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
    r"""Apply the SwiGLU fast weight to every token.

    Parameters
    ----------
    w0, w2 : Tensor of shape [B, H, K]
    w1 : Tensor of shape [B, V, H]
    x : Tensor of shape [B, L, K]
    out : Tensor of shape [B, L, V], optional
        Where to write the result; only without autograd.

    Returns
    -------
    Tensor of shape [B, L, V]

    Examples
    --------
    >>> import torch
    >>> one = torch.ones(1, 1, 1)
    >>> round(swiglu_apply(one, one, one, one).item(), 4)  # silu(1) * 1
    0.7311
    """
    result = (F.silu(x @ w0.mT) * (x @ w2.mT)) @ w1.mT
    return result if out is None else out.copy_(result)


def swiglu_gradients(
    w0: Tensor, w1: Tensor, w2: Tensor, k: Tensor, v: Tensor, lr0: Tensor, lr1: Tensor, lr2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Gradients of LaCT's loss, every token weighted by its own rate for each weight.

    The loss of a token is :math:`-f(k)^T v`; the gradient with respect to :math:`w_i` is the sum over tokens of
    :math:`\eta_i` times the token's gradient (Zhang et al. 2025, arXiv 2505.23884, section 3). It is the derivative
    itself, so a descent step subtracts it.

    Parameters
    ----------
    w0, w2 : Tensor of shape [B, H, K]
    w1 : Tensor of shape [B, V, H]
    k : Tensor of shape [B, L, K]
    v : Tensor of shape [B, L, V]
    lr0, lr1, lr2 : Tensor of shape [B, L, 1]
        Rate of each token for each weight, in any floating-point dtype.

    Returns
    -------
    tuple of Tensor
        Gradients shaped like w0, w1, w2.

    Examples
    --------
    >>> import torch
    >>> one = torch.ones(1, 1, 1)
    >>> [round(g.item(), 4) for g in swiglu_gradients(one, one, one, one, one, one, one, 0 * one)]
    [-0.9277, -0.7311, 0.0]
    """
    gate, up = k @ w0.mT, k @ w2.mT
    sigmoid = gate.sigmoid()
    activated = gate * sigmoid
    hidden = v @ w1
    slope = sigmoid * (1 + gate * (1 - sigmoid))
    g0 = -(hidden * up * slope * lr0).to(k.dtype).mT @ k
    g1 = -(v * lr1).to(v.dtype).mT @ (activated * up)
    g2 = -(hidden * activated * lr2).to(k.dtype).mT @ k
    return g0, g1, g2
