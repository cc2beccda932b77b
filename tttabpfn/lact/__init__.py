"""LaCT, large-chunk test-time training (Zhang et al. 2025, arXiv 2505.23884), on the library's fast-weight backend."""

from tttabpfn.lact.functional import lact_swiglu
from tttabpfn.lact.layer import LaCTSwiGLU

__all__ = ["LaCTSwiGLU", "lact_swiglu"]
