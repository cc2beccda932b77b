"""The fast-weight leaf operations behind one dispatch: the names and signatures of `reference`, plus `backend`."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from tttabpfn.fast_weights import blocked, reference
from tttabpfn.fast_weights.dispatch import BACKENDS, Spec, choose, differentiated
from tttabpfn.fast_weights.reference.step import StepOptions

__all__ = ["StepOptions", "newton_schulz", "step", "swiglu_apply", "swiglu_gradients"]


def newton_schulz(
    matrix: Tensor, schedule: str = "schedule", steps: int = 5, dtype: str = "float32", *, backend: str = "auto"
) -> Tensor:
    """See `tttabpfn.fast_weights.reference.newton_schulz.newton_schulz`; `matrix` is [B, D_out, D_in]."""
    if _runs_in_torch("newton_schulz", matrix, (matrix,), backend):
        return blocked.newton_schulz(matrix, schedule, steps, dtype)
    from tttabpfn.fast_weights.kernels import newton_schulz as kernel

    return kernel.newton_schulz(matrix, schedule, steps, dtype)


def step(
    weight: Tensor, gradient: Tensor, buffer: Tensor | None, options: StepOptions, *, backend: str = "auto"
) -> tuple[Tensor, Tensor | None]:
    """See `tttabpfn.fast_weights.reference.step.step`."""
    used = [value for value in (weight, gradient, buffer, *options) if isinstance(value, Tensor)]
    if _runs_in_torch("step", weight, used, backend):
        return reference.step(weight, gradient, buffer, options)
    from tttabpfn.fast_weights.kernels import step as kernel

    return kernel.step(weight, gradient, buffer, options)


def swiglu_apply(
    w0: Tensor, w1: Tensor, w2: Tensor, x: Tensor, out: Tensor | None = None, *, backend: str = "auto"
) -> Tensor:
    """See `tttabpfn.fast_weights.reference.swiglu.swiglu_apply`."""
    return _swiglu(x, (w0, w1, w2, x), "swiglu_apply", backend).swiglu_apply(w0, w1, w2, x, out)


def swiglu_gradients(
    w0: Tensor,
    w1: Tensor,
    w2: Tensor,
    k: Tensor,
    v: Tensor,
    lr0: Tensor,
    lr1: Tensor,
    lr2: Tensor,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """See `tttabpfn.fast_weights.reference.swiglu.swiglu_gradients`."""
    args = (w0, w1, w2, k, v, lr0, lr1, lr2)
    return _swiglu(k, args, "swiglu_gradients", backend).swiglu_gradients(*args)


def _swiglu(tokens: Tensor, used: tuple[Tensor, ...], operation: str, backend: str) -> ModuleType:
    if _runs_in_torch(operation, used[0], used, backend, tokens.shape[1]):
        return blocked
    from tttabpfn.fast_weights.kernels import swiglu as kernel

    return kernel


def _runs_in_torch(
    operation: str, matrix: Tensor, used: tuple[Tensor, ...] | list[Tensor], backend: str, tokens: int = 0
) -> bool:
    if backend == "torch" or (backend == "auto" and matrix.device.type == "cpu"):
        return True
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {list(BACKENDS)}, got {backend!r}")
    spec = Spec(
        operation,
        matrix.device.type,
        str(matrix.dtype).removeprefix("torch."),
        batch=matrix.shape[0],
        rows=matrix.shape[1],
        cols=matrix.shape[2],
        tokens=tokens,
        needs_grad=differentiated(used),
    )
    return choose(spec, backend) == "torch"
