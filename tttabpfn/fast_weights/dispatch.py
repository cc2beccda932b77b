"""Who runs a fast-weight leaf operation: plain PyTorch, or a Triton kernel of the same name and signature.

The choice looks at sizes, dtype and device alone (`Spec`) and keeps "can it run" apart from "is it worth it". A forced
backend runs or raises; only "auto" may fall back.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

__all__ = [
    "BACKENDS",
    "OPERATIONS",
    "Capability",
    "Spec",
    "cannot_run",
    "capability",
    "choose",
    "differentiated",
    "worth_it",
]

BACKENDS = ("auto", "torch", "triton")
OPERATIONS = ("newton_schulz", "step", "swiglu_apply", "swiglu_gradients")
KERNEL_DTYPES = ("float32", "bfloat16")

ON_CHIP_SIZE = {"float32": 64, "bfloat16": 128}
"""Newton-Schulz matrices up to this size, both ways, stay on chip for all steps in one launch. From what the compiler
reports for compute capability 8.0: at these sizes registers hold it; float32 at 128 needs 192 KiB of shared memory,
bfloat16 at 256 does not compile."""
STEP_COLUMNS = 16384
"""Longest row that the fused step keeps in registers."""
NEWTON_SCHULZ_LAUNCH_BOUND = 512
"""Up to this size one Newton-Schulz step is short next to launching it. Reasoned from launch counts, not measured."""
SWIGLU_TOKENS = 1024
"""Tokens from which the fused SwiGLU kernels are tried. Reasoned from traffic saved, not measured."""


@dataclass(frozen=True)
class Spec:
    """Sizes of one call, without tensors.

    Parameters
    ----------
    operation : str
        One of `OPERATIONS`.
    device : str
        Device type, "cpu" or "cuda".
    dtype : str
        Dtype of the data, e.g. "float32".
    batch, rows, cols : int
        Shape of the stack of matrices.
    tokens : int, default=0
        Tokens of a SwiGLU call.
    needs_grad : bool, default=False
        Whether autograd has to see through the operation.
    """

    operation: str
    device: str
    dtype: str
    batch: int
    rows: int
    cols: int
    tokens: int = 0
    needs_grad: bool = False


@dataclass(frozen=True)
class Capability:
    """What this process can run: triton installed, its interpreter on, the GPU's compute capability (or None)."""

    triton: bool
    interpreted: bool
    compute: tuple[int, int] | None


def differentiated(tensors: Iterable[Tensor]) -> bool:
    """Whether autograd follows one of the tensors: backwards, or forwards as in `torch.func.jvp`.

    Examples
    --------
    >>> differentiated([torch.ones(1)]), differentiated([torch.ones(1, requires_grad=True)])
    (False, True)
    """
    backwards = torch.is_grad_enabled()
    return any((backwards and one.requires_grad) or unpack_dual(one).tangent is not None for one in tensors)


@functools.lru_cache(maxsize=1)
def capability() -> Capability:
    """Look once; triton itself is not imported."""
    compute = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
    installed = importlib.util.find_spec("triton") is not None
    return Capability(installed, os.environ.get("TRITON_INTERPRET") == "1", compute)


def cannot_run(spec: Spec, able: Capability) -> str | None:
    """Why the Triton kernel cannot run this call; None if it can.

    Examples
    --------
    >>> spec = Spec("step", "cpu", "float32", batch=1, rows=4, cols=4)
    >>> cannot_run(spec, Capability(triton=True, interpreted=False, compute=None))
    'the data is on "cpu" and kernels need a CUDA device (or TRITON_INTERPRET=1 in the environment, for tests)'
    """
    if not able.triton:
        return "triton is not installed; install the extra: pip install tttabpfn[gpu]"
    if spec.needs_grad:
        return 'an input requires grad and the kernels have no derivative; use backend="torch" or torch.no_grad()'
    if spec.dtype not in KERNEL_DTYPES:
        return f"dtype must be one of {list(KERNEL_DTYPES)}, got {spec.dtype}"
    if spec.operation == "step" and spec.cols > STEP_COLUMNS:
        return f"rows must be at most {STEP_COLUMNS} long, got {spec.cols}"
    if spec.device == "cuda":
        if able.compute is not None and able.compute < (8, 0):
            return f"kernels need compute capability 8.0 or newer, got {able.compute[0]}.{able.compute[1]}"
        return None
    if not able.interpreted:
        return (
            f'the data is on "{spec.device}" and kernels need a CUDA device '
            "(or TRITON_INTERPRET=1 in the environment, for tests)"
        )
    if spec.dtype != "float32":
        return f"the interpreter is right for float32 only, got {spec.dtype}"
    return None


def worth_it(spec: Spec) -> bool:
    """Whether "auto" prefers the kernel where it can run. Thresholds are reasoned, not measured on a GPU.

    Examples
    --------
    >>> worth_it(Spec("newton_schulz", "cuda", "float32", batch=48, rows=192, cols=192))
    True
    >>> worth_it(Spec("newton_schulz", "cpu", "float32", batch=48, rows=192, cols=192))
    False
    """
    if spec.device != "cuda":
        return False
    if spec.operation == "newton_schulz":
        return max(spec.rows, spec.cols) <= NEWTON_SCHULZ_LAUNCH_BOUND
    if spec.operation == "step":
        return True
    return spec.tokens >= SWIGLU_TOKENS


def choose(spec: Spec, backend: str, able: Capability | None = None) -> str:
    """Pick "torch" or "triton" for one call.

    Parameters
    ----------
    spec : Spec
    backend : {"auto", "torch", "triton"}
    able : Capability, optional
        None: this process.

    Returns
    -------
    {"torch", "triton"}

    Raises
    ------
    ValueError
        If the backend is unknown.
    RuntimeError
        If ``backend="triton"`` cannot run this call; the message says why.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {list(BACKENDS)}, got {backend!r}")
    if backend == "torch" or (backend == "auto" and not worth_it(spec)):
        return "torch"
    reason = cannot_run(spec, capability() if able is None else able)
    if reason is None:
        return "triton"
    if backend == "auto":
        return "torch"
    raise RuntimeError(f'backend="triton" cannot run {spec.operation}: {reason}')
