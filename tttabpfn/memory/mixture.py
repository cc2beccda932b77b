"""Shares of a mixture of predictions: found on rows that no part has seen, and how far that can be trusted."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_SMALLEST = 1e-6
_ROUNDS = 200

Probabilities = NDArray[np.float64]


def mixture_shares(
    chosen: Probabilities, prior: Probabilities, strength: float, weights: NDArray[np.float64] | None = None
) -> Probabilities:
    r"""Shares of a mixture that make the labels of held-back rows most likely, drawn towards a prior.

    Expectation maximisation on :math:`\sum_n \log \sum_c w_c p_c(y_n) + a \sum_c \pi_c \log w_c`: a Dirichlet prior
    worth `strength` rows. The problem is convex, and a part that no row needs ends near its prior's share of it.

    Parameters
    ----------
    chosen : ndarray of shape (C, N)
        Probability that each part gives to each row's label.
    prior : ndarray of shape (C,)
        Shares to be drawn towards; they sum to 1.
    strength : float
        Rows that the prior is worth.
    weights : ndarray of shape (N,), optional
        Of the rows: one of weight 2 counts as two rows.

    Returns
    -------
    ndarray of shape (C,)
        Shares, 0 or more; they sum to 1.

    References
    ----------
    Yao et al. 2018, "Using stacking to average Bayesian predictive distributions", for mixing by held-back log loss.

    Examples
    --------
    >>> right, wrong = np.full(50, 0.9), np.full(50, 0.2)
    >>> mixture_shares(np.stack([right, wrong]), np.array([0.5, 0.5]), strength=2.0).round(2).tolist()
    [0.98, 0.02]
    """
    chosen = np.clip(chosen, _SMALLEST, 1.0)
    shares = prior.astype(np.float64)
    for _ in range(_ROUNDS):
        before = shares
        responsible = shares[:, None] * chosen
        responsible = responsible / responsible.sum(axis=0)
        shares = responsible.sum(axis=1) if weights is None else responsible @ weights
        shares = shares + strength * prior
        shares = shares / shares.sum()
        if np.abs(shares - before).max() < 1e-6:
            break
    return shares


def cross_fitted_mixture(
    parts: Probabilities,
    labels: NDArray[np.int64],
    folds: NDArray[np.int64],
    prior: Probabilities,
    strength: float,
    weights: NDArray[np.float64] | None = None,
) -> Probabilities:
    """Mix the parts of each fold's rows by the shares that the other folds' rows find.

    Parameters
    ----------
    parts : ndarray of shape (C, N, K)
        Probabilities of each part on rows that it did not see.
    labels, folds : ndarray of shape (N,), int
        Class codes, and each row's fold.
    prior, strength, weights
        As `mixture_shares` takes them.

    Returns
    -------
    ndarray of shape (N, K)
        No row had a say in its own mixture.
    """
    chosen = parts[:, np.arange(len(labels)), labels]
    mixed = np.empty(parts.shape[1:])
    for fold in np.unique(folds):
        own = folds == fold
        others = None if weights is None else weights[~own]
        shares = mixture_shares(chosen[:, ~own], prior, strength, others) if not own.all() else prior
        mixed[own] = np.einsum("c,cnk->nk", shares, parts[:, own])
    return mixed


def trust(gain: float, standard_error: float) -> float:
    """Probability that a gain is not below zero, as a normal error of it has it.

    Parameters
    ----------
    gain, standard_error : float
        Mean and standard error of row-wise differences, in the same unit.

    Returns
    -------
    float
        In [0, 1].

    Examples
    --------
    >>> trust(0.0, 0.01), round(trust(0.01, 0.01), 2), trust(0.1, 0.0)
    (0.5, 0.84, 1.0)
    """
    if not math.isfinite(gain):
        return 0.0
    if standard_error == 0.0:
        return 0.5 if gain == 0.0 else float(gain > 0.0)
    return 0.5 * (1.0 + math.erf(gain / (standard_error * math.sqrt(2.0))))


def prior_shares(n_parts: int, model_share: float) -> Probabilities:
    """Prior shares: the model's, and the parts' equal ones."""
    if n_parts == 0:
        return np.ones(1)
    return np.array([model_share, *[(1.0 - model_share) / n_parts] * n_parts])
