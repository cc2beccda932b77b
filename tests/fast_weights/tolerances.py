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
    wanted = wanted.double()
    return float((got.double() - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())


def relative_max(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference over largest entry of what is wanted."""
    return float((got.double() - wanted.double()).abs().max() / wanted.double().abs().max())
