"""Triton kernels of the fast-weight leaf operations; importing this package needs no triton."""
