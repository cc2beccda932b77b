"""Choices of the fast-weight memory that are not parameters of the estimator, and what its parameters mean to it."""

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
    restore_norms : bool
        Restore the row norms of the SwiGLU memory's input weights after an update of Muon, as LaCT does.
    n_checkpoints : int
        How often along the writing the SwiGLU memory is read on the held-back rows.
    gates : tuple of float
        Candidates for the factor on what the memory reads, in (0, 1]; 0, no memory, always competes.
    folds : int
        Parts of the rows outside the context, each held back from one writing; needs no further forward pass.
    max_folded : int
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
    restore_norms: bool = True
    n_checkpoints: int = 5
    gates: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    folds: int = 4
    max_folded: int = 2000
    parts: int = 4
    rows_per_pass: int = 4096
    evidence: float = 2.0


DEFAULT_MEMORY_STEP_SIZES = {"sgd": 1.0, "momentum": 0.3, "muon": 0.06, "adamw": 0.01}


@dataclass(frozen=True)
class MemorySettings:
    """What the estimator's parameters mean to a memory.

    Parameters
    ----------
    n_steps : int
        Updates at most.
    step_size : float or None
        Of the SwiGLU memory; None: its update rule's default.
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
    def swiglu_step_size(self) -> float:
        """The SwiGLU memory's step size: the given one or its update rule's default."""
        return DEFAULT_MEMORY_STEP_SIZES[self.update_rule] if self.step_size is None else self.step_size

    @property
    def restores_norms(self) -> bool:
        """Whether input weights get back their row norms."""
        return self.recipe.restore_norms and self.update_rule == "muon"

    @property
    def checkpoints(self) -> list[int]:
        """Numbers of updates after which a memory that may stop early is read."""
        return checkpoints(self.n_steps, self.recipe.n_checkpoints)


def checkpoints(n_steps: int, count: int) -> list[int]:
    """Numbers of updates that cut a path into `count` parts, as equal as they can be.

    Parameters
    ----------
    n_steps : int
        Updates of the whole path.
    count : int
        Parts; fewer where there are fewer updates.

    Returns
    -------
    list of int
        Rising, 1 or more, `n_steps` the last.

    Examples
    --------
    >>> checkpoints(32, 5), checkpoints(2, 5)
    ([6, 13, 19, 26, 32], [1, 2])
    """
    return sorted({max(1, round(n_steps * part / count)) for part in range(1, count + 1)})
