"""Never worse: frozen and adapted model compared row by row on demonstrations that no step has seen."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Verdict:
    """What the held-back rows say.

    Parameters
    ----------
    accepted : bool
        Whether the adapted model may predict.
    reason : str
        Why, in words.
    gain : float
        Mean of ``frozen - adapted`` log loss, nats per row.
    standard_error : float
        Of the gain.
    """

    accepted: bool
    reason: str
    gain: float
    standard_error: float


def judge(frozen: NDArray[np.float64], adapted: NDArray[np.float64], *, evidence: float) -> Verdict:
    r"""Accept the adapted model if its paired gain in log loss stands out from its own noise.

    The gain is the mean of the row-wise differences :math:`d_i` of log loss, its standard error
    :math:`s/\sqrt{n}` with the sample deviation :math:`s` of the :math:`d_i`. Pairing removes what makes a row easy
    or hard for both models. The adapted model is accepted if ``gain > evidence * standard_error``: under no true
    gain, a one-sided z-test at ``evidence=1`` errs in 16 % of the cases, and then by less than one standard error
    more often than not.

    Parameters
    ----------
    frozen, adapted : ndarray of shape (H,)
        Log loss of each held-back row, in nats.
    evidence : float
        Standard errors that the gain must exceed.

    Returns
    -------
    Verdict
        With the reason in words.

    Examples
    --------
    >>> frozen = np.array([0.7, 0.9, 0.5, 0.8])
    >>> judge(frozen, frozen - np.array([0.2, 0.3, 0.1, 0.2]), evidence=1.0).accepted
    True
    >>> judge(frozen, frozen, evidence=1.0).reason
    'no gain on the held-back rows: log loss 0.7250 frozen, 0.7250 adapted (gain 0.0000 +- 0.0000 on 4 rows)'
    """
    difference = frozen - adapted
    gain = float(difference.mean())
    error = float(difference.std(ddof=1) / math.sqrt(len(difference))) if len(difference) > 1 else math.inf
    figures = (
        f"log loss {frozen.mean():.4f} frozen, {adapted.mean():.4f} adapted "
        f"(gain {gain:.4f} +- {error:.4f} on {len(difference)} rows)"
    )
    if not np.isfinite(adapted).all():
        return Verdict(False, f"the adapted model's predictions are not finite: {figures}", gain, error)
    if gain <= 0:
        return Verdict(False, f"no gain on the held-back rows: {figures}", gain, error)
    if gain <= evidence * error:
        return Verdict(False, f"the gain does not stand out from its noise: {figures}", gain, error)
    return Verdict(True, f"better on the held-back rows: {figures}", gain, error)


def row_losses(probabilities: NDArray[np.floating], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Log loss of each row.

    Parameters
    ----------
    probabilities : ndarray of shape (Q, K)
        Predicted probabilities.
    labels : ndarray of shape (Q,), int
        Class codes.

    Returns
    -------
    ndarray of shape (Q,)
        Nats; probabilities are clipped at the resolution of float32, as scikit-learn's log loss does.
    """
    chosen = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return -np.log(np.clip(chosen, np.finfo(np.float32).eps, 1.0))
