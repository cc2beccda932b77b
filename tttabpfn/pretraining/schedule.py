"""Step-size schedule as a function of the share of the run that is over."""

from __future__ import annotations

import math


def step_scale(progress: float, *, warmup: float, decay_from: float) -> float:
    """Step size relative to its peak: linear warm-up, constant, then half a cosine to zero.

    Parameters
    ----------
    progress : float
        Share of the run that is over, in [0, 1].
    warmup : float
        Share at which the peak is reached.
    decay_from : float
        Share at which the decay begins.

    Returns
    -------
    float
        In [0, 1].

    Examples
    --------
    >>> step_scale(0.0, warmup=0.1, decay_from=0.5), step_scale(0.3, warmup=0.1, decay_from=0.5)
    (0.0, 1.0)
    >>> round(step_scale(0.75, warmup=0.1, decay_from=0.5), 3), step_scale(1.0, warmup=0.1, decay_from=0.5)
    (0.5, 0.0)
    """
    if progress < warmup:
        return progress / warmup
    if progress <= decay_from or decay_from >= 1.0:
        return 1.0
    share = min(1.0, (progress - decay_from) / (1.0 - decay_from))
    return 0.5 + 0.5 * math.cos(math.pi * share)
