"""The kinds of memory, each described once: what is tried, how it is written, and how it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tttabpfn.memory.linear import read_linear, write_linear
from tttabpfn.memory.rows import MemoryRows, Observer
from tttabpfn.memory.settings import MemorySettings
from tttabpfn.memory.swiglu import read_swiglu, write_swiglu

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Kind:
    """One kind of memory.

    Parameters
    ----------
    unit : str
        What its candidate values are, in words.
    output : str
        The weight that what it reads is linear in; a gate multiplies it.
    candidates : callable
        ``candidates(settings)`` returns the values to try.
    marks : callable
        ``marks(settings)`` returns the numbers of updates after which it may stop.
    write : callable
        ``write(rows, values, settings, until, observer)`` writes one memory for each value, fold and member, and
        returns weights and losses by step.
    read : callable
        ``read(weights, keys, backend)`` returns what S memories read, of shape (S, M, Q, K).
    """

    unit: str
    output: str
    candidates: Callable[[MemorySettings], tuple[float, ...]]
    marks: Callable[[MemorySettings], list[int]]
    write: Callable[[MemoryRows, tuple[float, ...], MemorySettings, int, Observer | None], tuple[Weights, list[float]]]
    read: Callable[[Mapping[str, Tensor], Tensor, str], Tensor]


def _write_linear(
    rows: MemoryRows, values: tuple[float, ...], settings: MemorySettings, until: int, observer: Observer | None
) -> tuple[Weights, list[float]]:
    momentum, backend = settings.recipe.momentum, settings.backend
    weight, losses = write_linear(
        rows, torch.tensor(values), until, momentum=momentum, backend=backend, observer=observer
    )
    return {"w": weight}, losses


def _write_swiglu(
    rows: MemoryRows, values: tuple[float, ...], settings: MemorySettings, until: int, observer: Observer | None
) -> tuple[Weights, list[float]]:
    return write_swiglu(
        rows,
        torch.tensor(values),
        settings.n_steps,
        until=until,
        rule=settings.update_rule,
        hidden=settings.recipe.hidden,
        restore=settings.restores_norms,
        seed=settings.seed,
        backend=settings.backend,
        observer=observer,
    )


KINDS = {
    "linear": Kind(
        unit="penalty",
        output="w",
        candidates=lambda settings: settings.recipe.regularisations,
        # Each penalty's problem is convex: no early stop does better than the next larger penalty.
        marks=lambda settings: [settings.n_steps],
        write=_write_linear,
        read=lambda weights, keys, backend: read_linear(weights["w"], keys),
    ),
    "swiglu": Kind(
        unit="step size",
        output="w1",
        candidates=lambda settings: (settings.swiglu_step_size,),
        marks=lambda settings: settings.checkpoints,
        write=_write_swiglu,
        read=lambda weights, keys, backend: read_swiglu(dict(weights), keys, backend=backend),
    ),
}
