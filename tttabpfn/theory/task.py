r"""A linear-regression task and the numbers that its closed forms share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tttabpfn.theory import _checks
from tttabpfn.theory._square import Array, apply, power, simplest, trace


@dataclass(frozen=True, eq=False)
class LinearTask:
    r"""A noisy linear task that a model sees through a context of ``n`` rows.

    Labels are ``y = x^T beta + xi`` with rows ``x ~ N(0, Sigma_x)`` and noise ``xi ~ N(0, sigma2)``, all independent.
    ``beta`` is fixed: risks of this module average over rows and noise, never over tasks.

    Parameters
    ----------
    n : int
        Rows of the context, at least 1.
    beta : array_like of shape (d,)
        Coefficients, in label units per feature unit.
    Sigma_x : float or array_like of shape (d,) or (d, d)
        Covariance of a row: a scalar times the identity, the diagonal, or the full matrix. Positive semidefinite; it
        may be singular.
    sigma2 : float, default=0.0
        Variance of the label noise, in squared label units.

    Raises
    ------
    TypeError
        If ``n`` is no whole number, or an array holds no real numbers.
    ValueError
        If ``n`` is below 1, ``sigma2`` is negative, a value is not finite, a shape does not fit, or ``Sigma_x`` is not
        symmetric or not positive semidefinite.

    Notes
    -----
    The task keeps read-only float64 copies. With a scalar or diagonal ``Sigma_x`` nothing of size ``d x d`` is built,
    here or later, unless a full ``W`` is passed. A full matrix with nothing off its diagonal is treated as a diagonal.

    Examples
    --------
    >>> from tttabpfn.theory import LinearTask
    >>> task = LinearTask(n=40, beta=[1.0, -0.5, 0.25], Sigma_x=[2.0, 1.0, 0.5], sigma2=0.1)
    >>> task.d
    3
    >>> round(task.label_variance, 5)
    2.38125
    """

    n: int
    beta: Any
    Sigma_x: Any
    sigma2: float = 0.0

    def __post_init__(self) -> None:
        beta = _checks.vector("beta", self.beta)
        covariance = _checks.covariance("Sigma_x", self.Sigma_x, beta.size)
        object.__setattr__(self, "n", _checks.count("n", self.n))
        object.__setattr__(self, "beta", _frozen(beta))
        object.__setattr__(self, "Sigma_x", float(covariance[0]) if np.ndim(self.Sigma_x) == 0 else _frozen(covariance))
        object.__setattr__(self, "sigma2", _checks.non_negative("sigma2", self.sigma2))

    @property
    def d(self) -> int:
        """Number of features."""
        return int(self.beta.size)

    @cached_property
    def S(self) -> Array:
        """``Sigma_x`` as a diagonal, shape (d,), or, if it is none, in full, shape (d, d)."""
        return _frozen(simplest(_checks.square("Sigma_x", self.Sigma_x, self.d)))

    @cached_property
    def p(self) -> Array:
        """Covariance of a row with its label, ``p = S beta``."""
        return _frozen(apply(self.S, self.beta))

    @cached_property
    def signal_variance(self) -> float:
        """``m = beta^T S beta``: variance of a label without its noise."""
        return float(self.beta @ self.p)

    @property
    def label_variance(self) -> float:
        """``s = m + sigma2``: variance of a label, which is the risk of predicting zero."""
        return self.signal_variance + self.sigma2

    def moment(self, j: int) -> float:
        """``P_j = p^T S^j p``."""
        return float(self.p @ (apply(power(self.S, j), self.p) if j else self.p))

    def trace(self, j: int) -> float:
        """``t_j = tr S^j`` for ``j >= 1``."""
        return trace(power(self.S, j))

    def weight(self, W: ArrayLike) -> Array:
        """Check ``W`` and return it as a diagonal, shape (d,), or, if it is none, in full, shape (d, d)."""
        return simplest(_checks.square("W", W, self.d))


def _frozen(array: Array) -> Array:
    array = array.copy()
    array.setflags(write=False)
    return array
