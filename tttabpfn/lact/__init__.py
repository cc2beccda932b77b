"""LaCT, large-chunk test-time training (Zhang et al. 2025, arXiv 2505.23884), on the library's fast-weight backend."""

from tttabpfn.lact.functional import lact_swiglu
from tttabpfn.lact.layer import LaCTSwiGLU
from tttabpfn.lact.state import LaCTState
from tttabpfn.lact.streaming import lact_swiglu_resume
from tttabpfn.lact.sum_state import SumState

__all__ = ["LaCTState", "LaCTSwiGLU", "SumState", "lact_swiglu", "lact_swiglu_resume"]
