"""What an adaptation leaves behind: tensors, whose names are made and read here alone, and how they came about."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tttabpfn.adaptation.episodes import RowIndices
from tttabpfn.adaptation.guard import Verdict, mean_loss
from tttabpfn.memory.memory import Memory
from tttabpfn.report import AdaptationReport

Progress = Callable[[str, int, int], None]
_MEMORY = "memory"
_SHARE = "share:gradient"


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
    rows : ndarray of shape (H,), int
        Demonstrations that were scored, each by writings that it was held back from.
    probabilities : ndarray of shape (H, K)
        What they were given: by the mixture that predicts, or by the frozen model if it was refused.
    notes : tuple of str
        Anything unusual.
    before, after : ndarray of shape (H,)
        Log loss of each of these rows under the frozen model and under the mixture.
    weights : ndarray of shape (H,) or None
        Of these rows.
    """

    memory: Memory | None
    verdict: Verdict
    rows: RowIndices
    probabilities: NDArray[np.floating]
    notes: tuple[str, ...] = ()
    before: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    after: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    weights: NDArray[np.float64] | None = None

    def probabilities_of(self, rows: RowIndices) -> NDArray[np.floating]:
        """What some of the scored rows were given, in the order they are asked for."""
        order = np.argsort(self.rows)
        return self.probabilities[order[np.searchsorted(self.rows[order], rows)]]

    def as_report_fields(self) -> dict[str, Any]:
        """Return the fields of an `AdaptationReport` that the memory alone decides."""
        before, after = (
            mean_loss(losses, self.weights) if len(losses) else math.nan for losses in (self.before, self.after)
        )
        return {
            "accepted": self.verdict.accepted,
            "reason": self.verdict.reason,
            "n_held_back": len(self.rows),
            "loss_frozen": _finite(before),
            "loss_adapted": _finite(after),
            "gain_standard_error": _finite(self.verdict.standard_error),
            "shares": {} if self.memory is None else self.memory.describe(),
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
    """Return a memory's tensors under names that mark them as its own, as copies.

    Parameters
    ----------
    memory : Memory
        Accepted.

    Returns
    -------
    dict of str to Tensor
        What `memory_of` reads.
    """
    return {f"{_MEMORY}:{name}": value.clone() for name, value in memory.tensors().items()}


def memory_of(tensors: Mapping[str, Tensor]) -> Memory | None:
    """Rebuild the memory among an adaptation's tensors.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        An adaptation's.

    Returns
    -------
    Memory or None
        None if there is none.
    """
    own = memory_tensors_of(tensors)
    return Memory.of_tensors(own) if own else None


def memory_tensors_of(tensors: Mapping[str, Tensor], *, prefixed: bool = False) -> dict[str, Tensor]:
    """A memory's tensors among an adaptation's, under the memory's own names or (`prefixed`) the adaptation's."""
    own = {}
    for name, value in tensors.items():
        owner, _, leaf = name.partition(":")
        if owner == _MEMORY:
            own[name if prefixed else leaf] = value
    return own


def share_tensors(share: float) -> dict[str, Tensor]:
    """Return the share of the adapted network beside a memory, under the name that `gradient_share` reads."""
    return {_SHARE: torch.tensor(share, dtype=torch.float64)}


def gradient_share(tensors: Mapping[str, Tensor]) -> float:
    """Share of the adapted network's probabilities beside a memory's; 1 where it predicts alone."""
    return float(tensors[_SHARE]) if _SHARE in tensors else 1.0


def shares_in_words(memory: Memory, share: float | None) -> dict[str, float]:
    """What predicts and with which share, the largest first; `share` is the adapted network's, None without one."""
    shares = memory.describe()
    if share is not None:
        shares = {name: own * (1.0 - share) for name, own in shares.items()}
        shares = {"TabPFN, adapted by gradient steps": share} | shares
    return dict(sorted(shares.items(), key=lambda item: -item[1]))
