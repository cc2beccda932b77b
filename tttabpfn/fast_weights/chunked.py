"""The one chunk loop of the library, and gradients accumulated over micro-batches.

Nothing here knows what the weights compute: LaCT's layer and TabPFN's adaptation pass their own leaf operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

__all__ = [
    "Accumulated",
    "Chunk",
    "ChunkRun",
    "Sliced",
    "accumulate",
    "in_slices",
    "is_out_of_memory",
    "plan_chunks",
    "run_chunks",
]

State = TypeVar("State")
Result = TypeVar("Result")
ORDERS = ("update_then_apply", "apply_then_update")


@dataclass(frozen=True)
class Chunk:
    """One window ``[start, end)`` of tokens or rows, and what is done with it.

    Parameters
    ----------
    start, end : int
        Half-open window; windows of different chunks may overlap, leave gaps and come in any order.
    update : bool, default=True
        Whether the window's gradient updates the weights.
    apply : bool, default=True
        Whether the weights are applied to the window.

    Raises
    ------
    ValueError
        If the window is negative or empty.
    """

    start: int
    end: int
    update: bool = True
    apply: bool = True

    def __post_init__(self) -> None:
        if self.start < 0 or self.end <= self.start:
            raise ValueError(f"a chunk needs 0 <= start < end, got start={self.start}, end={self.end}")


@dataclass
class ChunkRun:
    """What `run_chunks` leaves behind.

    Attributes
    ----------
    weights : dict of Tensor
        After the last chunk.
    state : Any
        The update rule's state after the last chunk.
    outputs : list
        What `apply` returned, one per applied chunk, in the order of the chunks.
    """

    weights: dict[str, Tensor]
    state: Any
    outputs: list[Any] = field(default_factory=list)


def plan_chunks(length: int, chunk_size: int, *, update_last: bool = True) -> list[Chunk]:
    """Cut ``[0, length)`` into windows of `chunk_size`; the last one may be shorter.

    Parameters
    ----------
    length : int
        Number of tokens or rows, 1 or more.
    chunk_size : int
        1 or more; larger than `length` gives one chunk.
    update_last : bool, default=True
        False leaves the last chunk out of the updates, as LaCT's causal order does.

    Returns
    -------
    list of Chunk

    Examples
    --------
    >>> [(c.start, c.end, c.update) for c in plan_chunks(5, 2, update_last=False)]
    [(0, 2, True), (2, 4, True), (4, 5, False)]
    """
    if length < 1:
        raise ValueError(f"length must be 1 or more, got {length}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be 1 or more, got {chunk_size}")
    starts = range(0, length, chunk_size)
    return [
        Chunk(start, min(start + chunk_size, length), update=update_last or start + chunk_size < length)
        for start in starts
    ]


def run_chunks(
    chunks: Iterable[Chunk],
    weights: dict[str, Tensor],
    state: State,
    *,
    gradient: Callable[[Chunk, dict[str, Tensor]], Any],
    update: Callable[[Chunk, dict[str, Tensor], Any, State], tuple[dict[str, Tensor], State]],
    apply: Callable[[Chunk, dict[str, Tensor]], Any] | None = None,
    order: str = "update_then_apply",
    observer: Callable[[Chunk, dict[str, Tensor], State], None] | None = None,
) -> ChunkRun:
    """Walk over `chunks`, updating the fast weights once per chunk and applying them.

    Parameters
    ----------
    chunks : iterable of Chunk
    weights : dict of Tensor
        Starting fast weights, stacked ``[B, D_out, D_in]`` or ``[B, D]``; never written to by the loop.
    state : Any
        The update rule's state, e.g. from `update_rules.init_state`.
    gradient : callable
        ``gradient(chunk, weights)`` returns the chunk's gradients, in the form `update` takes.
    update : callable
        ``update(chunk, weights, gradients, state)`` returns new weights and state.
    apply : callable, optional
        ``apply(chunk, weights)`` returns the chunk's output. None: nothing is applied.
    order : {"update_then_apply", "apply_then_update"}, default="update_then_apply"
        The first for sets and operator lists, the second for causal sequences.
    observer : callable, optional
        ``observer(chunk, weights, state)`` is called after each chunk, with the weights it left.

    Returns
    -------
    ChunkRun

    Raises
    ------
    ValueError
        If `order` is unknown.

    Examples
    --------
    Two chunks of numbers; the weight moves to each chunk's sum and is added to what is applied:

    >>> import torch
    >>> x = torch.tensor([1.0, 2.0, 3.0])
    >>> run = run_chunks(
    ...     [Chunk(0, 2), Chunk(2, 3)],
    ...     {"w": torch.zeros(1)},
    ...     None,
    ...     gradient=lambda chunk, weights: x[chunk.start : chunk.end].sum(),
    ...     update=lambda chunk, weights, g, state: ({"w": weights["w"] + g}, state),
    ...     apply=lambda chunk, weights: (x[chunk.start : chunk.end] + weights["w"]).tolist(),
    ... )
    >>> run.outputs, run.weights["w"].item()
    ([[4.0, 5.0], [9.0]], 6.0)
    """
    if order not in ORDERS:
        raise ValueError(f"order must be one of {list(ORDERS)}, got {order!r}")
    run = ChunkRun(dict(weights), state)
    apply_first = order == "apply_then_update"
    for chunk in chunks:
        if apply_first and chunk.apply and apply is not None:
            run.outputs.append(apply(chunk, run.weights))
        if chunk.update:
            gradients = gradient(chunk, run.weights)
            run.weights, run.state = update(chunk, run.weights, gradients, run.state)
        if not apply_first and chunk.apply and apply is not None:
            run.outputs.append(apply(chunk, run.weights))
        if observer is not None:
            observer(chunk, run.weights, run.state)
    return run


@dataclass(frozen=True)
class Accumulated:
    """A sum over micro-batches and how it was reached.

    Attributes
    ----------
    total : dict of Tensor
        Sum of what `gradient_of_slice` returned, entry by entry.
    micro_batch : int
        The size in use at the end; pass it to the next call.
    halvings : int
        How often running out of memory halved it.
    notes : tuple of str
        One sentence per halving, for a report.
    """

    total: dict[str, Tensor]
    micro_batch: int
    halvings: int = 0
    notes: tuple[str, ...] = ()


def accumulate(
    gradient_of_slice: Callable[[int, int], Mapping[str, Tensor]],
    start: int,
    end: int,
    micro_batch: int,
) -> Accumulated:
    """Sum gradients over ``[start, end)`` in micro-batches; out of memory halves them and goes on.

    The maths depends on the window alone, the peak of memory on `micro_batch` alone. A slice that ran out of memory is
    done again in halves; sums already made are kept.

    Parameters
    ----------
    gradient_of_slice : callable
        ``gradient_of_slice(start, end)`` returns a dict of tensors that *add up* over slices (sums over rows, or means
        already weighted by the slice's share). A loss may ride along as one more entry.
    start, end : int
        Half-open window of rows or tokens, not empty.
    micro_batch : int
        Rows per call, 1 or more.

    Returns
    -------
    Accumulated

    Raises
    ------
    ValueError
        If the window is empty or `micro_batch` is below 1.
    MemoryError
        If a single row does not fit; the original error is its cause.

    Examples
    --------
    >>> import torch
    >>> x = torch.arange(5.0)
    >>> done = accumulate(lambda start, end: {"sum": x[start:end].sum()}, 0, 5, 2)
    >>> done.total["sum"].item(), done.halvings
    (10.0, 0)
    """
    if end <= start:
        raise ValueError(f"the window must not be empty, got start={start}, end={end}")
    if micro_batch < 1:
        raise ValueError(f"micro_batch must be 1 or more, got {micro_batch}")
    total: dict[str, Tensor] = {}

    def add(part: Mapping[str, Tensor]) -> None:
        for name, value in part.items():
            total[name] = total[name] + value if name in total else value

    sliced = in_slices(gradient_of_slice, start, end, micro_batch, add)
    return Accumulated(total, sliced.size, len(sliced.notes), sliced.notes)


class Sliced(NamedTuple):
    """How a window was gone through.

    Attributes
    ----------
    size : int
        Rows of the last slices.
    notes : tuple of str
        One sentence per halving, for a report.
    """

    size: int
    notes: tuple[str, ...]


def in_slices(
    call: Callable[[int, int], Result], start: int, end: int, size: int, take: Callable[[Result], None]
) -> Sliced:
    """Go through ``[start, end)`` in slices; out of memory halves them and goes on.

    Parameters
    ----------
    call : callable
        ``call(start, end)`` returns a slice's result.
    start, end : int
        Half-open window, not empty.
    size : int
        Rows per slice, 1 or more.
    take : callable
        Called with each result, in order.

    Returns
    -------
    Sliced

    Raises
    ------
    MemoryError
        If a single row does not fit; the original error is its cause.

    Examples
    --------
    >>> taken = []
    >>> in_slices(lambda start, end: (start, end), 0, 5, 2, taken.append)
    Sliced(size=2, notes=())
    >>> taken
    [(0, 2), (2, 4), (4, 5)]
    """
    size = min(size, end - start)
    notes: list[str] = []
    position = start
    while position < end:
        stop = min(position + size, end)
        result, error = _attempt(call, position, stop)
        if result is not None:
            take(result)
            # Not kept alive while the next slice is made: that would add to the peak of memory.
            del result
            position = stop
            continue
        rows = stop - position
        if rows == 1:
            raise MemoryError(f"out of memory on a single row (row {position}): {error}") from error
        size = max(1, rows // 2)
        notes.append(f"out of memory with {rows} rows per micro-batch; went on with {size}")
        error = None
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
    return Sliced(size, tuple(notes))


def _attempt(call: Callable[[int, int], Result], start: int, end: int) -> tuple[Result | None, BaseException | None]:
    """Call once; hand an out-of-memory error back without the frames that keep its tensors alive."""
    try:
        return call(start, end), None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None, error.with_traceback(None)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, on a GPU or on the CPU.

    Examples
    --------
    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
    True
    >>> is_out_of_memory(RuntimeError("shapes do not match"))
    False
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
