r"""Exact moments of the context statistic and of the residual that it leaves.

For a context of ``n`` rows, ``u = X^T y`` has, exactly, the law of ``Q p + sqrt(s Q) h`` with ``Q ~ chi^2_n``
independent of ``h ~ N(0, S - p p^T / s)``: given its label, a row is Gaussian with mean ``p y / s``. The moments of
``u`` are those of a Gaussian with mean ``p`` and covariance ``s S``, where a term with ``i`` factors of the mean and
``j`` of the covariance is multiplied by

    alpha(i, j) = [n (n+2) ... (n+2j-2)] * [(n+2j) (n+2j+1) ... (n+2j+i-1)].

The formulas below are grouped around the residual ``rho = beta - (n+2) W p`` (or ``n+4``) instead of being expanded in
``beta``: a well pretrained ``W`` makes the residual small, and expanded terms would cancel.
"""

from __future__ import annotations

from tttabpfn.theory._square import Array, apply, power, quadratic, times, trace, trace_of_product, transpose
from tttabpfn.theory.task import LinearTask


class QuadraticWeight:
    r"""The weight ``Phi = u^T A u`` with ``A = I`` or ``A = M = E[u u^T]``, through the few numbers that moments need.

    Parameters
    ----------
    task : LinearTask
        The task.
    second_moment : bool
        True for ``A = M = n (n+1) p p^T + n s S``, False for the identity.
    """

    def __init__(self, task: LinearTask, second_moment: bool) -> None:
        self.task = task
        if second_moment:
            self.rank_one, self.power, self.scale = task.n * (task.n + 1.0), 1, task.n * task.label_variance
        else:
            self.rank_one, self.power, self.scale = 0.0, 0, 1.0

    @property
    def along_p(self) -> float:
        """``p^T A p``."""
        task = self.task
        return self.rank_one * task.moment(0) ** 2 + self.scale * task.moment(self.power)

    @property
    def trace_with_S(self) -> float:
        """``tr(A S)``."""
        task = self.task
        return self.rank_one * task.moment(1) + self.scale * task.trace(self.power + 1)

    @property
    def mean(self) -> float:
        """``E Phi = n (n+1) p^T A p + n s tr(A S)``."""
        task = self.task
        return task.n * ((task.n + 1.0) * self.along_p + task.label_variance * self.trace_with_S)

    def S_A_p(self) -> Array:
        """``S A p``."""
        task = self.task
        scaled = apply(power(task.S, self.power + 1), task.p)
        return self.rank_one * task.moment(0) * apply(task.S, task.p) + self.scale * scaled

    def trace_SASK(self, K: Array) -> float:
        """``tr(S A S K)`` for a symmetric ``K``."""
        task = self.task
        along = quadratic(K, apply(task.S, task.p))
        return self.rank_one * along + self.scale * trace_of_product(power(task.S, self.power + 2), K)

    def mean_with_residual(self, W: Array, D: Array) -> float:
        r"""``E[u^T A u * r^T D r]`` with ``r = beta - W u``, for a symmetric positive semidefinite ``D``."""
        task = self.task
        n, s, S = float(task.n), task.label_variance, task.S
        predicted = apply(W, task.p)
        rho = task.beta - (n + 2) * predicted
        K = times(transpose(W), times(D, W))
        crossed = apply(D, apply(W, self.S_A_p()))
        trace_KS = trace_of_product(K, S)
        aligned = self.mean * (quadratic(D, rho) + (n + 2) * quadratic(D, predicted))
        mixed = (n + 3) * self.along_p * trace_KS - 4 * float((rho - predicted) @ crossed)
        scattered = s * (self.trace_with_S * trace_KS + 2 * self.trace_SASK(K))
        return aligned + n * (n + 2) * s * (mixed + scattered)


class QuarticWeight:
    r"""The weight ``Phi = |u|^4``.

    Parameters
    ----------
    task : LinearTask
        The task.
    """

    def __init__(self, task: LinearTask) -> None:
        self.task = task
        self.P0, self.t1 = task.moment(0), task.trace(1)
        self.c1 = 2 * self.P0 * self.t1 + 4 * task.moment(1)
        self.c2 = self.t1**2 + 2 * task.trace(2)

    @property
    def mean(self) -> float:
        """``E |u|^4``."""
        n, s = float(self.task.n), self.task.label_variance
        four = (n + 1) * (n + 2) * (n + 3) * self.P0**2
        return n * (four + (n + 2) * (n + 3) * s * self.c1 + (n + 2) * s**2 * self.c2)

    def mean_with_residual(self, W: Array, D: Array) -> float:
        r"""``E[|u|^4 r^T D r]`` with ``r = beta - W u``, for a symmetric positive semidefinite ``D``."""
        task, P0, t1, c1, c2 = self.task, self.P0, self.t1, self.c1, self.c2
        n, s, S, p = float(task.n), task.label_variance, task.S, task.p
        predicted = apply(W, p)
        rho = task.beta - (n + 4) * predicted
        K = times(transpose(W), times(D, W))
        KS = times(K, S)
        Sp = apply(S, p)
        trace_KS, trace_KS2, trace_KS3 = trace(KS), trace_of_product(KS, S), trace_of_product(KS, power(S, 2))
        left = apply(transpose(W), apply(D, rho - predicted))
        along_Sp, along_S2p = float(left @ Sp), float(left @ apply(S, Sp))
        aligned = self.mean * (quadratic(D, rho) + (n + 4) * quadratic(D, predicted))
        order_1 = (n + 3) * P0 * ((n + 5) * P0 * trace_KS - 8 * along_Sp)
        order_2 = (n + 5) * (c1 * trace_KS + 4 * P0 * trace_KS2 + 8 * quadratic(K, Sp)) - 8 * t1 * along_Sp
        order_2 -= 16 * along_S2p
        order_3 = c2 * trace_KS + 4 * t1 * trace_KS2 + 8 * trace_KS3
        return aligned + n * (n + 2) * (n + 4) * s * (order_1 + s * order_2 + s**2 * order_3)
