"""Whether tensors are those of a memory: names, shapes and ranges, before anything is predicted with them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tttabpfn.memory.inputs import MemoryInputs
from tttabpfn.memory.memory import Memory
from tttabpfn.memory.parts import Part

_LEAVES = {
    "linear": {"w"},
    "swiglu": {"w0", "w1", "w2"},
    "trees": {"columns", "thresholds", "children", "values"},
    "boosted": {"columns", "thresholds", "children", "values"},
}
_BLOCKS = {"embedding", "columns", "both"}
_STARTS = {"model", "shares"}


@dataclass(frozen=True)
class MemoryShape:
    """Sizes of what a memory reads.

    Parameters
    ----------
    n_members : int
        Ensemble members.
    embedding : int
        Width of a row's embedding.
    columns : int or None
        Encoded columns; None if no part reads them.
    cells : int
        Cells that trees cut, at least.
    """

    n_members: int
    embedding: int
    columns: int | None
    cells: int

    def fits(self, inputs: MemoryInputs) -> bool:
        """Whether rows have these sizes."""
        return (
            inputs.embeddings.shape[0] == self.n_members
            and inputs.embeddings.shape[2] == self.embedding
            and self.columns in (None, inputs.columns.shape[1])
            and inputs.cells.shape[1] >= self.cells
        )


def shape_of(tensors: Mapping[str, Tensor], n_classes: int) -> MemoryShape:
    """Sizes that a memory's tensors agree on.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        What `Memory.tensors` returned, or claims to be.
    n_classes : int
        Classes that are to be predicted.

    Returns
    -------
    MemoryShape

    Raises
    ------
    ValueError
        If a tensor is missing, unknown, of another shape or dtype than the others ask for, or out of range: a tree
        that does not end, shares that do not sum to 1, a number that is not finite.

    Examples
    --------
    >>> import torch
    >>> tensors = {"mean": torch.zeros(2, 4), "spread": torch.ones(2, 4), "log_shares": torch.zeros(3)}
    >>> tensors |= {"shares": torch.tensor([0.5, 0.5]).double(), "linear/columns/shares/0.1/w": torch.zeros(1, 3, 8)}
    >>> shape_of(tensors, n_classes=3)
    MemoryShape(n_members=2, embedding=4, columns=7, cells=0)
    """
    missing = {"mean", "spread", "log_shares", "shares"} - set(tensors)
    _require(not missing, "a tensor is missing")
    _require(all(map(_is_usable, tensors, tensors.values())), "a number is not finite")
    memory = Memory.of_tensors(tensors)
    _require(memory.tensors().keys() == tensors.keys(), "a name is not known")
    mean, spread = memory.scale.mean, memory.scale.spread
    _require(mean.ndim == 2 and mean.shape == spread.shape and mean.dtype == spread.dtype == torch.float32, "scale")
    _require(bool((spread > 0).all()), "a spread is not above 0")
    _require(memory.log_shares.shape == (n_classes,) and memory.log_shares.dtype == torch.float32, "class shares")
    _require(memory.shares.shape == (1 + len(memory.parts),) and memory.shares.dtype == torch.float64, "shares")
    _require(
        bool((memory.shares >= 0).all()) and abs(float(memory.shares.sum()) - 1.0) < 1e-6, "shares do not sum to 1"
    )
    n_members, embedding = mean.shape
    columns: set[int] = set()
    cells = 0
    for part in memory.parts:
        _check_names(part)
        if part.kind in ("trees", "boosted"):
            cells = max(cells, _cells_of(part, n_classes))
            continue
        width = _width_of(part, n_members, n_classes)
        if part.block == "embedding":
            _require(width == embedding + 1, "width of a part on the embedding")
        else:
            columns.add(width - 1 - (embedding if part.block == "both" else 0))
    _require(len(columns) <= 1 and all(count >= 0 for count in columns), "parts on the columns differ in width")
    return MemoryShape(n_members, embedding, next(iter(columns), None), cells)


def _is_usable(name: str, values: Tensor) -> bool:
    """Whether all numbers are finite; a cut may be at infinity, with all rows on one side of it."""
    usable = ~torch.isnan(values) if name.endswith("/thresholds") else torch.isfinite(values)
    return bool(usable.all())


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"tensors of no memory: {what}")


def _check_names(part: Part) -> None:
    _require(_LEAVES.get(part.kind) == set(part.weights), "weights of a part")
    _require(part.block in _BLOCKS and part.start in _STARTS, "a part is not known")
    _require(math.isfinite(part.value) and part.value > 0, "a part's value is not above 0")


def _width_of(part: Part, n_members: int, n_classes: int) -> int:
    """Width of the keys that a linear or SwiGLU part reads."""
    weights = part.weights
    _require(all(one.dtype == torch.float32 and one.ndim == 3 for one in weights.values()), "weights of a part")
    # What the columns say is the same for every member; one part then stands for all.
    stacks = {n_members} if part.block != "columns" else {1, n_members}
    first = weights["w" if part.kind == "linear" else "w0"]
    _require(first.shape[0] in stacks, "members of a part")
    if part.kind == "linear":
        _require(first.shape[1] == n_classes, "classes of a part")
    else:
        hidden = first.shape[1]
        _require(weights["w2"].shape == first.shape, "weights of a part")
        _require(weights["w1"].shape == (first.shape[0], n_classes, hidden), "weights of a part")
    return first.shape[2]


def _cells_of(part: Part, n_classes: int) -> int:
    """Cells that trees cut, by the highest column; every tree ends, since children stand behind their parents."""
    columns, thresholds = part.weights["columns"], part.weights["thresholds"]
    children, values = part.weights["children"], part.weights["values"]
    dtypes = (columns.dtype, thresholds.dtype, children.dtype, values.dtype)
    _require(dtypes == (torch.int32, torch.float64, torch.int32, torch.float32), "dtypes of trees")
    _require(columns.ndim == 2 and columns.numel() > 0 and thresholds.shape == columns.shape, "trees")
    _require(children.shape == (*columns.shape, 2) and values.shape == (*columns.shape, n_classes), "trees")
    inner = columns >= 0
    nodes = torch.arange(columns.shape[1])[None, :, None].expand_as(children)
    behind = (children > nodes) & (children < columns.shape[1])
    _require(bool(behind[inner].all()), "a tree that does not end")
    return int(columns.max()) + 1
