"""The parts of a memory: linear and SwiGLU weights and trees, written once for every fold and once with all rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tttabpfn.memory.boosted import Boosted, write_boosted
from tttabpfn.memory.inputs import ColumnRows, MemoryInputs
from tttabpfn.memory.linear import read_linear, write_linear
from tttabpfn.memory.rows import KeyScale, MemoryRows
from tttabpfn.memory.settings import Family, MemorySettings
from tttabpfn.memory.swiglu import read_swiglu, write_swiglu
from tttabpfn.memory.trees import Trees, write_trees

Weights = dict[str, Tensor]
_NEGLIGIBLE = 0.05
"""Share of held-back rows among all up to which boosted trees are not written a second time, with them."""


@dataclass(frozen=True)
class Part:
    """One written part, which predicts by itself.

    Parameters
    ----------
    kind : {"linear", "swiglu", "trees", "boosted"}
    block : {"embedding", "columns", "both"}
        Its keys; trees split the columns' cells.
    start : {"model", "shares"}
        Logits that it adds to.
    value : float
        The linear memory's penalty; updates of the others.
    weights : dict of str to Tensor
        Of every ensemble member, or of one for all.
    """

    kind: str
    block: str
    start: str
    value: float
    weights: Weights

    @property
    def name(self) -> str:
        """What identifies it within a memory."""
        return f"{self.kind}/{self.block}/{self.start}/{self.value:g}"

    def describe(self) -> str:
        """In words."""
        keys = {"embedding": "embedding", "columns": "columns", "both": "embedding and columns"}[self.block]
        onto = "" if self.start == "shares" else ", on top of TabPFN"
        size = f"penalty {self.value:g}" if self.kind == "linear" else f"{self.value:g} updates"
        kind = "boosted trees" if self.kind == "boosted" else self.kind
        return f"{kind} on {keys}{onto} ({size})"

    def logits(self, inputs: MemoryInputs, scale: KeyScale, log_shares: Tensor, backend: str) -> Tensor:
        """Logits of rows, of shape (M, Q, K); with M = 1 where every member would give the same.

        Parameters
        ----------
        inputs : MemoryInputs
        scale : KeyScale
            Of the embeddings.
        log_shares : Tensor of shape (K,)
            Logarithms of the class shares that "shares" starts from.
        backend : {"auto", "torch", "triton"}

        Returns
        -------
        Tensor
            Divided by the softmax temperature.
        """
        if self.kind in ("trees", "boosted"):
            summed = Trees(**self.weights).read(inputs.cells) + inputs.mean_start(self.start, log_shares)
            return torch.as_tensor(summed, dtype=torch.float32, device=inputs.logits.device)[None]
        keys = inputs.keys(self.block, scale)
        weights = {name: value.to(keys.device) for name, value in self.weights.items()}
        read = read_linear(weights["w"], keys) if self.kind == "linear" else read_swiglu(weights, keys, backend=backend)
        return inputs.start(self.start, log_shares) + read[0]


@dataclass(frozen=True)
class Written:
    """A part, and what it gives rows that were held back from its writing.

    Parameters
    ----------
    part : Part
        Written with all rows.
    logits : Tensor of shape (M, N, K)
        Of every row of a fold, from the writing without that fold.
    """

    part: Part
    logits: Tensor


def write_family(
    family: Family,
    inputs: MemoryInputs,
    scale: KeyScale,
    labels: Tensor,
    folds: NDArray[np.int64],
    log_shares: Tensor,
    settings: MemorySettings,
    weights: NDArray[np.float64] | None = None,
    others: ColumnRows | None = None,
) -> list[Written]:
    """Write all parts of a family: for every fold without its rows, and with all rows.

    Parameters
    ----------
    family : Family
        Kind, keys, start and values.
    inputs : MemoryInputs
        All rows, none of which the model had in its context when it embedded it.
    scale : KeyScale
        Of the embeddings.
    labels : Tensor of shape (N,), int64
    folds : ndarray of shape (N,), int
        Each row's fold, 0 to F - 1; -1 for rows that every writing sees.
    log_shares : Tensor of shape (K,)
    settings : MemorySettings
    weights : ndarray of shape (N,), optional
        Of the rows: one of weight 2 counts as two rows.
    others : ColumnRows, optional
        Rows that the model has not read: boosted trees are written with these, too.

    Returns
    -------
    list of Written
        In the order of the family's values.
    """
    if family.kind == "trees":
        return _write_trees(family, inputs, labels, folds, log_shares, settings, weights)
    if family.kind == "boosted":
        return _write_boosted(family, inputs, labels.cpu().numpy(), weights, others, folds, log_shares, settings)
    n_folds = int(folds.max()) + 1
    # The last of the stacked writings holds nothing back: it is the one that is kept.
    written = np.concatenate([folds != np.arange(n_folds)[:, None], np.ones((1, len(folds)), dtype=bool)])
    if weights is not None:
        written = written * weights
    rows = MemoryRows(
        keys=inputs.keys(family.block, scale),
        offsets=inputs.start(family.start, log_shares),
        labels=labels,
        written=torch.as_tensor(written, dtype=torch.float32, device=labels.device),
    )
    write = _write_linear if family.kind == "linear" else _write_swiglu
    return write(family, rows, folds, settings)


def _write_linear(
    family: Family, rows: MemoryRows, folds: NDArray[np.int64], settings: MemorySettings
) -> list[Written]:
    stacked, _ = write_linear(
        rows,
        torch.tensor(family.values),
        settings.n_steps,
        momentum=settings.recipe.momentum,
        backend=settings.backend,
    )
    beside = stacked.unflatten(0, (len(family.values), rows.n_folds, rows.n_members))
    return [
        _written(family, value, {"w": own}, rows, folds, lambda weights, keys: read_linear(weights["w"], keys))
        for value, own in zip(family.values, beside, strict=True)
    ]


def _write_swiglu(
    family: Family, rows: MemoryRows, folds: NDArray[np.int64], settings: MemorySettings
) -> list[Written]:
    marks = {settings.updates(share): None for share in family.values}
    found: dict[int, Weights] = {}

    def keep(step: int, weights: Weights) -> None:
        if step in marks:
            found[step] = {name: value.clone() for name, value in weights.items()}

    write_swiglu(
        rows,
        torch.tensor([settings.swiglu_step_size]),
        settings.n_steps,
        rule=settings.update_rule,
        hidden=settings.recipe.hidden,
        restore=settings.restores_norms,
        seed=settings.seed,
        backend=settings.backend,
        observer=keep,
    )

    def read(weights: Weights, keys: Tensor) -> Tensor:
        return read_swiglu(weights, keys, backend=settings.backend)

    def by_fold(weights: Weights) -> Weights:
        return {name: value.unflatten(0, (rows.n_folds, rows.n_members)) for name, value in weights.items()}

    return [_written(family, step, by_fold(weights), rows, folds, read) for step, weights in sorted(found.items())]


def _written(
    family: Family,
    value: float,
    weights: Weights,
    rows: MemoryRows,
    folds: NDArray[np.int64],
    read: Callable[[Weights, Tensor], Tensor],
) -> Written:
    """A part from weights (F + 1, M, ...) of its folds' writings and, last, of the one with all rows."""
    logits = rows.offsets.clone()
    for fold in range(rows.n_folds - 1):
        own = torch.as_tensor(np.flatnonzero(folds == fold), device=logits.device)
        added = read({name: stack[fold] for name, stack in weights.items()}, rows.keys[:, own])[0]
        logits[:, own] = rows.offsets[:, own] + added
    last = {name: stack[-1].clone() for name, stack in weights.items()}
    return Written(Part(family.kind, family.block, family.start, value, last), logits)


def _write_trees(
    family: Family,
    inputs: MemoryInputs,
    labels: Tensor,
    folds: NDArray[np.int64],
    log_shares: Tensor,
    settings: MemorySettings,
    weights: NDArray[np.float64] | None,
) -> list[Written]:
    start, codes = inputs.mean_start(family.start, log_shares), labels.cpu().numpy()
    counts = sorted({settings.trees(share) for share in family.values})

    def write(cells: NDArray[np.float32], rows: NDArray[np.int64]) -> Trees:
        own, recipe = None if weights is None else weights[rows], settings.recipe.trees
        return write_trees(cells[rows], codes[rows], start[rows], counts[-1], recipe, settings.seed, own)

    logits = [start.copy() for _ in counts]
    for fold in range(int(folds.max()) + 1):
        cells, own = inputs.cells_without(fold), np.flatnonzero(folds == fold)
        trees = write(cells, np.flatnonzero(folds != fold))
        for at_count, count in zip(logits, counts, strict=True):
            at_count[own] += trees.first(count).read(cells[own])
    trees = write(inputs.cells, np.arange(len(codes)))
    return [
        Written(
            Part(family.kind, family.block, family.start, count, trees.first(count).tensors()),
            torch.as_tensor(at_count, dtype=torch.float32, device=labels.device)[None],
        )
        for count, at_count in zip(counts, logits, strict=True)
    ]


def _write_boosted(
    family: Family,
    inputs: MemoryInputs,
    codes: NDArray[np.int64],
    weights: NDArray[np.float64] | None,
    others: ColumnRows | None,
    folds: NDArray[np.int64],
    log_shares: Tensor,
    settings: MemorySettings,
) -> list[Written]:
    first, start = log_shares.double().cpu().numpy(), inputs.mean_start(family.start, log_shares)
    counts = sorted({settings.boosted(share, len(first)) for share in family.values})

    def write(cells: NDArray[np.float32], kept: NDArray[np.bool_]) -> Boosted:
        own = ColumnRows(cells, codes, weights).of(kept)
        own = own if others is None else own.joined(others)
        recipe, seed = settings.recipe.boosted, settings.seed
        return write_boosted(own.cells, own.labels, first, counts[-1], recipe, seed, own.weights)

    logits = [start.copy() for _ in counts]
    for fold in range(int(folds.max()) + 1):
        cells, held_back = inputs.cells_without(fold), folds == fold
        boosted = write(cells, ~held_back)
        for at_count, count in zip(logits, counts, strict=True):
            at_count[held_back] += boosted.first(count).read(cells[held_back])
    n_all = len(folds) + (0 if others is None else len(others.labels))
    # So few are held back that another writing would hardly differ.
    if folds.max() > 0 or (folds >= 0).sum() > _NEGLIGIBLE * n_all:
        boosted = write(inputs.cells, np.ones(len(folds), dtype=bool))
    return [
        Written(
            Part(family.kind, family.block, family.start, count, boosted.first(count).tensors()),
            torch.as_tensor(at_count, dtype=torch.float32, device=inputs.logits.device)[None],
        )
        for count, at_count in zip(counts, logits, strict=True)
    ]


def of_names(tensors: dict[str, Tensor]) -> list[Part]:
    """Parts, ordered by name, from tensors named by `Part.name`, a slash and the weight's name."""
    weights: dict[str, Weights] = {}
    for name, value in tensors.items():
        part, _, leaf = name.rpartition("/")
        weights.setdefault(part, {})[leaf] = value
    parts = []
    for name, own in sorted(weights.items()):
        kind, block, start, value_ = name.split("/")
        parts.append(Part(kind, block, start, float(value_), own))
    return parts
