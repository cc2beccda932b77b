"""The form of LaCT whose state is a sum over tokens: add to it, take from it, merge it."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from tttabpfn.fast_weights import operations

__all__ = ["SumState", "features"]


def features(w0: Tensor, w2: Tensor, x: Tensor) -> Tensor:
    r"""Hidden features :math:`\phi(x) = \mathrm{silu}(w_0 x) \odot w_2 x` of a SwiGLU whose first layers stay fixed.

    Parameters
    ----------
    w0, w2 : Tensor of shape [b, dh, dk]
    x : Tensor of shape [b, l, dk]

    Returns
    -------
    Tensor of shape [b, l, dh]
    """
    return F.silu(x @ w0.mT) * (x @ w2.mT)


@dataclass(frozen=True)
class SumState:
    r"""The sum :math:`S = \sum_t \eta_t v_t \phi(k_t)^T` over tokens, and how it is read.

    With `lact_swiglu`'s ``updated="last"``, ``weight_norm=False``, no momentum and no Muon, the fast weight after any
    tokens in any chunks and any order is :math:`w_1 + S` (Liu et al. 2026, arXiv 2602.21204: TTT with key-value binding
    is linear attention). So states of parts add up to the state of the whole, and a part can be taken out again.

    Guaranteed: all of this up to rounding of the sum. Not guaranteed: bits; nor any of it across different w0, w2.

    Parameters
    ----------
    total : Tensor of shape [b, dv, dh]
        S; zeros before the first token.

    Examples
    --------
    >>> import torch
    >>> draw = torch.Generator().manual_seed(0)
    >>> w0, w2, w1 = (torch.randn(1, 4, 4, generator=draw) for _ in range(3))
    >>> k, v, q = (torch.randn(1, 6, 4, generator=draw) for _ in range(3))
    >>> rate = torch.full((1, 6, 1), 0.1)
    >>> whole = SumState.of(w0, w2, k, v, rate)
    >>> first, rest = (SumState.of(w0, w2, k[:, s], v[:, s], rate[:, s]) for s in (slice(0, 2), slice(2, 6)))
    >>> bool(torch.allclose((first + rest).total, whole.total, atol=1e-6))
    True
    >>> bool(torch.allclose((whole - first).read(w0, w1, w2, q), rest.read(w0, w1, w2, q), atol=1e-5))
    True
    """

    total: Tensor

    @classmethod
    def of(cls, w0: Tensor, w2: Tensor, k: Tensor, v: Tensor, lr1: Tensor) -> SumState:
        """State of some tokens: k [b, l, dk], v [b, l, dv], rates lr1 [b, l, 1]."""
        return cls((v * lr1).to(v.dtype).mT @ features(w0, w2, k))

    def __add__(self, other: SumState) -> SumState:
        """State of the tokens of both."""
        return SumState(self.total + other.total)

    def __sub__(self, other: SumState) -> SumState:
        """State without the tokens of `other`."""
        return SumState(self.total - other.total)

    def weight(self, w1: Tensor, *, muon: bool = False) -> Tensor:
        """Last layer after the tokens [b, dv, dh]; `muon` orthogonalises the sum as it is read, so S stays a sum."""
        return w1 + (operations.newton_schulz(self.total) if muon else self.total)

    def read(self, w0: Tensor, w1: Tensor, w2: Tensor, q: Tensor, *, muon: bool = False) -> Tensor:
        """Apply the fast weight to queries [b, l, dk]; returns [b, l, dv]."""
        return operations.swiglu_apply(w0, self.weight(w1, muon=muon), w2, q)
