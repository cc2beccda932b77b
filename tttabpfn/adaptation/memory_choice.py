"""Which memory, how strongly regularised, how long written, with which gate: chosen on rows a fold did not write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tttabpfn.adaptation.memory_linear import write_linear
from tttabpfn.adaptation.memory_reader import read_kind
from tttabpfn.adaptation.memory_recipe import DEFAULT_MEMORY_STEP_SIZES, MemoryRecipe
from tttabpfn.adaptation.memory_rows import Rows
from tttabpfn.adaptation.memory_swiglu import write_swiglu

RowLosses = Callable[[Tensor, NDArray[np.int64]], NDArray[np.float64]]
"""From scaled logits (M, Q, K) and the rows' positions to the log loss of each row, ensembled as at predict."""


@dataclass(frozen=True)
class MemorySettings:
    """What the estimator's parameters mean to a memory.

    Parameters
    ----------
    n_steps : int
        Most updates.
    step_size : float or None
        Of the SwiGLU memory; None: chosen.
    update_rule : {"sgd", "momentum", "muon", "adamw"}
        Of the SwiGLU memory.
    backend : {"auto", "torch", "triton"}
    seed : int
        Of the SwiGLU memory's starting weights.
    recipe : MemoryRecipe
    """

    n_steps: int
    step_size: float | None
    update_rule: str
    backend: str
    seed: int
    recipe: MemoryRecipe

    @property
    def step_sizes(self) -> tuple[float, ...]:
        """Candidates for the SwiGLU memory."""
        if self.step_size is not None:
            return (self.step_size,)
        return tuple(DEFAULT_MEMORY_STEP_SIZES[self.update_rule] * factor for factor in self.recipe.step_size_factors)

    @property
    def restores_norms(self) -> bool:
        """Whether input weights get back their row norms."""
        return self.recipe.restore_norms and self.update_rule == "muon"

    def candidates(self, kind: str) -> tuple[float, ...]:
        """Penalties of the linear memory, step sizes of the SwiGLU memory."""
        return self.recipe.regularisations if kind == "linear" else self.step_sizes

    def marks(self, kind: str) -> list[int]:
        """Numbers of updates after which a memory may stop."""
        if kind == "linear":
            return [self.n_steps]
        count = self.recipe.n_checkpoints
        return sorted({max(1, round(self.n_steps * k / count)) for k in range(1, count + 1)})


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
    tried : dict of str to float
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
        what = "penalty" if self.kind == "linear" else "step size"
        return f"{self.kind} memory, {what} {self.value:g}, {self.steps} updates, gate {self.gate:g}"


def write(
    kind: str,
    rows: Rows,
    values: tuple[float, ...],
    settings: MemorySettings,
    *,
    until: int | None = None,
    observer: Callable[[int, dict[str, Tensor]], None] | None = None,
) -> tuple[dict[str, Tensor], list[float]]:
    """Write memories of one kind for every candidate value, fold and member; return weights and losses by step."""
    recipe = settings.recipe
    if kind == "linear":
        weight, losses = write_linear(
            rows,
            torch.tensor(values),
            settings.n_steps if until is None else until,
            momentum=recipe.momentum,
            backend=settings.backend,
            observer=observer,
        )
        return {"w": weight}, losses
    return write_swiglu(
        rows,
        torch.tensor(values),
        settings.n_steps,
        until=until,
        rule=settings.update_rule,
        hidden=recipe.hidden,
        restore=settings.restores_norms,
        seed=settings.seed,
        backend=settings.backend,
        observer=observer,
    )


def choose(rows: Rows, settings: MemorySettings, row_losses: RowLosses) -> Choice:
    """Write every candidate with every fold's rows, read it on the rows held back, and keep the best.

    Parameters
    ----------
    rows : Rows
        Every row is held back by one fold at most.
    settings : MemorySettings
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
    best = Choice("none", 0.0, 0, 0.0, frozen, {0: float(frozen.mean())})
    tried: dict[tuple[str, float], float] = {}
    for kind in settings.recipe.kinds:
        values, marks = settings.candidates(kind), settings.marks(kind)
        reads: dict[int, Tensor] = {}

        def observe(
            step: int, weights: dict[str, Tensor], kind: str = kind, marks: list[int] = marks, reads: dict = reads
        ) -> None:
            if step in marks:
                reads[step] = _read_held_back(kind, weights, rows, held_back, settings.backend)

        write(kind, rows, values, settings, observer=observe)
        for position, value in enumerate(values):
            for gate in settings.recipe.gates:
                losses = {step: row_losses(offsets + gate * read[position], positions) for step, read in reads.items()}
                curve = {step: float(loss.mean()) for step, loss in losses.items()}
                step = min(curve, key=lambda step: (not np.isfinite(curve[step]), curve[step]))
                tried[kind, value] = min(curve[step], tried.get((kind, value), np.inf))
                if curve[step] < best.losses.mean():
                    curve = {0: float(frozen.mean()), **curve}
                    best = Choice(kind, value, step, gate, losses[step], curve)
    return Choice(best.kind, best.value, best.steps, best.gate, best.losses, best.curve, tried)


def _read_held_back(kind: str, weights: dict[str, Tensor], rows: Rows, held_back: list[Tensor], backend: str) -> Tensor:
    """What each candidate reads on the rows its fold did not write, of shape (C, M, H, K)."""
    parts = []
    for fold, positions in enumerate(held_back):
        own = {
            name: value.unflatten(0, (-1, rows.n_folds, rows.n_members))[:, fold].flatten(0, 1)
            for name, value in weights.items()
        }
        parts.append(read_kind(kind, own, rows.keys[:, positions], backend=backend))
    return torch.cat(parts, dim=2)
