"""Which memory, how strongly regularised, how long written, with which gate: chosen on rows a fold did not write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tttabpfn.memory.kinds import KINDS
from tttabpfn.memory.rows import MemoryRows
from tttabpfn.memory.settings import MemorySettings

RowLosses = Callable[[Tensor, NDArray[np.int64]], NDArray[np.float64]]
"""From scaled logits (M, Q, K) and the rows' positions to the log loss of each row, ensembled as at predict."""


@dataclass(frozen=True)
class Choice:
    """The best memory found.

    Parameters
    ----------
    kind : {"linear", "swiglu", "none"}
    value : float
        Penalty or step size.
    steps : int
        Updates.
    gate : float
        Factor on what the memory reads.
    losses : ndarray of shape (H,)
        Log loss of each held-back row.
    curve : dict of int to float
        Mean loss by number of updates, for the chosen kind, value and gate.
    tried : dict of (str, float) to float
        Best mean loss of each kind and value.
    """

    kind: str
    value: float
    steps: int
    gate: float
    losses: NDArray[np.float64]
    curve: dict[int, float] = field(default_factory=dict)
    tried: dict[tuple[str, float], float] = field(default_factory=dict)

    def describe(self) -> str:
        """In words."""
        if self.kind == "none":
            return "no memory helps"
        return f"{self.kind} memory, {KINDS[self.kind].unit} {self.value:g}, {self.steps} updates, gate {self.gate:g}"


def choose(rows: MemoryRows, settings: MemorySettings, row_losses: RowLosses) -> Choice:
    """Write every candidate with every fold's rows, read it on the rows held back, and keep the best.

    Parameters
    ----------
    rows : MemoryRows
        Every row is held back by one fold at most.
    settings : MemorySettings
        What is tried, and how it is written.
    row_losses : callable
        Log loss of each row from scaled logits, as the predicting configuration would score it.

    Returns
    -------
    Choice
        Of kind "none" if nothing lowers the mean loss.
    """
    held_back = [torch.nonzero(fold == 0).flatten() for fold in rows.written]
    order = torch.cat(held_back)
    positions = order.cpu().numpy()
    offsets = rows.offsets[:, order]
    frozen = row_losses(offsets, positions)
    start = {0: float(frozen.mean())}
    best = Choice("none", 0.0, 0, 0.0, frozen, start)
    tried: dict[tuple[str, float], float] = {}
    for kind, value, read in _readings(rows, held_back, settings):
        for gate in settings.recipe.gates:
            losses = {step: row_losses(offsets + gate * values, positions) for step, values in read.items()}
            curve = {step: float(loss.mean()) for step, loss in losses.items()}
            step = min(curve, key=lambda step: (not np.isfinite(curve[step]), curve[step]))
            tried[kind, value] = min(curve[step], tried.get((kind, value), np.inf))
            if curve[step] < best.losses.mean():
                best = Choice(kind, value, step, gate, losses[step], {**start, **curve})
    return replace(best, tried=tried)


def _readings(
    rows: MemoryRows, held_back: list[Tensor], settings: MemorySettings
) -> Iterator[tuple[str, float, dict[int, Tensor]]]:
    """Kind, value and, by number of updates, what each candidate reads on the rows that its fold did not write."""
    for name in settings.recipe.kinds:
        kind = KINDS[name]
        values, marks = kind.candidates(settings), kind.marks(settings)
        reads: dict[int, Tensor] = {}
        observe = _Reader(name, rows, held_back, settings.backend, marks, reads)
        kind.write(rows, values, settings, settings.n_steps, observe)
        for position, value in enumerate(values):
            yield name, value, {step: read[position] for step, read in reads.items()}


@dataclass
class _Reader:
    """Reads memories on held-back rows while they are written; `reads` gets tensors of shape (C, M, H, K)."""

    kind: str
    rows: MemoryRows
    held_back: list[Tensor]
    backend: str
    marks: list[int]
    reads: dict[int, Tensor]

    def __call__(self, step: int, weights: dict[str, Tensor]) -> None:
        if step not in self.marks:
            return
        parts = []
        for fold, positions in enumerate(self.held_back):
            own = {
                name: value.unflatten(0, (-1, self.rows.n_folds, self.rows.n_members))[:, fold].flatten(0, 1)
                for name, value in weights.items()
            }
            parts.append(KINDS[self.kind].read(own, self.rows.keys[:, positions], self.backend))
        self.reads[step] = torch.cat(parts, dim=2)
