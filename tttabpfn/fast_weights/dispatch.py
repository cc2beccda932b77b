"""Who runs a fast-weight leaf operation: plain PyTorch or a Triton kernel of the same name and signature."""

from __future__ import annotations

from torch import Tensor

from tttabpfn.fast_weights import newton_schulz as _reference_newton_schulz

BACKENDS = ("auto", "torch", "triton")


def newton_schulz(
    matrix: Tensor, schedule: str = "schedule", steps: int = 5, dtype: str = "float32", *, backend: str = "auto"
) -> Tensor:
    """See `tttabpfn.fast_weights.newton_schulz.newton_schulz`."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {list(BACKENDS)}, got {backend!r}")
    if backend == "triton":
        raise RuntimeError('backend="triton" has no kernel here')
    return _reference_newton_schulz.newton_schulz(matrix, schedule, steps, dtype)
