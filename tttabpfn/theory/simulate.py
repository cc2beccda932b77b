r"""The gradient step of TTT taken for real on sampled rows, to check the closed forms and to go past one step."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tttabpfn.theory import _checks
from tttabpfn.theory._square import Array, square_root
from tttabpfn.theory.task import LinearTask

_NUMBERS_PER_BATCH = 2**20


def simulate(
    task: LinearTask,
    W: ArrayLike,
    k: int,
    step_size: ArrayLike,
    context: str = "fresh",
    n_repeats: int = 1000,
    random_state: int | np.random.SeedSequence | np.random.Generator | None = None,
    *,
    n_steps: int = 1,
) -> tuple[Any, Any]:
    r"""Estimate the risk after TTT by sampling contexts and training queries and taking the gradient step on them.

    Each repetition draws a context ``(X, y)`` of ``task.n`` rows and ``k`` training queries ``(X_t, y_t)``, takes
    ``n_steps`` full-batch gradient steps on the **sum** of squared errors, all from the same context and queries,

    .. math:: W \leftarrow W + 2 \eta\, X_t^\top (y_t - X_t W u)\, u^\top, \qquad u = X^\top y,

    and measures the squared error of the stepped model on a new query with the context ``u_e``. The expectation over
    that one query is taken exactly: ``(beta - W_TT u_e)^T S (beta - W_TT u_e) + sigma2``. None of the closed forms is
    used.

    Parameters
    ----------
    task : LinearTask
        The task.
    W : float or array_like of shape (d,) or (d, d)
        Weight before the first step.
    k : int
        Training queries, at least 1.
    step_size : float or array_like
        Step size or sizes for the sum loss. All sizes are tried on the same samples.
    context : {"fresh", "shared"}, default="fresh"
        What is read at prediction: an independent context of the task, or the one that TTT used.
    n_repeats : int, default=1000
        Repetitions, at least 2.
    random_state : int, numpy.random.SeedSequence, numpy.random.Generator or None, default=None
        Seed or generator. An int gives the same result each time; None draws fresh entropy. NumPy's global state is
        neither read nor changed.
    n_steps : int, default=1
        Gradient steps, at least 1.

    Returns
    -------
    mean : float or ndarray of the shape of `step_size`
        Average risk in squared label units, including the query's noise.
    standard_error : float or ndarray of the shape of `step_size`
        Standard deviation over repetitions (``ddof=1``) over the root of their number.

    Raises
    ------
    TypeError, ValueError
        If a count is no whole number in its range, ``W`` has another shape, a value is not finite, or `context` is
        unknown.

    Notes
    -----
    Work is done in batches of about 2**20 sampled numbers (8 MiB), at least one repetition each. Since every update is
    a multiple of ``u^T``, the step is kept as the vector ``G`` in ``W + G u^T``; a ``d x d`` matrix appears only if
    ``W`` or the covariance is one. The risk is heavy-tailed in the sample: at a handful of rows the standard error
    itself needs tens of thousands of repetitions.

    Examples
    --------
    >>> import numpy as np
    >>> from tttabpfn.theory import LinearTask, one_step, simulate
    >>> task = LinearTask(n=40, beta=np.ones(20), Sigma_x=1.0)
    >>> step = one_step(task, 0.0, k=60)
    >>> mean, standard_error = simulate(task, 0.0, 60, step.step_size, n_repeats=2000, random_state=0)
    >>> bool(abs(mean - step.risk_after) < 3 * standard_error)
    True
    """
    weight, context = task.weight(W), _checks.context_mode(context)
    k, n_steps = _checks.count("k", k), _checks.count("n_steps", n_steps)
    if _checks.count("n_repeats", n_repeats) < 2:
        raise ValueError(f"n_repeats must be a whole number >= 2 for a standard error, got {n_repeats!r}")
    sizes = _checks.numbers("step_size", step_size)
    generator = np.random.default_rng(random_state)
    factor = square_root(task.S)
    batch = max(1, _NUMBERS_PER_BATCH // ((2 * task.n + k) * task.d))
    risks = np.empty((n_repeats, sizes.size))
    for start in range(0, n_repeats, batch):
        stop = min(start + batch, n_repeats)
        X, y = _rows(task, factor, stop - start, task.n, generator)
        queries = _rows(task, factor, stop - start, k, generator)
        seen = _statistic(X, y)
        read = seen
        if context == "fresh":
            read = _statistic(*_rows(task, factor, stop - start, task.n, generator))
        for column, size in enumerate(sizes.flat):
            step = gradient_steps(weight, seen, *queries, step_size=float(size), n_steps=n_steps)
            predicted = _map(weight, read) + step * np.sum(seen * read, axis=1, keepdims=True)
            residual = task.beta - predicted
            risks[start:stop, column] = np.sum(residual * _map(task.S, residual), axis=1) + task.sigma2
    mean = risks.mean(axis=0).reshape(sizes.shape)
    error = (risks.std(axis=0, ddof=1) / np.sqrt(n_repeats)).reshape(sizes.shape)
    return (float(mean), float(error)) if sizes.ndim == 0 else (mean, error)


def gradient_steps(W: Array, u: Array, X: Array, y: Array, *, step_size: float, n_steps: int = 1) -> Array:
    r"""Full-batch gradient steps on the summed squared error, for a batch of repetitions.

    Parameters
    ----------
    W : ndarray of shape (d,) or (d, d)
        Weight before the first step, the same for all repetitions.
    u : ndarray of shape (repeats, d)
        Context statistics.
    X : ndarray of shape (repeats, k, d)
        Training queries.
    y : ndarray of shape (repeats, k)
        Their labels.
    step_size : float
        Step size for the sum loss.
    n_steps : int, default=1
        Number of steps.

    Returns
    -------
    G : ndarray of shape (repeats, d)
        The stepped weights are ``W + G u^T``.
    """
    started = _map(W, u)
    length = np.sum(u * u, axis=1, keepdims=True)
    G = np.zeros_like(u)
    for _ in range(n_steps):
        errors = y - np.einsum("rkd,rd->rk", X, started + G * length)
        G = G + 2 * step_size * np.einsum("rkd,rk->rd", X, errors)
    return G


def _rows(
    task: LinearTask, factor: Array, repeats: int, rows: int, generator: np.random.Generator
) -> tuple[Array, Array]:
    X = _map(factor, generator.standard_normal((repeats, rows, task.d)))
    noise = np.sqrt(task.sigma2) * generator.standard_normal((repeats, rows))
    return X, X @ task.beta + noise


def _statistic(X: Array, y: Array) -> Array:
    """``u = X^T y`` of each repetition."""
    return np.asarray(np.einsum("rnd,rn->rd", X, y))


def _map(A: Array, vectors: Array) -> Array:
    """Apply ``A`` to each vector ``v`` along the last axis."""
    return vectors * A if A.ndim == 1 else vectors @ A.T
