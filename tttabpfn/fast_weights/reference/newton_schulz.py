"""Newton-Schulz orthogonalisation of stacks of matrices, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["COEFFICIENTS", "DTYPES", "EPS", "coefficients", "compute_dtype", "iterates_transposed", "newton_schulz"]

EPS = 1e-7
"""Added to the Frobenius norm before the division, in both published versions."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

COEFFICIENTS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "schedule": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    "fixed": ((3.4445, -4.7750, 2.0315),),
}
"""Published coefficients of the quintic a x + b x^3 + c x^5: one triple per step, or one for every step."""


def coefficients(name: str, steps: int) -> tuple[tuple[float, float, float], ...]:
    """Coefficient triples of the first `steps` Newton-Schulz steps.

    Parameters
    ----------
    name : {"schedule", "fixed"}
        "schedule" has five triples, one per step, as LaCT's language models use them; "fixed" repeats the triple of
        Keller Jordan's Muon.
    steps : int
        0 and more for "fixed", 0 to 5 for "schedule". With 0 the matrix is only divided by its Frobenius norm.

    Returns
    -------
    tuple of (a, b, c)

    Raises
    ------
    ValueError
        If the name is unknown, or the schedule has fewer triples than `steps`.

    Examples
    --------
    >>> coefficients("fixed", 2)
    ((3.4445, -4.775, 2.0315), (3.4445, -4.775, 2.0315))
    >>> len(coefficients("schedule", 5))
    5
    """
    if name not in COEFFICIENTS:
        raise ValueError(f"newton_schulz must be one of {sorted(COEFFICIENTS)}, got {name!r}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"newton_schulz_steps must be an integer of 0 or more, got {steps!r}")
    triples = COEFFICIENTS[name]
    if name == "fixed":
        return triples * steps
    if steps > len(triples):
        raise ValueError(
            f'newton_schulz_steps must be at most {len(triples)} for newton_schulz="schedule", got {steps}'
        )
    return triples[:steps]


def compute_dtype(name: str, given: torch.dtype) -> torch.dtype:
    """Dtype in which the iteration runs: "bfloat16" as named, "float32" at least float32 (float64 stays float64)."""
    if name not in DTYPES:
        raise ValueError(f"newton_schulz_dtype must be one of {sorted(DTYPES)}, got {name!r}")
    return torch.promote_types(torch.float32, given) if name == "float32" else torch.bfloat16


def iterates_transposed(rows: int, cols: int, schedule: str) -> bool:
    """Whether the iteration runs on the transposed matrix: on the short side, so that Gram matrices are small.

    A square matrix has no short side, and exact arithmetic would not care; in bfloat16 the two differ by several per
    cent. The published code with the "fixed" coefficients stores weights as [D_in, D_out], the one with the
    "schedule" as [D_out, D_in], so for square matrices "fixed" runs on the transposed one.

    Examples
    --------
    >>> iterates_transposed(3, 2, "schedule"), iterates_transposed(2, 2, "schedule"), iterates_transposed(2, 2, "fixed")
    (True, False, True)
    """
    return rows > cols or (rows == cols and schedule == "fixed")


def newton_schulz(
    matrix: Tensor,
    schedule: str = "schedule",
    steps: int = 5,
    dtype: str = "float32",
) -> Tensor:
    r"""Orthogonalise each matrix of a stack alone, by Newton-Schulz iteration.

    .. math:: X_0 = G / (\lVert G \rVert_F + 10^{-7}), \qquad
              X_{t+1} = a_t X_t + (b_t X_t X_t^T + c_t (X_t X_t^T)^2) X_t

    Guaranteed: singular vectors of each matrix are kept and every singular value that starts above about 1 % of the
    largest lands in a band around 1 (0.6 to 1.3 after five steps, both coefficient sets). Not guaranteed: an exactly
    orthogonal factor; singular values far below the largest stay below the band; a zero matrix stays zero. Matrices of
    the stack never mix: two matrices orthogonalised together equal the two orthogonalised apart, which is not so for
    the stacked ``[w0; w2]`` of some published kernels.

    Parameters
    ----------
    matrix : Tensor of shape [..., D_out, D_in]
        Gradients or momentum buffers.
    schedule : {"schedule", "fixed"}, default="schedule"
        Coefficient set, see `coefficients`.
    steps : int, default=5
        Number of iterations. 0 only divides by the Frobenius norm.
    dtype : {"float32", "bfloat16"}, default="float32"
        Dtype of normalisation and iteration; float64 input stays in float64 under "float32".

    Returns
    -------
    Tensor of shape [..., D_out, D_in]
        In the dtype of `matrix`.

    Notes
    -----
    Jordan et al. 2024, Muon (https://kellerjordan.github.io/posts/muon); five-triple schedule as published with LaCT
    (Zhang et al. 2025, arXiv 2505.23884).

    Examples
    --------
    >>> import torch
    >>> g = torch.diag(torch.tensor([3.0, 1.0])).expand(1, 2, 2)
    >>> values = torch.linalg.svdvals(newton_schulz(g))
    >>> bool(((values > 0.6) & (values < 1.3)).all())
    True
    """
    triples = coefficients(schedule, steps)
    transposed = iterates_transposed(matrix.shape[-2], matrix.shape[-1], schedule)
    x = matrix.to(compute_dtype(dtype, matrix.dtype)).reshape(-1, *matrix.shape[-2:])
    if transposed:
        x = x.mT
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + EPS)
    step = _published_step if x.dtype == torch.bfloat16 else _fused_step
    for a, b, c in triples:
        x = step(x, a, b, c)
    return (x.mT if transposed else x).to(matrix.dtype).reshape(matrix.shape)


def _fused_step(x: Tensor, a: float, b: float, c: float) -> Tensor:
    """One step with additions inside the matrix products."""
    gram = x @ x.mT
    poly = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    return torch.baddbmm(x, poly, x, beta=a)


def _published_step(x: Tensor, a: float, b: float, c: float) -> Tensor:
    """One step with every rounding where the published code has it; c scales one factor, not the product."""
    gram = x @ x.mT
    return a * x + (b * gram + (c * gram) @ gram) @ x
