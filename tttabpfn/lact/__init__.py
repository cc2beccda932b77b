"""LaCT, large-chunk test-time training (Zhang et al. 2025, arXiv 2505.23884), on the library's fast-weight backend."""

from tttabpfn.lact.functional import lact_swiglu

__all__ = ["lact_swiglu"]
