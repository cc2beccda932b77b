"""Step-size schedule as a function of the share of the run that is over."""

from __future__ import annotations

import dataclasses
import math

from tttabpfn.pretraining.config import TrainConfig


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


def annealed(config: TrainConfig, seconds: float, minutes: float) -> TrainConfig:
    """Plan the end of a run: the step size falls to zero over the next `minutes`, on tables of the phase it is in.

    Parameters
    ----------
    config : TrainConfig
        The run, which may be planned much longer.
    seconds : float
        Wall-clock that it has spent.
    minutes : float
        Wall-clock left, all of it spent decaying.

    Returns
    -------
    TrainConfig
        One phase; the running average is short, so that it ends close to the last weights.

    Raises
    ------
    ValueError
        If `minutes` is not above 0.

    Examples
    --------
    >>> from tttabpfn.pretraining.config import load_config
    >>> plan = annealed(load_config("cpu"), seconds=600.0, minutes=10.0)
    >>> plan.schedule.minutes, plan.schedule.decay_from, len(plan.phases)
    (20.0, 0.5, 1)
    """
    if not minutes > 0:
        raise ValueError(f"minutes must be > 0, got {minutes}")
    share = min(1.0, seconds / (60.0 * config.schedule.minutes))
    phase = next(phase for phase in config.phases if share < phase.until or phase.until == 1.0)
    whole = seconds / 60.0 + minutes
    schedule = dataclasses.replace(
        config.schedule,
        minutes=whole,
        steps=0,
        warmup=0.0,
        decay_from=seconds / 60.0 / whole,
        ema=min(config.schedule.ema, 0.99),
    )
    return dataclasses.replace(config, schedule=schedule, phases=(dataclasses.replace(phase, until=1.0),))
