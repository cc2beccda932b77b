"""What an adaptation leaves behind: tensors, whose names are made and read here alone, and how they came about."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tttabpfn.adaptation.guard import Verdict
from tttabpfn.memory.choice import Choice
from tttabpfn.memory.memory import Memory
from tttabpfn.report import AdaptationReport

Progress = Callable[[str, int, int], None]
_MEMORY = "memory"


@dataclass(frozen=True)
class Adaptation:
    """Fast weights and how they came about.

    Parameters
    ----------
    tensors : dict of str to Tensor
        Fast weights by name, a network's as `fast_weight_name` names them, a memory's as `memory_tensors` does; empty
        if the frozen model predicts.
    report : AdaptationReport
        What happened.
    """

    tensors: dict[str, Tensor]
    report: AdaptationReport


@dataclass(frozen=True)
class WrittenMemory:
    """What writing a memory led to.

    Parameters
    ----------
    memory : Memory or None
        None if it was refused.
    verdict : Verdict
        The guard's.
    choice : Choice
        What was chosen on held-back rows.
    loss_frozen : float
        Mean log loss of the held-back rows without the memory.
    n_held_back : int
        Rows that were held back, each from one writing.
    step_losses : tuple of float
        Loss over all rows before each update of the final writing.
    notes : tuple of str
        Anything unusual.
    """

    memory: Memory | None
    verdict: Verdict
    choice: Choice
    loss_frozen: float
    n_held_back: int
    step_losses: tuple[float, ...]
    notes: tuple[str, ...]

    def as_report_fields(self) -> dict[str, Any]:
        """Return the fields of an `AdaptationReport` that the memory alone decides."""
        losses = self.choice.losses
        return {
            "accepted": self.verdict.accepted,
            "reason": self.verdict.reason,
            "n_steps": self.choice.steps if self.verdict.accepted else 0,
            "n_held_back": self.n_held_back,
            "loss_frozen": _finite(self.loss_frozen),
            "loss_adapted": _finite(float(losses.mean()) if len(losses) else math.nan),
            "gain_standard_error": _finite(self.verdict.standard_error),
            "step_losses": self.step_losses,
            "held_back_steps": tuple(self.choice.curve),
            "held_back_losses": tuple(self.choice.curve.values()),
            "fast_weight_bytes": 0 if self.memory is None else self.memory.nbytes,
            "notes": self.notes,
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def fast_weight_name(position: int, parameter: str) -> str:
    """Name of a network's fast weight, given the network's position in the base.

    Examples
    --------
    >>> fast_weight_name(0, "icl_blocks.0.mlp.0.weight")
    '0:icl_blocks.0.mlp.0.weight'
    """
    return f"{position}:{parameter}"


def network_weights(tensors: Mapping[str, Tensor], n_networks: int) -> list[dict[str, Tensor]]:
    """Fast weights of each of a base's networks by parameter name; a memory's are passed over."""
    found: list[dict[str, Tensor]] = [{} for _ in range(n_networks)]
    for name, value in tensors.items():
        position, _, parameter = name.partition(":")
        if position.isdigit():
            found[int(position)][parameter] = value
    return found


def adapted_by_gradient(tensors: Mapping[str, Tensor]) -> bool:
    """Whether there are fast weights of a network among an adaptation's tensors, not just a memory's."""
    return any(name.partition(":")[0].isdigit() for name in tensors)


def has_memory(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a memory is among an adaptation's tensors."""
    return any(name.partition(":")[0] == _MEMORY for name in tensors)


def memory_tensors(memory: Memory) -> dict[str, Tensor]:
    """A memory's tensors, copied, under names that tell its kind; `memory_of` reads them."""
    return {f"{_MEMORY}:{memory.kind}:{name}": value.clone() for name, value in memory.tensors().items()}


def memory_of(tensors: Mapping[str, Tensor]) -> Memory | None:
    """The memory among an adaptation's tensors; None if there is none."""
    own, kind = {}, ""
    for name, value in tensors.items():
        if name.partition(":")[0] == _MEMORY:
            _, kind, leaf = name.split(":", 2)
            own[leaf] = value
    return Memory.of_tensors(kind, own) if own else None
