"""What an adaptation is asked to do: the user's parameters, and the recipe behind their defaults."""

from __future__ import annotations

from dataclasses import dataclass, field

from tttabpfn.fast_weights.rules import RULES
from tttabpfn.memory.settings import MemoryRecipe


@dataclass(frozen=True)
class Recipe:
    """Choices of the algorithm that are not parameters of the estimator; the ablation benchmark varies them.

    Parameters
    ----------
    max_members : int
        Ensemble members that adapt, and predict afterwards, where the wrapped estimator leaves their number to TabPFN
        (``n_estimators="auto"``, eight): every member gets a share of the steps, so that fewer of them adapt further.
    many_rows_members : int
        The same where there are more demonstrations than the network reads: boosted trees then say most.
    members_per_step : int
        Ensemble members in one update; they rotate from step to step.
    members_per_score : int
        Ensemble members that score the points of a path against each other; the verdict takes all.
    warm_up_share : float
        Share of the steps over which the step size rises linearly.
    final_share : float
        Share of the step size that is left at the last step; a cosine leads there.
    held_back_share : float
        Share of the rows outside the context held back for the guard, the step-size search and the number of steps.
    max_held_back : int
        Rows held back at most.
    n_checkpoints : int
        How often along the path the held-back rows are scored.
    step_size_factors : tuple of float
        Candidates of ``step_size="auto"``, as multiples of the update rule's default.
    trial_share : float
        Share of the steps that every candidate step size gets before all but the best are dropped.
    evidence : float
        Standard errors by which the held-back gain must exceed zero to be accepted.
    in_context_evidence : float
        Factor on the evidence asked for of gradient steps where the held-back rows are context at
        predict: they are then judged with a smaller context than predicts, and gain more than new rows will.
    memory_share : float
        Prior share of a memory in its mixture with the adapted network.
    share_prior_rows : float
        Held-back rows that this prior is worth.
    trial_evidence : float
        Standard errors by which the mixture must gain after the trial for the gradient steps to go on beside a memory.
    min_held_back : int
        Held-back rows below which gradient steps are not tried beside a memory.
    min_model_share : float
        Share of the frozen model in a memory's mixture below which gradient steps are not tried beside it.
    train_on_held_back : bool
        After the decision, take a few more steps whose queries are the held-back rows.
    scale : {"lact", "match_rms", "relative"}
        Unit of Muon's step.
    restore_norms : bool
        Restore each weight row's norm after an update of Muon, as LaCT does.
    memory : MemoryRecipe
        How the fast-weight memory is written.
    """

    max_members: int = 4
    many_rows_members: int = 2
    members_per_step: int = 1
    members_per_score: int = 2
    warm_up_share: float = 0.1
    final_share: float = 0.1
    held_back_share: float = 0.25
    max_held_back: int = 500
    n_checkpoints: int = 6
    step_size_factors: tuple[float, ...] = (0.3, 1.0)
    trial_share: float = 0.15
    evidence: float = 1.0
    in_context_evidence: float = 1.5
    memory_share: float = 0.75
    share_prior_rows: float = 4.0
    trial_evidence: float = 0.5
    min_held_back: int = 50
    min_model_share: float = 0.15
    train_on_held_back: bool = True
    scale: str = "match_rms"
    restore_norms: bool = False
    memory: MemoryRecipe = field(default_factory=MemoryRecipe)

    def members(self, n_demonstrations: int, n_context: int) -> int:
        """Ensemble members that adapt at most, given the demonstrations and those among them that are context."""
        is_read = n_demonstrations - n_context <= self.memory.max_rows
        return self.max_members if is_read else min(self.max_members, self.many_rows_members)

    def evidence_factor(self, in_context: bool) -> float:
        """What evidence is multiplied by, given whether held-back rows are context at predict."""
        return self.in_context_evidence if in_context else 1.0


DEFAULT_STEP_SIZES = {name: rule.step_size for name, rule in RULES.items()}


@dataclass(frozen=True)
class Settings:
    """The estimator's parameters, resolved and checked.

    Parameters
    ----------
    step_size : float or None
        None: chosen on held-back demonstrations.
    n_steps : int
        Updates, 0 or more.
    chunk_size : int
        Query rows per update.
    update_rule : {"sgd", "momentum", "muon", "adamw"}
        The update rule of the fast weights.
    fast_weights : str or tuple of str
        A named selection or glob patterns.
    guard : bool
        Whether the adapted weights must win on held-back demonstrations.
    adaptation : {"gradient", "memory", "both"}
        What is adapted.
    backend : {"auto", "torch", "triton"}
        Who runs the leaf operations of the updates.
    seed : int
        Root of the seed tree.
    time_limit : float or None
        Seconds after which the adaptation keeps the best so far.
    recipe : Recipe
        The algorithm's other choices.
    """

    step_size: float | None
    n_steps: int
    chunk_size: int
    update_rule: str
    fast_weights: str | tuple[str, ...]
    guard: bool
    adaptation: str
    backend: str
    seed: int
    time_limit: float | None = None
    recipe: Recipe = Recipe()

    @property
    def is_frozen(self) -> bool:
        """Whether nothing is adapted, so that the wrapped classifier itself predicts."""
        return self.n_steps == 0 or self.step_size == 0

    @property
    def candidate_step_sizes(self) -> tuple[float, ...]:
        """Step sizes in the race; one if the user gave it."""
        if self.step_size is not None:
            return (self.step_size,)
        default = RULES[self.update_rule].step_size
        return tuple(default * factor for factor in self.recipe.step_size_factors)


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
