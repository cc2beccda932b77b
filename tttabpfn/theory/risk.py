r"""Squared error of linear attention before TTT: the pretrained weight, the risk of any weight, and its floor."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tttabpfn.theory import _checks
from tttabpfn.theory._square import Array, apply, quadratic, times, trace_of_product, transpose
from tttabpfn.theory.task import LinearTask


def pretrained_weight(
    n: int,
    Sigma_x: ArrayLike,
    Sigma_beta: ArrayLike,
    sigma2: float = 0.0,
    d: int | None = None,
    *,
    form: str = "dense",
) -> Array:
    r"""Weight that minimises the risk averaged over tasks ``beta ~ N(0, Sigma_beta)``.

    With :math:`c = \operatorname{tr}(\Sigma_\beta S) + \sigma^2` the normal equations
    :math:`W\, E[u u^\top] = E[\beta u^\top]` give, exactly and for any pair of covariances,

    .. math:: W^* = [(n+1)\,\Sigma_\beta S + c I]^{-1} \Sigma_\beta .

    Parameters
    ----------
    n : int
        Context rows during pretraining, at least 1.
    Sigma_x : float or array_like of shape (d,) or (d, d)
        Covariance of the rows during pretraining.
    Sigma_beta : float or array_like of shape (d,) or (d, d)
        Covariance of the pretraining tasks' coefficients.
    sigma2 : float, default=0.0
        Noise variance during pretraining.
    d : int, optional
        Number of features; needed if both covariances are scalars.
    form : {"dense", "diagonal"}, default="dense"
        "dense" returns ``(d, d)``. "diagonal" returns the diagonal ``(d,)``, in O(d); it needs scalar or diagonal
        covariances.

    Returns
    -------
    W : ndarray of shape (d, d), or (d,) if ``form="diagonal"``
        Symmetric, float64. It multiplies ``u = X^T y`` (no ``1/n``); a model that reads ``u / n`` has the weight
        ``n W``. If all labels of the prior are zero (``c = 0``) any weight is optimal and zeros are returned.

    Raises
    ------
    TypeError, ValueError
        If an input is outside what is stated above.

    Notes
    -----
    These ``n``, covariances and noise belong to pretraining and may differ from those of a `LinearTask` met at test
    time. This is the pretrained model that TTT starts from in arXiv 2503.11842; the paper treats the jointly diagonal
    case, for which the formula reads :math:`w_i = q_i / ((n+1) l_i q_i + \sum_j l_j q_j + \sigma^2)`.

    Examples
    --------
    >>> from tttabpfn.theory import pretrained_weight
    >>> pretrained_weight(40, 1.0, 1.0, d=2) * (40 + 2 + 1)
    array([[1., 0.],
           [0., 1.]])
    >>> pretrained_weight(10, [2.0, 1.0], [1.0, 0.0], sigma2=0.5, form="diagonal")
    array([0.04081633, 0.        ])
    """
    n, sigma2 = _checks.count("n", n), _checks.non_negative("sigma2", sigma2)
    if form not in ("dense", "diagonal"):
        raise ValueError(f'form must be "dense" or "diagonal", got {form!r}')
    d = _dimension(Sigma_x, Sigma_beta, d)
    S, prior = _checks.covariance("Sigma_x", Sigma_x, d), _checks.covariance("Sigma_beta", Sigma_beta, d)
    c = trace_of_product(prior, S) + sigma2
    if S.ndim == 1 and prior.ndim == 1:
        diagonal = np.zeros(d) if c == 0 else prior / ((n + 1) * S * prior + c)
        return diagonal if form == "diagonal" else np.diag(diagonal)
    if form == "diagonal":
        raise ValueError('form="diagonal" needs scalar or diagonal Sigma_x and Sigma_beta, got a (d, d) matrix')
    if c == 0:
        return np.zeros((d, d))
    full = np.diag(prior) if prior.ndim == 1 else prior
    W = np.linalg.solve((n + 1) * times(full, S) + c * np.eye(d), full)
    return np.asarray((W + W.T) / 2)


def risk(task: LinearTask, W: ArrayLike) -> float:
    r"""Compute the expected squared error of ``x^T W u`` on a new query, before TTT.

    .. math:: L(W) = \sigma^2 + r^\top S r + n\, p^\top W^\top S W p + n s \operatorname{tr}(W^\top S W S),
        \qquad r = \beta - n W p,

    with :math:`p = S\beta` and :math:`s = \beta^\top S\beta + \sigma^2`. No term is negative, so nothing cancels.

    Parameters
    ----------
    task : LinearTask
        The task; its ``n`` is the context size.
    W : float or array_like of shape (d,) or (d, d)
        Weight: a scalar times the identity, a diagonal, or any full matrix (it need not be symmetric).

    Returns
    -------
    float
        Risk in squared label units, **including** the query's own noise ``sigma2``; ``W = 0`` gives the variance of a
        label. It is the same whether the context is a fresh one or the one TTT used.

    Raises
    ------
    TypeError, ValueError
        If ``W`` has another shape or holds values that are not finite numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from tttabpfn.theory import LinearTask, pretrained_weight, risk
    >>> task = LinearTask(n=40, beta=np.ones(20), Sigma_x=1.0)
    >>> risk(task, 0.0)
    20.0
    >>> round(risk(task, pretrained_weight(40, 1.0, 1.0, d=20)), 6)  # B (d + 1) / (n + d + 1)
    6.885246
    """
    return risk_of_weight(task, task.weight(W))


def risk_of_weight(task: LinearTask, weight: Array) -> float:
    """Compute `risk` for a checked weight of shape (d,) or (d, d)."""
    predicted = apply(weight, task.p)
    residual = task.beta - task.n * predicted
    spread = quadratic(task.S, predicted) + task.label_variance * _trace_wsws(weight, task.S)
    return task.sigma2 + quadratic(task.S, residual) + task.n * spread


def risk_floor(task: LinearTask) -> float:
    r"""Least risk that any weight reaches on this task, :math:`s - n m^2 / (s + (n+1) m)`.

    No number of TTT steps goes below it when a fresh context is read at prediction. With the TTT context itself at
    prediction the bound does not hold, since the weight may then depend on the context.

    Parameters
    ----------
    task : LinearTask
        The task.

    Returns
    -------
    float
        The floor in squared label units, including ``sigma2``.

    Examples
    --------
    >>> import numpy as np
    >>> from tttabpfn.theory import LinearTask, risk_floor
    >>> round(risk_floor(LinearTask(n=40, beta=np.ones(20), Sigma_x=1.0)), 6)  # 2 m / (n + 2)
    0.952381
    """
    m, s = task.signal_variance, task.label_variance
    if m == 0:
        return s
    return task.sigma2 + m * (s + m) / (s + (task.n + 1) * m)


def _trace_wsws(W: Array, S: Array) -> float:
    return trace_of_product(times(transpose(W), times(S, W)), S)


def _dimension(Sigma_x: ArrayLike, Sigma_beta: ArrayLike, d: Any) -> int:
    if d is not None:
        return _checks.count("d", d)
    for name, value in (("Sigma_x", Sigma_x), ("Sigma_beta", Sigma_beta)):
        shape = _checks.numbers(name, value).shape
        if shape:
            return _checks.count("d", shape[0])
    raise ValueError("d must be given when Sigma_x and Sigma_beta are both scalars, got None")
