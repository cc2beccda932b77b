"""Compile `kernels.cpp` for this processor, and call it from autograd."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = ("-O3", "-march=native", "-ffast-math", "-fno-finite-math-only", "-std=c++17", "-shared", "-fPIC")
MAX_WIDTH = 16
"""Widest head that the attention kernel takes."""


class _Shape(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int64) for name in ("batch", "queries", "keys", "heads", "kv_heads", "width"))


def _fingerprint() -> str:
    """Name of a build: another source, processor or user gets another file."""
    cpu = Path("/proc/cpuinfo")
    flags = (
        next((line for line in cpu.read_text().splitlines() if line.startswith("flags")), "") if cpu.exists() else ""
    )
    text = SOURCE.read_text(encoding="utf-8") + " ".join(FLAGS) + platform.machine() + platform.processor() + flags
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """Compile and load the kernels, once a process; the file is kept in the user's cache.

    Returns
    -------
    ctypes.CDLL or None
        None where there is no C++ compiler, or the source is not installed.
    """
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None or not SOURCE.exists():
        return None
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tttabpfn"
    target = cache / f"kernels-{_fingerprint()}.so"
    try:
        if not target.exists():
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache) as folder:
                built = Path(folder) / "kernels.so"
                subprocess.run([compiler, *FLAGS, "-o", str(built), str(SOURCE)], check=True, capture_output=True)
                os.replace(built, target)
        return ctypes.CDLL(str(target))
    except (OSError, subprocess.CalledProcessError):
        return None


def _call(name: str, *arguments: Any) -> None:
    loaded = library()
    assert loaded is not None
    pointers = [ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else a for a in arguments]
    getattr(loaded, name)(*pointers)


def _shape(q: Tensor, k: Tensor) -> _Shape:
    batch, queries, heads, width = q.shape
    return _Shape(batch, queries, k.shape[1], heads, k.shape[2], width)


class NarrowAttention(Function):
    """Softmax attention of heads at most 16 wide: `(B, S, H, D)`, `(B, J, G, D)` twice to `(B, S, H, D)`, float32."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend; query head h reads key and value head ``h // (H // G)``."""
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        out, log_sum = torch.empty_like(q), q.new_empty(q.shape[:3])
        _call("attention_forward", ctypes.byref(_shape(q, k)), q, k, v, out, log_sum)
        ctx.save_for_backward(q, k, v, out, log_sum)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of queries, keys and values."""
        q, k, v, out, log_sum = ctx.saved_tensors
        g_q, g_k, g_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        shape = ctypes.byref(_shape(q, k))
        _call("attention_backward", shape, q, k, v, out, log_sum, gradients[0].contiguous(), g_q, g_k, g_v)
        return g_q, g_k, g_v


class RootMeanSquareNorm(Function):
    """Root-mean-square norm over the last axis with a weight, float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Divide every row by its root mean square."""
        x, weight = x.contiguous(), weight.contiguous()
        y, root = torch.empty_like(x), x.new_empty(x.shape[:-1])
        rows, width = ctypes.c_int64(root.numel()), ctypes.c_int64(x.shape[-1])
        _call("norm_forward", rows, width, ctypes.c_float(eps), x, weight, y, root)
        ctx.save_for_backward(x, weight, root)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the gradients of the rows and of the weight."""
        x, weight, root = ctx.saved_tensors
        g_x, g_weight = torch.empty_like(x), torch.empty_like(weight)
        rows, width = ctypes.c_int64(root.numel()), ctypes.c_int64(x.shape[-1])
        _call("norm_backward", rows, width, x, weight, root, gradients[0].contiguous(), g_x, g_weight)
        return g_x, g_weight, None


class HalfProduct(Function):
    """Linear map whose three products run in bfloat16; what goes in and out stays float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
        """Return ``x @ weight.T``; `rows` is `x` in bfloat16, `(-1, D)`."""
        matrix = weight.bfloat16()
        ctx.save_for_backward(rows, matrix)
        return (rows @ matrix.T).float().view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, None]:
        """Return the gradients of the rows and of the matrix."""
        rows, matrix = ctx.saved_tensors
        g = gradients[0].reshape(-1, matrix.shape[0]).bfloat16()
        g_x = (g @ matrix).float().view(*gradients[0].shape[:-1], matrix.shape[1]) if ctx.needs_input_grad[0] else None
        return g_x, (g.T @ rows).float(), None
