"""Every numeric tolerance of the fast-weight and LaCT tests, by comparison and dtype. Tighten, never widen."""

from __future__ import annotations

import torch

RTOL_EXACT = {torch.float64: 1e-10, torch.float32: 1e-5}
"""One operation against its reference or autograd: maximum error relative to the largest reference entry."""
KERNEL_RMS = {torch.float32: 1e-5, torch.bfloat16: 5e-3}
"""One kernel against the float32 reference: relative root mean square error."""
VECTOR_RTOL = 1e-4
"""Float32 test vectors, as their README asks, entry by entry (absolute part: the same share of the output's RMS)."""
VECTOR_RMS_BFLOAT16 = 2e-2
"""bfloat16 test vectors: relative root mean square error."""
NORM_RTOL = 1e-6
"""Row norms after restoration."""
MUON_BAND = (0.6, 1.3)
"""Singular values after five Newton-Schulz steps, from 1 % of the largest upwards."""


def relative_rms(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """RMS of the difference over RMS of what is wanted."""
    got, wanted = got.detach().double(), wanted.detach().double()
    return float((got - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())


def relative_max(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference over largest entry of what is wanted."""
    got, wanted = got.detach().double(), wanted.detach().double()
    return float((got - wanted).abs().max() / wanted.abs().max())


def assert_close(got, wanted, *, rtol: float = 1e-10, atol: float = 0.0) -> None:
    """Compare entry by entry, in float64, numbers and tensors alike; shapes must be equal, nothing may be NaN."""
    got, wanted = (torch.as_tensor(value, dtype=torch.float64) for value in (got, wanted))
    assert got.shape == wanted.shape, f"shape {tuple(got.shape)} is not {tuple(wanted.shape)}"
    excess = (got - wanted).abs() - (atol + rtol * wanted.abs())
    worst = int(excess.argmax()) if excess.numel() else 0
    assert bool((excess <= 0).all()), (
        f"{int((~(excess <= 0)).sum())} of {excess.numel()} entries differ; worst at {worst}: "
        f"{got.flatten()[worst].item()} is not {wanted.flatten()[worst].item()} (rtol={rtol}, atol={atol})"
    )
