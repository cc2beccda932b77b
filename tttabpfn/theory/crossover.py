r"""When a cold start beats a warm one: the threshold in the number of training queries."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from tttabpfn.theory import _checks
from tttabpfn.theory._square import Array, apply, quadratic, times, trace_of_product, transpose
from tttabpfn.theory.one_step import step_coefficients
from tttabpfn.theory.task import LinearTask

_ROUNDING = 64 * float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Crossover:
    """Where the better of warm and cold start changes as training queries are added.

    Attributes
    ----------
    thresholds : list of float
        Positive numbers of training queries at which the order flips, ascending; empty if it never does. Real numbers,
        not rounded to whole rows. Touching without a flip is not listed.
    cold_better_at_k0 : bool
        Whether the cold start has the lower risk before any query is used: the prior misleads on this task.
    cold_better_at_kinf : bool
        Whether the cold start has the lower risk from the last threshold on.

    Examples
    --------
    >>> from tttabpfn.theory import Crossover
    >>> Crossover([46.2], cold_better_at_k0=False, cold_better_at_kinf=True).thresholds
    [46.2]
    """

    thresholds: list[float]
    cold_better_at_k0: bool
    cold_better_at_kinf: bool


def critical_k(task: LinearTask, W: ArrayLike, context: str = "fresh") -> Crossover:
    r"""Numbers of training queries at which a cold start overtakes a warm one, or the reverse.

    Compares the warm start ``W`` with the cold start ``W = 0``, each after one gradient step at its own best step size.
    The difference of their risks has the sign of an exact quadratic in ``k``, whose sign changes are the thresholds.

    Parameters
    ----------
    task : LinearTask
        The task.
    W : float or array_like of shape (d,) or (d, d)
        The warm start, for example from `pretrained_weight`.
    context : {"fresh", "shared"}, default="fresh"
        What is read at prediction, as for `one_step`.

    Returns
    -------
    Crossover
        The thresholds and who wins at either end. A weight that equals the cold start gives no threshold and False.

    Raises
    ------
    TypeError, ValueError
        If ``W`` has another shape or is not finite, or `context` is unknown.

    Notes
    -----
    This is the transition between warm and cold start of arXiv 2503.11842. For identity covariance without noise and
    ``n / d -> alpha`` a fresh context gives ``k / d -> (1 + alpha)^2 / (2 + alpha)``, and a shared context gives no
    threshold at any size. Terms of the quadratic that rounding cannot tell from 0 count as 0.

    Examples
    --------
    >>> import numpy as np
    >>> from tttabpfn.theory import LinearTask, critical_k, pretrained_weight
    >>> task = LinearTask(n=20, beta=np.ones(20), Sigma_x=1.0)
    >>> warm = pretrained_weight(20, 1.0, 1.0, d=20)
    >>> [round(k, 3) for k in critical_k(task, warm).thresholds]
    [46.23]
    >>> critical_k(task, warm, context="shared").thresholds
    []
    """
    weight, context = task.weight(W), _checks.context_mode(context)
    gap = _head_start(task, weight)
    warm = _saturation(*step_coefficients(task, weight, context))
    cold = _saturation(*step_coefficients(task, np.zeros(task.d), context))
    q2, q1, q0 = _difference(gap, warm, cold)
    ends = [q for q in (q2, q1, q0) if q != 0]
    return Crossover(
        thresholds=_sign_changes(q2, q1, q0),
        cold_better_at_k0=gap < 0,
        cold_better_at_kinf=bool(ends) and ends[0] < 0,
    )


def _head_start(task: LinearTask, W: Array) -> float:
    """Risk of the cold start minus that of ``W``, before any step; exactly 0 where rounding decides."""
    n, p, S = float(task.n), task.p, task.S
    predicted = apply(W, p)
    spread = trace_of_product(times(transpose(W), times(S, W)), S)
    terms = (
        2 * n * float(p @ predicted),
        -n * (n + 1) * quadratic(S, predicted),
        -n * task.label_variance * spread,
    )
    return _sum_or_zero(*terms)


def _saturation(a: float, P: float, H: float) -> tuple[float, float, float]:
    """Numbers ``(A, P, H)`` with the gain ``k A / (k P + H)``, scaled to order 1 in ``P`` and ``H``."""
    scale = max(P, H)
    return (a * (a / scale), P / scale, H / scale) if scale > 0 else (0.0, 0.0, 1.0)


def _difference(
    gap: float, warm: tuple[float, float, float], cold: tuple[float, float, float]
) -> tuple[float, float, float]:
    """Coefficients of ``q2 k^2 + q1 k + q0``, which has the sign of cold risk minus warm risk."""
    (Aw, Pw, Hw), (Ac, Pc, Hc) = warm, cold
    q2 = _sum_or_zero(gap * Pc * Pw, -Ac * Pw, Aw * Pc)
    q1 = _sum_or_zero(gap * Pc * Hw, gap * Hc * Pw, -Ac * Hw, Aw * Hc)
    return q2, q1, gap * Hc * Hw


def _sum_or_zero(*terms: float) -> float:
    """Sum of the terms, or exactly 0 if it is within rounding of their sizes."""
    total = math.fsum(terms)
    return total if abs(total) > _ROUNDING * math.fsum(map(abs, terms)) else 0.0


def _sign_changes(q2: float, q1: float, q0: float) -> list[float]:
    """Positive ``k`` at which ``q2 k^2 + q1 k + q0`` changes its sign, ascending."""
    if q2 == 0:
        return [-q0 / q1] if q1 != 0 and -q0 / q1 > 0 else []
    discriminant = _sum_or_zero(q1 * q1, -4 * q2 * q0)
    if discriminant <= 0:
        return []
    half = -(q1 + math.copysign(math.sqrt(discriminant), q1)) / 2
    roots = (half / q2, q0 / half)
    return sorted(root for root in roots if root > 0)
