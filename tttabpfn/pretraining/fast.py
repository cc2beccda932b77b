"""Make a model's training step faster on a CPU, with the model's own weights and structure."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from tabpfn.architectures.shared import attention_backends
from torch import Tensor, nn
from torch.nn import functional as F

from tttabpfn.pretraining import native

__all__ = ["faster"]

FEW_ROWS = 512
"""Products of fewer rows stay in float32: casts would cost more than they save."""


MOST_SCORES = 1 << 24
"""Scores that bfloat16 attention may store at a time, 32 MiB."""


class _NarrowHeads:
    """Attention backend, by TabPFN's own registry, for float32 heads of at most 16 numbers on a CPU."""

    name = "tttabpfn-narrow-heads"

    def is_preferred(self, spec: attention_backends.AttentionSpec) -> bool:
        """Whether the kernel can take a call of these shapes."""
        return (
            spec.device.type == "cpu"
            and spec.dtype == torch.float32
            and spec.head_dim <= native.MAX_WIDTH
            and spec.quantized_kv_dtype is None
            and bool(spec.seq_len_kv)
        )

    def run(self, q_BSHD: Tensor, k_BSJD: Tensor | None, v_BSJD: Tensor | None, **_: Any) -> Tensor:
        """Attend; see `tttabpfn.pretraining.native.NarrowAttention`."""
        return native.NarrowAttention.apply(q_BSHD, k_BSJD, v_BSJD)


class _HalfAttention:
    """Attention backend that makes scores and sums by batched products in bfloat16, for float32 heads on a CPU.

    Scores are stored, so calls of many queries and keys are left to torch's own kernel.
    """

    name = "tttabpfn-half-attention"

    def is_preferred(self, spec: attention_backends.AttentionSpec) -> bool:
        """Whether a call is small enough, and of a type it knows."""
        scores = (spec.seq_len_q or 0) * (spec.seq_len_kv or 0) * spec.num_heads * (spec.batch_size or 0)
        plain = spec.dtype == torch.float32 and spec.device.type == "cpu" and spec.quantized_kv_dtype is None
        return plain and 0 < scores <= MOST_SCORES

    def run(self, q_BSHD: Tensor, k_BSJD: Tensor | None, v_BSJD: Tensor | None, **_: Any) -> Tensor:
        """Attend, with the softmax in bfloat16 of scores that lost their row's largest first."""
        assert k_BSJD is not None
        assert v_BSJD is not None
        groups = q_BSHD.shape[2] // k_BSJD.shape[2]
        q, k, v = (t.bfloat16().transpose(1, 2) for t in (q_BSHD * q_BSHD.shape[-1] ** -0.5, k_BSJD, v_BSJD))
        if groups > 1:
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        return (torch.softmax(q @ k.transpose(-1, -2), dim=-1) @ v).transpose(1, 2).float()


def _norm(module: nn.RMSNorm) -> Any:
    def forward(x: Tensor) -> Tensor:
        if x.dtype != torch.float32 or module.weight is None or module.weight.dtype != torch.float32:
            return type(module).forward(module, x)
        eps = torch.finfo(x.dtype).eps if module.eps is None else module.eps
        return native.RootMeanSquareNorm.apply(x, module.weight, eps)

    return forward


class _Casts:
    """The last tensor that was turned into bfloat16: queries, keys and values are made of one and the same."""

    def __init__(self) -> None:
        self.source: Tensor | None = None
        self.version = -1
        self.rows = torch.empty(0)

    def of(self, x: Tensor) -> Tensor:
        """Return `x` in bfloat16 as `(-1, D)`."""
        if x is not self.source or x._version != self.version:
            self.rows = x.detach().reshape(-1, x.shape[-1]).bfloat16()
            self.source, self.version = x, x._version
        return self.rows


def _linear(module: nn.Linear, casts: _Casts) -> Any:
    def forward(x: Tensor) -> Tensor:
        wide = min(module.weight.shape) >= native.MAX_WIDTH
        if x.dtype != torch.float32 or not wide or x.numel() < FEW_ROWS * x.shape[-1]:
            return F.linear(x, module.weight, module.bias)
        product: Tensor = native.HalfProduct.apply(x, module.weight, casts.of(x))
        return product if module.bias is None else product + module.bias

    return forward


@contextlib.contextmanager
def faster(model: nn.Module, *, kernels: bool = True, half_products: bool = False) -> Iterator[None]:
    """Have a model compute its training step with faster operations, and leave it as it was afterwards.

    The weights, their names and what is computed stay the same. Without a C++ compiler the kernels are left out.

    Parameters
    ----------
    model : torch.nn.Module
        A TabPFN architecture in float32 on a CPU.
    kernels : bool
        Whether attention of narrow heads and root-mean-square norms run in compiled kernels (one thread each; the
        answers differ by rounding).
    half_products : bool
        Whether the products of linear maps run in bfloat16 with float32 in and out, and those of attention too where
        the kernels do not take it.

    Examples
    --------
    >>> import torch
    >>> norm = torch.nn.RMSNorm(8)
    >>> x = torch.arange(16.0).reshape(2, 8)
    >>> with faster(norm):
    ...     bool(torch.allclose(norm(x), torch.nn.functional.rms_norm(x, (8,)), atol=1e-6))
    True
    """
    native_ready = kernels and native.library() is not None
    # Later ones are asked first.
    backends: list[attention_backends.AttentionBackend] = []
    if half_products:
        backends.append(_HalfAttention())
    if native_ready:
        backends.append(_NarrowHeads())
    casts = _Casts()
    changed: list[nn.Module] = []
    for module in model.modules():
        if isinstance(module, nn.RMSNorm) and native_ready:
            module.forward = _norm(module)  # type: ignore[method-assign]
            changed.append(module)
        elif type(module) is nn.Linear and half_products:
            module.forward = _linear(module, casts)  # type: ignore[method-assign]
            changed.append(module)
    for backend in backends:
        attention_backends.register_attention_backend(backend)
    try:
        yield
    finally:
        for backend in backends:
            attention_backends.unregister_attention_backend(backend.name)
        for module in changed:
            del module.__dict__["forward"]
