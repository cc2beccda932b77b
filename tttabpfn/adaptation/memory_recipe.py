"""Choices of the fast-weight memory that are not parameters of the estimator."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MemoryRecipe:
    """How the memory is written, and among what the held-back rows choose.

    Parameters
    ----------
    kinds : tuple of {"linear", "swiglu"}
        Memories in the race.
    regularisations : tuple of float
        Candidates for the linear memory's L2 penalty, per standardised key and mean loss.
    momentum : float
        Of the linear memory's preconditioned steps.
    hidden : int
        Hidden width of the SwiGLU memory.
    step_size_factors : tuple of float
        Candidates for the SwiGLU memory under ``step_size="auto"``, as multiples of its update rule's default.
    restore_norms : bool
        Restore the row norms of the SwiGLU memory's input weights after an update of Muon, as LaCT does.
    n_checkpoints : int
        How often along the writing the SwiGLU memory is read on the held-back rows.
    gates : tuple of float
        Candidates for the factor on what the memory reads, in (0, 1]; 0, no memory, always competes.
    folds : int
        Parts of the rows outside the context, each held back from one writing; needs no further forward pass.
    most_folded : int
        Rows above which one part, the session's held-back rows, has to do.
    parts : int
        Where all rows are context: parts, each embedded given the others.
    rows_per_pass : int
        Rows embedded in one forward pass.
    evidence : float
        Standard errors by which the memory's held-back gain must exceed zero. More than for the gradient steps, since
        it is the best of some forty combinations of kind, penalty, number of updates and gate on the same rows.
    """

    kinds: tuple[str, ...] = ("linear", "swiglu")
    regularisations: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 0.1, 1.0)
    momentum: float = 0.7
    hidden: int = 32
    step_size_factors: tuple[float, ...] = (1.0,)
    restore_norms: bool = True
    n_checkpoints: int = 5
    gates: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    folds: int = 4
    most_folded: int = 2000
    parts: int = 4
    rows_per_pass: int = 4096
    evidence: float = 2.0


DEFAULT_MEMORY_STEP_SIZES = {"sgd": 1.0, "momentum": 0.3, "muon": 0.06, "adamw": 0.01}
