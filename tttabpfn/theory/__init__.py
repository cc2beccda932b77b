r"""One step of test-time training (TTT) of a linear-attention in-context learner, in closed form.

The setting of Gozeten et al. (arXiv 2503.11842). A task is ``y = x^T beta + xi`` with ``x ~ N(0, S)`` and
``xi ~ N(0, sigma2)``. A one-layer linear-attention model reads ``n`` labelled rows ``(X, y)`` and predicts
``f(x) = x^T W u`` with ``u = X^T y`` (no ``1/n``). TTT takes one gradient step on ``W`` for the **sum** of the squared
errors on ``k`` further rows, the training queries. Everything here is exact for finite ``n``, ``k``, ``d``; the limits
that the paper states are its large-``d`` form.

Names
-----
`LinearTask`
    one task: context size, coefficients, covariance of the rows, noise.
`pretrained_weight`
    the ``W`` that pretraining on a prior over tasks ends at.
`risk`, `risk_floor`
    squared error before TTT, and the least that any ``W`` reaches.
`one_step`
    squared error after one step as an exact quadratic in the step size, with the best step and its gain.
`critical_k`
    how many training queries it takes until a cold start (``W = 0``) beats a warm one.
`simulate`
    the same step taken for real on sampled rows.
`step_size_for`
    converts step sizes from mean losses, halved losses and averaged contexts.
"""

from tttabpfn.theory.crossover import Crossover, critical_k
from tttabpfn.theory.one_step import OneStep, one_step
from tttabpfn.theory.risk import pretrained_weight, risk, risk_floor
from tttabpfn.theory.scaling import step_size_for
from tttabpfn.theory.simulate import simulate
from tttabpfn.theory.task import LinearTask

__all__ = [
    "Crossover",
    "LinearTask",
    "OneStep",
    "critical_k",
    "one_step",
    "pretrained_weight",
    "risk",
    "risk_floor",
    "simulate",
    "step_size_for",
]
