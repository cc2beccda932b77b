"""Checks of what users pass in; each message names the parameter, what is allowed and what came."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tttabpfn.theory._square import Array, simplest

CONTEXTS = ("fresh", "shared")


def count(name: str, value: Any) -> int:
    """Return a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number >= 1, got {value!r} of type {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")
    return int(value)


def non_negative(name: str, value: Any) -> float:
    """Return a finite number of at least 0."""
    number = finite(name, value)
    if number < 0:
        raise ValueError(f"{name} must be a finite number >= 0, got {value!r}")
    return number


def finite(name: str, value: Any) -> float:
    """Return a finite number."""
    try:
        array = numbers(name, value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name} must be a finite number, got {value!r}") from None
    if array.ndim != 0:
        raise ValueError(f"{name} must be a single number, got an array of shape {array.shape}")
    return float(array)


def numbers(name: str, value: ArrayLike) -> Array:
    """Copy finite real numbers to float64."""
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise TypeError
        array = array.astype(np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must hold real numbers, got {value!r}") from None
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {int((~np.isfinite(array)).sum())} NaN or infinite value(s)")
    return array


def vector(name: str, value: ArrayLike) -> Array:
    """Return a finite vector of at least one entry."""
    array = numbers(name, value)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} must be a vector of shape (d,) with d >= 1, got shape {array.shape}")
    return array


def square(name: str, value: ArrayLike, d: int) -> Array:
    """Return a scalar (times the identity), diagonal (d,) or full (d, d) matrix, as (d,) or (d, d)."""
    array = numbers(name, value)
    if array.ndim == 0:
        return np.full(d, float(array))
    if array.shape not in ((d,), (d, d)):
        raise ValueError(
            f"{name} must be a scalar (times the identity), a diagonal of shape ({d},) or a matrix of shape "
            f"({d}, {d}), got shape {array.shape}"
        )
    return array


def covariance(name: str, value: ArrayLike, d: int) -> Array:
    """Return a positive semidefinite matrix as (d,) or (d, d), made exactly symmetric."""
    matrix = square(name, value, d)
    diagonal = simplest(matrix)
    if diagonal.ndim == 1:
        if diagonal.min() < 0:
            raise ValueError(f"{name} must have no negative variance, got {float(diagonal.min())!r}")
        return matrix
    scale = float(np.abs(matrix).max())
    skew = float(np.abs(matrix - matrix.T).max())
    if skew > 1e-10 * scale:
        raise ValueError(f"{name} must be symmetric, got entries that differ from their mirror by up to {skew:.3g}")
    matrix = (matrix + matrix.T) / 2
    smallest = float(np.linalg.eigvalsh(matrix)[0])
    if smallest < -1e-10 * scale * math.sqrt(d):
        raise ValueError(f"{name} must be positive semidefinite, got a smallest eigenvalue of {smallest:.6g}")
    return matrix


def context_mode(value: Any) -> str:
    """Return one of `CONTEXTS`."""
    if value not in CONTEXTS:
        raise ValueError(f"context must be one of {CONTEXTS}, got {value!r}")
    return str(value)
