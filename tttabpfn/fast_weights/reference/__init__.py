"""The fast-weight leaf operations in plain PyTorch: what every kernel has to equal.

All are pure, differentiable by autograd, and compute in float32 or float64 as their inputs do. A kernel replaces one of
these by the same name and signature; the chunk loop above them never changes.
"""

from tttabpfn.fast_weights.reference.newton_schulz import newton_schulz
from tttabpfn.fast_weights.reference.step import step
from tttabpfn.fast_weights.reference.swiglu import swiglu_apply, swiglu_gradients

__all__ = ["newton_schulz", "step", "swiglu_apply", "swiglu_gradients"]
