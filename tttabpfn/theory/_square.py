"""Square matrices that are stored as their diagonal, shape (d,), or in full, shape (d, d).

The closed forms are written once on these operations. As long as all factors are diagonals, so is each result, and
nothing of size d x d is built.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def simplest(A: Array) -> Array:
    """Return the diagonal of a full matrix that has nothing off it, else the matrix as it is."""
    if A.ndim == 2 and np.count_nonzero(A) == np.count_nonzero(np.diagonal(A)):
        return np.diagonal(A).copy()
    return A


def times(A: Array, B: Array) -> Array:
    """Multiply, ``A B``."""
    if A.ndim == 1:
        return A * B if B.ndim == 1 else A[:, None] * B
    return A * B if B.ndim == 1 else A @ B


def apply(A: Array, v: Array) -> Array:
    """Multiply a vector, ``A v``."""
    return A * v if A.ndim == 1 else A @ v


def transpose(A: Array) -> Array:
    """Transpose, ``A^T``."""
    return A.T


def trace(A: Array) -> float:
    """Sum the diagonal, ``tr A``."""
    return float(A.sum() if A.ndim == 1 else np.trace(A))


def trace_of_product(A: Array, B: Array) -> float:
    """Compute ``tr(A B)`` without forming the product."""
    if A.ndim == 2 and B.ndim == 2:
        return float(np.vdot(A.T, B))
    return float(_diagonal(A) @ _diagonal(B))


def quadratic(A: Array, v: Array) -> float:
    """Compute ``v^T A v``."""
    return float(v @ apply(A, v))


def power(A: Array, exponent: int) -> Array:
    """Raise ``A`` to a whole power of at least 1."""
    result = A
    for _ in range(exponent - 1):
        result = times(result, A)
    return result


def square_root(A: Array) -> Array:
    """Return the symmetric ``R`` with ``R R = A`` for a positive semidefinite ``A``."""
    if A.ndim == 1:
        return np.sqrt(A)
    values, vectors = np.linalg.eigh(A)
    return np.asarray((vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T)


def norm(A: Array) -> float:
    """Compute the Frobenius norm."""
    return float(np.linalg.norm(A))


def norm_of_rank_one_minus(x: Array, y: Array, A: Array) -> float:
    """Compute the Frobenius norm of ``x y^T - A``, without cancellation.

    For a diagonal ``A`` the off-diagonal part is a sum of ``x_i^2 y_j^2`` over ``j != i``, gathered from running sums.
    """
    if A.ndim == 2:
        return norm(np.outer(x, y) - A)
    squares = y**2
    others = np.zeros_like(squares)
    others[1:] += np.cumsum(squares[:-1])
    others[:-1] += np.cumsum(squares[:0:-1])[::-1]
    return float(np.sqrt(np.sum(x**2 * others) + np.sum((x * y - A) ** 2)))


def _diagonal(A: Array) -> Array:
    return A if A.ndim == 1 else np.diagonal(A)
