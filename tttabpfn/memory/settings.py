"""Choices of the fast-weight memory that are not parameters of the estimator, and what its parameters mean to it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from tttabpfn.fast_weights.rules import RULES
from tttabpfn.memory.boosted import BoostedRecipe
from tttabpfn.memory.trees import TreeRecipe

_LARGE_TREES: Any = {"step_size": 0.1, "depth": None, "leaves": 31, "rows_per_leaf": 20, "penalty": 1.0}


@dataclass(frozen=True)
class Family:
    """Parts of a memory that are written together.

    Parameters
    ----------
    kind : {"linear", "swiglu", "trees", "boosted"}
        What is written; "boosted" reads all rows, the others those that were embedded.
    block : {"embedding", "columns", "both"}
        Keys: TabPFN's embedding of a row, the table's own columns, or both.
    start : {"model", "shares"}
        Logits that the parts add to: TabPFN's own, or the demonstrations' class shares.
    values : tuple of float
        One part each. Linear: L2 penalties, per key and mean loss. Others: shares of all updates after which a part
        is kept.
    """

    kind: str
    block: str
    start: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class MemoryRecipe:
    """What a memory is made of, and how its parts are written, mixed and judged.

    Parameters
    ----------
    families : tuple of Family
        Parts that are tried, the cheapest first: a time limit may end before the last.
    many_rows_families : tuple of Family
        The same for tables of `many_rows` and more.
    many_rows : int
        Rows from which on there are many: trees then get more leaves, and histogram boosting joins.
    momentum : float
        Of the linear memory's preconditioned steps.
    hidden : int
        Hidden width of the SwiGLU memory.
    restore_norms : bool
        Restore the row norms of the SwiGLU memory's input weights after an update of Muon, as LaCT does.
    trees, many_rows_trees : TreeRecipe
        How trees are written, and how with many rows.
    max_trees, many_rows_max_trees : int
        Trees of a part at most.
    boosted : BoostedRecipe
        How boosted trees are written.
    folds : int
        Parts of the rows; each is held back from one writing, and scored by it.
    crossed_rows : int
        Rows up to which every fold is held back once. Of more, one fold alone is held back and scored.
    max_scored_rows : int
        Rows of that one fold at most.
    max_rows : int
        Rows outside the context that TabPFN reads at most, drawn by class; the others are read by boosted trees alone.
    rows_per_pass : int
        Rows embedded in one forward pass.
    model_share : float
        Prior share of TabPFN's own prediction in the mixture; the parts divide the rest equally.
    prior_rows : float
        Rows that this prior is worth.
    min_share : float
        Parts with a smaller share are left out.
    min_trust : float
        Probability that the mixture is better than the frozen model, below which it is refused.
    """

    families: tuple[Family, ...] = (
        Family("linear", "columns", "shares", (1e-3, 5e-3, 0.02, 0.1)),
        Family("trees", "columns", "model", (0.25, 1.0)),
        Family("linear", "both", "model", (0.01,)),
        Family("linear", "embedding", "model", (0.01,)),
        Family("swiglu", "both", "model", (0.5, 1.0)),
    )
    many_rows_families: tuple[Family, ...] = (
        Family("boosted", "columns", "shares", (0.5, 1.0)),
        Family("linear", "columns", "shares", (1e-3, 0.02)),
        Family("trees", "columns", "model", (0.25, 0.5, 1.0)),
        Family("linear", "both", "model", (0.01,)),
        Family("linear", "embedding", "model", (0.01,)),
        Family("swiglu", "both", "model", (0.5, 1.0)),
    )
    many_rows: int = 2000
    momentum: float = 0.7
    hidden: int = 32
    restore_norms: bool = True
    trees: TreeRecipe = field(default_factory=TreeRecipe)
    many_rows_trees: TreeRecipe = field(default_factory=lambda: TreeRecipe(**_LARGE_TREES))
    max_trees: int = 100
    many_rows_max_trees: int = 200
    boosted: BoostedRecipe = field(default_factory=BoostedRecipe)
    folds: int = 4
    crossed_rows: int = 5000
    max_scored_rows: int = 4000
    max_rows: int = 20_000
    rows_per_pass: int = 4096
    model_share: float = 0.5
    prior_rows: float = 1.0
    min_share: float = 0.02
    min_trust: float = 0.5

    def for_rows(self, n_rows: int) -> MemoryRecipe:
        """The recipe for a table of so many rows."""
        if n_rows < self.many_rows:
            return self
        return replace(
            self, families=self.many_rows_families, trees=self.many_rows_trees, max_trees=self.many_rows_max_trees
        )


DEFAULT_UPDATES = 32


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
        return RULES[self.update_rule].memory_step_size if self.step_size is None else self.step_size

    @property
    def restores_norms(self) -> bool:
        """Whether input weights get back their row norms."""
        return self.recipe.restore_norms and RULES[self.update_rule].is_orthogonal

    def updates(self, share: float) -> int:
        """Number of updates that a share of all comes to, 1 at least."""
        return max(1, round(share * self.n_steps))

    def trees(self, share: float) -> int:
        """Number of trees that a share of all comes to, 1 at least; fewer steps than the default mean fewer trees."""
        return max(1, round(share * self.recipe.max_trees * self._fewer))

    def boosted(self, share: float, n_classes: int) -> int:
        """Number of updates of boosted trees, given the number of classes; else as `trees`."""
        return self.recipe.boosted.rounds(share * self._fewer, n_classes)

    @property
    def _fewer(self) -> float:
        return min(1.0, self.n_steps / DEFAULT_UPDATES)
