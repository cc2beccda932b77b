"""Random functions from one set of columns to another: the edges of the synthetic causal models."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tttabpfn.pretraining.prior.formulas import Array, formulas, rules

Mechanism = Callable[[np.random.Generator, Array, int], Array]


def standardise(values: Array) -> Array:
    """Shift and scale every column to mean 0 and variance 1, constant columns to 0.

    Parameters
    ----------
    values : ndarray of shape (n_rows, n_columns)
        Columns in any unit; non-finite cells are read as 0.

    Returns
    -------
    ndarray of shape (n_rows, n_columns)
        The standardised columns, clipped to 12 standard deviations.
    """
    values = np.nan_to_num(values, nan=0.0, posinf=1e6, neginf=-1e6)
    centred = values - values.mean(axis=0)
    spread = np.sqrt(np.mean(centred * centred, axis=0)) + 1e-6
    return np.clip(centred / spread, -12.0, 12.0).astype(np.float32)


_ACTIVATIONS: tuple[Callable[[Array], Array], ...] = (
    lambda x: x,
    np.tanh,
    lambda x: np.maximum(x, 0.0),
    lambda x: np.maximum(x, 0.2 * x),
    np.sin,
    np.abs,
    lambda x: np.clip(x, -4.0, 4.0) ** 2,
    np.sign,
    lambda x: np.exp(-x * x),
    lambda x: np.log1p(np.exp(np.clip(x, -20.0, 20.0))),
    lambda x: np.clip(x, -1.0, 1.0),
    np.round,
)


def activate(rng: np.random.Generator, values: Array) -> Array:
    """Apply one random activation function to standardised columns, at a random scale and offset.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of the choice.
    values : ndarray of shape (n_rows, n_columns)
        Pre-activations.

    Returns
    -------
    ndarray of shape (n_rows, n_columns)
        Activations, same shape.
    """
    function = _ACTIVATIONS[int(rng.integers(len(_ACTIVATIONS)))]
    scale = np.exp(0.5 * rng.normal())
    offset = rng.normal(size=values.shape[1]) * (rng.random() < 0.7)
    return np.asarray(function((standardise(values) * scale + offset).astype(np.float32)), dtype=np.float32)


def _weights(rng: np.random.Generator, n_in: int, n_out: int) -> Array:
    """Random dense or sparse weights, with inputs of unequal importance."""
    weights = rng.normal(size=(n_in, n_out)) * np.exp(0.7 * rng.normal(size=(n_in, 1)))
    if n_in > 1 and rng.random() < 0.5:
        keep = rng.random(size=(n_in, n_out)) < max(rng.uniform(0.1, 0.8), 1.5 / n_in)
        keep[rng.integers(n_in, size=n_out), np.arange(n_out)] = True
        weights = weights * keep
    return weights.astype(np.float32)


def linear(rng: np.random.Generator, values: Array, n_out: int) -> Array:
    """Random linear map: `(n_rows, n_in)` to `(n_rows, n_out)`, inputs of unequal importance."""
    return values @ _weights(rng, values.shape[1], n_out)


def mlp(rng: np.random.Generator, values: Array, n_out: int) -> Array:
    """Random multilayer perceptron of one or two hidden layers: `(n_rows, n_in)` to `(n_rows, n_out)`."""
    hidden = values
    for _ in range(int(rng.integers(1, 3))):
        width = int(rng.integers(4, 25))
        hidden = activate(rng, hidden @ _weights(rng, hidden.shape[1], width))
    return hidden @ _weights(rng, hidden.shape[1], n_out)


def trees(rng: np.random.Generator, values: Array, n_out: int) -> Array:
    """Sum of random oblivious decision trees: `(n_rows, n_in)` to `(n_rows, n_out)`.

    Every level of a tree asks one question of one column, with the threshold at a random row's value, so that a tree
    of depth d is a table of 2^d random leaves.
    """
    n_rows, n_in = values.shape
    out = np.zeros((n_rows, n_out), dtype=np.float32)
    importance = rng.dirichlet(np.full(n_in, rng.choice([0.3, 1.0, 5.0])) + 1e-3)
    for _ in range(int(np.exp(rng.uniform(0.0, np.log(25.0))))):
        depth = int(rng.integers(1, 6))
        columns = rng.choice(n_in, size=depth, p=importance)
        thresholds = values[rng.integers(n_rows, size=depth), columns]
        leaf = (values[:, columns] > thresholds) @ (1 << np.arange(depth))
        out += rng.normal(size=(1 << depth, n_out)).astype(np.float32)[leaf]
    return out


def prototypes(rng: np.random.Generator, values: Array, n_out: int) -> Array:
    """Soft nearest prototype: each row takes the random values of the prototypes close to it."""
    n_rows, n_in = values.shape
    count = int(rng.integers(2, 17))
    centres = values[rng.integers(n_rows, size=count)]
    scale = np.exp(0.5 * rng.normal(size=n_in)).astype(np.float32)
    a, b = values * scale, centres * scale
    squared = (a * a).sum(1)[:, None] - 2.0 * a @ b.T + (b * b).sum(1)[None]
    sharpness = np.exp(rng.uniform(-0.5, 2.5)) / (squared.mean() + 1e-6)
    weight = np.exp(-sharpness * (squared - squared.min(axis=1, keepdims=True)))
    weight /= weight.sum(axis=1, keepdims=True)
    return (weight @ rng.normal(size=(count, n_out))).astype(np.float32)


def waves(rng: np.random.Generator, values: Array, n_out: int) -> Array:
    """Smooth random function: a sample of a Gaussian process by random Fourier features."""
    n_in = values.shape[1]
    frequencies = _weights(rng, n_in, 32) / np.sqrt(n_in) * np.float32(np.exp(rng.uniform(-1.5, 0.7)))
    phases = rng.uniform(0.0, 2.0 * np.pi, size=32).astype(np.float32)
    return np.cos(values @ frequencies + phases) @ rng.normal(size=(32, n_out)).astype(np.float32)


def additive(rng: np.random.Generator, values: Array, n_out: int) -> Array:
    """Sum of one random activation per column, the shape of a generalised additive model."""
    shaped = np.empty_like(values)
    for column in range(values.shape[1]):
        shaped[:, column : column + 1] = activate(rng, values[:, column : column + 1])
    return shaped @ _weights(rng, values.shape[1], n_out)


def products(rng: np.random.Generator, values: Array, n_out: int) -> Array:
    """Linear terms plus products of random pairs of columns."""
    n_in = values.shape[1]
    count = int(rng.integers(1, max(2, n_in)))
    left, right = rng.integers(n_in, size=(2, count))
    pairs = values[:, left] * values[:, right]
    share = np.float32(rng.uniform(0.3, 1.0))
    return (1 - share) * linear(rng, values, n_out) + share * linear(rng, pairs, n_out)


MECHANISMS: dict[str, Mechanism] = {
    "linear": linear,
    "mlp": mlp,
    "trees": trees,
    "prototypes": prototypes,
    "waves": waves,
    "additive": additive,
    "products": products,
    "formulas": formulas,
    "rules": rules,
}


def apply(rng: np.random.Generator, name: str, values: Array, n_out: int) -> Array:
    """Apply the mechanism `name` and standardise what comes out.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of the mechanism's parameters.
    name : str
        A key of `MECHANISMS`.
    values : ndarray of shape (n_rows, n_in)
        Causes, standardised.
    n_out : int
        Effects to compute.

    Returns
    -------
    ndarray of shape (n_rows, n_out)
        Effects, standardised.
    """
    return standardise(MECHANISMS[name](rng, values, n_out))
