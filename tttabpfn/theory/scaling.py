r"""Step sizes of other conventions, in the units of this package."""

from __future__ import annotations

from tttabpfn.theory import _checks

_LOSSES = ("sum", "mean", "half_sum", "half_mean")
_CONTEXTS = ("sum", "mean")


def step_size_for(
    step_size: float, *, loss: str = "sum", k: int | None = None, context_scale: str = "sum", n: int | None = None
) -> float:
    r"""Convert a step size of another convention into that of `one_step` and `simulate`.

    This package takes the step on the **sum** of ``k`` squared errors of ``x^T W u`` with ``u = X^T y``.

    Parameters
    ----------
    step_size : float
        Step size in the other convention.
    loss : {"sum", "mean", "half_sum", "half_mean"}, default="sum"
        The other convention's loss over the training queries: summed or averaged, with or without a factor 1/2. A mean
        divides the step size by ``k``, a half by 2.
    k : int, optional
        Training queries; needed for the two means.
    context_scale : {"sum", "mean"}, default="sum"
        "mean" if the other model reads ``u / n`` and steps on ``V = n W``. It divides the step size by ``n**2``; the
        weight to pass here is ``V / n``.
    n : int, optional
        Context rows; needed for ``context_scale="mean"``.

    Returns
    -------
    float
        The step size here that makes the same update.

    Raises
    ------
    TypeError, ValueError
        If a name is unknown, a needed ``k`` or ``n`` is missing, or a number is not allowed.

    Examples
    --------
    >>> from tttabpfn.theory import step_size_for
    >>> step_size_for(0.5, loss="mean", k=100)
    0.005
    >>> step_size_for(0.5, loss="half_sum", context_scale="mean", n=10)
    0.0025
    """
    converted = _checks.finite("step_size", step_size)
    if loss not in _LOSSES:
        raise ValueError(f"loss must be one of {_LOSSES}, got {loss!r}")
    if context_scale not in _CONTEXTS:
        raise ValueError(f"context_scale must be one of {_CONTEXTS}, got {context_scale!r}")
    if loss.endswith("mean"):
        if k is None:
            raise ValueError(f'k must be given with loss="{loss}", got None')
        converted /= _checks.count("k", k)
    if loss.startswith("half"):
        converted /= 2
    if context_scale == "mean":
        if n is None:
            raise ValueError('n must be given with context_scale="mean", got None')
        converted /= _checks.count("n", n) ** 2
    return converted
