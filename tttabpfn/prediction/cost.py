"""What an adaptation will take, estimated from sizes alone: seconds, and bytes at the peak.

Seconds are counts of operations over the machine's measured speed, with shares of that speed found by measurement;
bytes are an upper bound, part by part, since a process that runs out of memory loses everything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from tttabpfn.adaptation.settings import Settings
from tttabpfn.memory.columns import MAX_KEYS
from tttabpfn.memory.rows import STACK_BYTES
from tttabpfn.memory.settings import DEFAULT_UPDATES, Family, MemoryRecipe
from tttabpfn.prediction.machine import memory_bytes, multiplications_per_second
from tttabpfn.tabpfn_adapter import Sizes
from tttabpfn.tabpfn_adapter.base import CPU_CELLS_PER_PASS
from tttabpfn.tabpfn_adapter.row_embeddings import MAX_BYTES as MAX_KEPT_BYTES

_CELLS, _ROWS, _WEIGHTS = 0.2, 0.4, 0.5
"""Shares of the machine's speed that the row stage, the in-context stage and a memory's weights reach."""
_REFERENCE = 1e11
"""Operations a second of the machine that the seconds below were found on."""
_TREE, _TREE_CELL, _TREE_CLASS, _TREE_ROW = 7e-4, 6e-8, 4.5e-8, 3.5e-7
"""Seconds of a tree, of a cell, of a row's class and of a row in it."""
_LEAVES, _BOOSTED, _BOOSTED_CELL = 1.8, 9e-4, 8e-9
"""Factor on trees grown by leaves instead of levels, and seconds of a boosted tree and of a cell in it."""
_FIT, _FAMILY = 0.5, 0.1
"""Seconds of preparing a table, and of starting a family of parts."""
_LATER = 0.25
"""Share of the gradient steps after the trial that is counted where they may be given up."""
_LIBRARIES = 64 * 1024**2
"""Bytes that libraries and allocators take on the way."""
_ACTIVATIONS, _ROW_ACTIVATIONS, _COLUMN_PAIR = 14, 40, 16
"""Embeddings of a cell and of a row that a forward pass holds at its peak, and bytes of two columns of a row."""
_GRADIENT_ACTIVATIONS = 40
"""Embeddings of a row and layer that a gradient step holds."""


@dataclass(frozen=True)
class Cost:
    """What `fit` and `adapt` will take, as if nothing were in the cache.

    Parameters
    ----------
    seconds : float
        On an idle machine with the threads that torch has now. Gradient steps beside a memory end early if they do
        not pay, which the rows decide: a quarter of the later ones are counted.
    peak_bytes : int
        Bytes beyond what the process holds already, at the peak; an upper bound.
    seconds_by_part : dict of str to float
        Their parts: "context", "embeddings", "memory", "gradient steps".
    bytes_by_part : dict of str to int
        Their parts: "context", "caches", "forward passes", "memory", "fast weights", "libraries". Not all of them are
        there at once.
    memory_bytes : int or None
        What the device has; None where that is not known.

    Examples
    --------
    >>> cost = Cost(12.0, 2**30, {"context": 12.0}, {"context": 2**30}, memory_bytes=2**29)
    >>> cost.fits, cost.largest_part
    (False, 'context')
    """

    seconds: float
    peak_bytes: int
    seconds_by_part: dict[str, float]
    bytes_by_part: dict[str, int]
    memory_bytes: int | None = None

    @property
    def fits(self) -> bool:
        """Whether the device has that much memory, as far as that is known."""
        return self.memory_bytes is None or self.peak_bytes <= self.memory_bytes

    @property
    def largest_part(self) -> str:
        """The part that takes most bytes."""
        return max(self.bytes_by_part, key=lambda part: self.bytes_by_part[part])

    def refuse(self) -> None:
        """Raise a MemoryError that names the setting to change, if the device has too little memory."""
        if self.fits or self.memory_bytes is None:
            return
        raise MemoryError(
            f"adapting would take about {_in_words(self.peak_bytes)}, but the device has "
            f"{_in_words(self.memory_bytes)}; most goes to {self.largest_part} "
            f"({_in_words(self.bytes_by_part[self.largest_part])}): {_REMEDIES[self.largest_part]}."
        )


_REMEDIES = {
    "context": "set a smaller context_size, or fewer members by estimator__n_estimators",
    "caches": "give fewer rows to fit, or fewer members by estimator__n_estimators",
    "forward passes": "set a smaller context_size, or drop columns",
    "memory": 'give fewer rows to fit, or set adaptation="gradient"',
    "fast weights": 'set a smaller chunk_size, or adaptation="memory"',
    "libraries": "use a machine with more memory",
}


def _in_words(nbytes: int) -> str:
    return f"{nbytes / 1024**3:.2g} GiB"


@dataclass(frozen=True)
class Demand:
    """What is asked for, in numbers.

    Parameters
    ----------
    n_rows, n_columns, n_classes : int
        Of the demonstrations.
    n_context : int
        Rows kept as context.
    sizes : Sizes
        Of the base.
    settings : Settings
    """

    n_rows: int
    n_columns: int
    n_classes: int
    n_context: int
    sizes: Sizes
    settings: Settings

    @property
    def recipe(self) -> MemoryRecipe:
        """How its memory is written."""
        return self.settings.recipe.memory.for_rows(self.n_rows)

    @property
    def n_outside(self) -> int:
        """Rows outside the context that the network reads."""
        return min(self.n_rows - self.n_context, self.recipe.max_rows)

    @property
    def n_read(self) -> int:
        """Rows that the network reads."""
        return self.n_context + self.n_outside

    @property
    def writings(self) -> int:
        """How often a part is written: without each fold that is held back, and with all rows."""
        return 1 + (self.recipe.folds if self.n_read <= self.recipe.crossed_rows else 1)

    @property
    def has_memory(self) -> bool:
        """Whether a memory is written."""
        return not self.settings.is_frozen and self.settings.adaptation != "gradient"

    @property
    def has_gradient(self) -> bool:
        """Whether gradient steps are tried."""
        return not self.settings.is_frozen and self.settings.adaptation != "memory"

    def width(self, block: str) -> int:
        """Keys of a memory's block."""
        columns = min(MAX_KEYS, 2 * self.n_columns) + 1
        return {"columns": columns, "embedding": self.sizes.row_width + 1}.get(block, columns + self.sizes.row_width)


def estimate(demand: Demand, device: torch.device) -> Cost:
    """Estimate what an adaptation takes.

    Parameters
    ----------
    demand : Demand
    device : torch.device
        Where the base runs; its speed is measured once, in milliseconds.

    Returns
    -------
    Cost
    """
    speed = multiplications_per_second(device)
    seconds = {"context": _FIT * _REFERENCE / speed + _forward(demand, demand.n_context, demand.n_context, speed)}
    if demand.has_memory:
        seconds["embeddings"] = _embedding(demand, speed)
        seconds["memory"] = sum(_family(demand, family, speed) for family in demand.recipe.families)
    if demand.has_gradient:
        seconds["gradient steps"] = _gradient(demand, speed)
    nbytes = _bytes(demand)
    return Cost(sum(seconds.values()), sum(nbytes.values()), seconds, nbytes, memory_bytes(device))


def _cells(demand: Demand, n_rows: float, speed: float) -> float:
    """Seconds of the row stage, one member."""
    return 2.0 * demand.sizes.cell_parameters * n_rows * demand.sizes.columns / (_CELLS * speed)


def _in_context(demand: Demand, n_rows: float, n_context: float, speed: float) -> float:
    """Seconds of the in-context stage, one member."""
    sizes = demand.sizes
    pairs = 4.0 * sizes.layers * sizes.row_width * n_rows * n_context
    return (2.0 * sizes.row_parameters * n_rows + pairs) / (_ROWS * speed)


def _forward(demand: Demand, n_rows: float, n_context: float, speed: float) -> float:
    """Seconds of a forward pass of rows and context through all adapting members."""
    one = _cells(demand, n_rows, speed) + _in_context(demand, n_rows, n_context, speed)
    return one * demand.sizes.adapting


def _embedding(demand: Demand, speed: float) -> float:
    """Seconds of embedding every row without itself in the context."""
    n_context, n_outside, folds = demand.n_context, demand.n_outside, demand.recipe.folds
    passes = math.ceil(n_outside / demand.recipe.rows_per_pass)
    return _forward(demand, folds * n_context, n_context * (1.0 - 1.0 / folds), speed) + _forward(
        demand, n_outside + passes * n_context, n_context, speed
    )


def _family(demand: Demand, family: Family, speed: float) -> float:
    """Seconds of writing a family's parts, for every fold and with all rows."""
    recipe, n_rows, n_classes = demand.recipe, demand.n_read, demand.n_classes
    writings, n_steps = demand.writings, demand.settings.n_steps
    start = _FAMILY * _REFERENCE / speed
    if family.kind == "boosted":
        n_trees = recipe.boosted.rounds(_fewer(n_steps), n_classes) * (1 if n_classes == 2 else n_classes)
        one = _BOOSTED + demand.n_rows * demand.n_columns * _BOOSTED_CELL
        return start + writings * n_trees * one * _REFERENCE / speed
    if family.kind == "trees":
        n_trees = max(1, round(recipe.max_trees * _fewer(n_steps)))
        row = demand.n_columns * _TREE_CELL + n_classes * _TREE_CLASS + _TREE_ROW
        deeper = 1.0 if recipe.trees.leaves is None else _LEAVES
        chunk = min(n_rows, 2 * recipe.trees.max_rows)
        return start + writings * n_trees * deeper * (_TREE + chunk * row) * _REFERENCE / speed
    width = demand.width(family.block)
    members = 1 if family.block == "columns" else demand.sizes.adapting
    stack = writings * members
    if family.kind == "linear":
        steps = 4.0 * n_rows * n_classes * width + 2.0 * n_classes * width**2
        solve = 2.0 * n_rows * width**2 * stack + 6.0 * width**3 * stack * len(family.values)
        return start + (solve + n_steps * stack * len(family.values) * steps) / (_WEIGHTS * speed)
    steps = 12.0 * recipe.hidden * n_rows * (width + n_classes) * n_steps * stack
    return start + steps / (_WEIGHTS * speed)


def _fewer(n_steps: int) -> float:
    """Share of all trees that are written with fewer steps than the default."""
    return min(1.0, n_steps / DEFAULT_UPDATES)


def _gradient(demand: Demand, speed: float) -> float:
    """Seconds of the gradient steps: trials, the later steps, scores and the last steps."""
    settings, recipe, sizes = demand.settings, demand.settings.recipe, demand.sizes
    candidates = len(settings.candidate_step_sizes)
    trial = max(1, round(recipe.trial_share * settings.n_steps))
    raced = candidates * trial if candidates > 1 or demand.has_memory else 0
    later = max(0, settings.n_steps - min(raced, trial)) * (_LATER if demand.has_memory and settings.guard else 1.0)
    all_context = demand.n_outside < 0.35 * demand.n_rows
    queries = min(settings.chunk_size, demand.n_read / 3 if all_context else demand.n_outside)
    rows = demand.n_context + queries
    one = 3.0 * _in_context(demand, rows, demand.n_context, speed)
    n_held_back = min(recipe.max_held_back, recipe.held_back_share * demand.n_read)
    score = _in_context(demand, demand.n_context + n_held_back, demand.n_context, speed) * recipe.members_per_score
    embedded = _cells(demand, demand.n_read, speed) * sizes.adapting * (3 if all_context else 1)
    if settings.fast_weights != "in_context" or not sizes.has_row_stage:
        one += 3.0 * _cells(demand, rows, speed)
        embedded = 0.0
    scores = (candidates + 0.5 * recipe.n_checkpoints) * score
    return embedded + (raced + later) * one * recipe.members_per_step + scores


def _bytes(demand: Demand) -> dict[str, int]:
    """Bytes at the peak, part by part; each an upper bound."""
    sizes, recipe, n_classes = demand.sizes, demand.recipe, demand.n_classes
    n_read, n_context = demand.n_read, demand.n_context
    pass_rows = n_context + min(recipe.rows_per_pass, max(demand.n_outside, n_context / recipe.folds))
    cells = pass_rows * sizes.columns
    cells = max(cells, min(CPU_CELLS_PER_PASS, cells * sizes.adapting))
    table = 8 * demand.n_rows * demand.n_columns
    embedding = 4 * sizes.row_width
    found = {
        "context": 6 * table // 2 + sizes.adapting * n_context * (2 * sizes.layers + 8) * embedding,
        "caches": 4 * 2 * n_read * sizes.columns * sizes.members,
        "forward passes": 4 * _ACTIVATIONS * cells * sizes.cell_width
        + _ROW_ACTIVATIONS * pass_rows * embedding
        + _COLUMN_PAIR * pass_rows * sizes.columns**2,
        "libraries": _LIBRARIES,
    }
    if sizes.has_row_stage and not demand.settings.is_frozen:
        kept = 5 * n_read * embedding * sizes.adapting
        found["caches"] += min(kept, MAX_KEPT_BYTES + n_read * embedding)
    if demand.has_memory:
        width = demand.width("both")
        parts = sum(len(family.values) for family in recipe.families)
        keys = 4 * n_read * sizes.adapting * (2 * sizes.row_width + 2 * width)
        logits = n_read * n_classes * (4 * parts * sizes.adapting + 24 * parts + 64)
        writing = max(_writing_bytes(demand, family) for family in recipe.families)
        found["memory"] = keys + logits + writing
        found["memory"] += 6 * 8 * n_read * demand.n_columns
    if demand.has_gradient:
        queries = min(demand.settings.chunk_size, n_read)
        held = (n_context + queries) * embedding * sizes.layers * _GRADIENT_ACTIVATIONS
        if demand.settings.fast_weights != "in_context" or not sizes.has_row_stage:
            held += (n_context + queries) * sizes.columns * 4 * sizes.cell_width * _GRADIENT_ACTIVATIONS
        found["fast weights"] = held * demand.settings.recipe.members_per_step + 12 * sizes.nbytes
    return {name: int(size) for name, size in found.items()}


def _writing_bytes(demand: Demand, family: Family) -> int:
    """Bytes of writing a family: inverted second moments, or trees, and what a stack reads from a slice of rows."""
    recipe, n_rows = demand.recipe, demand.n_read
    if family.kind == "boosted":
        return demand.n_rows * (32 * demand.n_columns + 24 * demand.n_classes)
    if family.kind == "trees":
        return n_rows * (64 * demand.n_classes + 8 * demand.n_columns)
    width = demand.width(family.block)
    stack = demand.writings * (1 if family.block == "columns" else demand.sizes.adapting)
    if family.kind == "linear":
        stack *= len(family.values)
        return 24 * stack * width**2 + 4 * min(STACK_BYTES, 12 * stack * demand.n_classes * n_rows)
    return 4 * min(STACK_BYTES, 4 * stack * (width + 4 * recipe.hidden) * n_rows)
