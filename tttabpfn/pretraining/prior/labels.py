"""From continuous effects to class labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tttabpfn.pretraining.prior.mechanisms import Array, standardise

if TYPE_CHECKING:
    from tttabpfn.pretraining.config import PriorConfig

Labels = NDArray[np.int64]


def class_count(rng: np.random.Generator, max_classes: int) -> int:
    """Draw a number of classes: two in nearly half of the tables, up to `max_classes` in the others."""
    if max_classes <= 2 or rng.random() < 0.45:
        return 2
    if max_classes <= 3 or rng.random() < 0.6:
        return int(rng.integers(3, min(max_classes, 5) + 1))
    return int(rng.integers(4, max_classes + 1))


def class_shares(rng: np.random.Generator, n_classes: int) -> NDArray[np.float64]:
    """Draw class shares: balanced, mildly or strongly imbalanced."""
    concentration = float(rng.choice([1.0, 3.0, 10.0, 100.0], p=[0.15, 0.3, 0.3, 0.25]))
    shares = rng.dirichlet(np.full(n_classes, concentration)) + 0.15 / n_classes
    return shares / shares.sum()


def labels_from_score(rng: np.random.Generator, score: Array, n_classes: int) -> Labels:
    """Cut one score into classes at random quantiles; sometimes several bins belong to one class.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of all draws.
    score : ndarray of shape (n_rows,)
        The effect the label depends on.
    n_classes : int
        Classes wanted.

    Returns
    -------
    ndarray of shape (n_rows,)
        Class numbers in 0 .. n_classes - 1.
    """
    n_bins = n_classes + int(rng.integers(1, 4)) * int(rng.random() < 0.15)
    cuts = np.quantile(score, np.cumsum(class_shares(rng, n_bins))[:-1])
    bins = np.searchsorted(cuts, score)
    owner = np.concatenate([np.arange(n_classes), rng.integers(n_classes, size=n_bins - n_classes)])
    return rng.permutation(owner)[bins].astype(np.int64) if n_bins > n_classes else bins.astype(np.int64)


def labels_from_scores(rng: np.random.Generator, scores: Array) -> Labels:
    """Draw labels from a softmax over one score per class, with random sharpness and class shares.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of all draws.
    scores : ndarray of shape (n_rows, n_classes)
        One effect per class.

    Returns
    -------
    ndarray of shape (n_rows,)
        Class numbers.
    """
    sharpness = np.exp(rng.uniform(0.0, 3.0))
    bias = np.log(class_shares(rng, scores.shape[1]))
    logits = sharpness * standardise(scores) + bias
    if rng.random() < 0.6:
        logits = logits + rng.gumbel(size=logits.shape)
    return np.argmax(logits, axis=1).astype(np.int64)


def flip(rng: np.random.Generator, labels: Labels, n_classes: int, config: PriorConfig) -> Labels:
    """Replace a random share of the labels by random ones, in the share of tables that `config` asks for."""
    if rng.random() >= config.label_noise:
        return labels
    noisy = rng.random(labels.shape[0]) < np.exp(rng.uniform(np.log(0.01), np.log(0.3)))
    return np.where(noisy, rng.integers(n_classes, size=labels.shape[0]), labels)


def tidy(rng: np.random.Generator, labels: Labels, n_train: int, minimum: int = 2) -> tuple[Labels, bool]:
    """Number the classes that occur in the context 0, 1, ... in random order.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of the order.
    labels : ndarray of shape (n_rows,)
        Class numbers.
    n_train : int
        Leading rows that form the context.
    minimum : int
        Rows a class needs in the context to be kept.

    Returns
    -------
    labels : ndarray of shape (n_rows,)
        Class numbers, -100 (ignored by the loss) for query rows of a class the context lacks.
    usable : bool
        Whether at least two classes are left and no context row lost its class.
    """
    present, counts = np.unique(labels[:n_train], return_counts=True)
    if len(present) < 2 or counts.min() < minimum or np.sort(counts)[-2] < 4:
        return labels, False
    codes = np.full(int(labels.max()) + 1, -100, dtype=np.int64)
    codes[present] = rng.permutation(len(present))
    return codes[labels], True
