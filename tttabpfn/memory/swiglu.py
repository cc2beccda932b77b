"""The SwiGLU memory: LaCT's fast weight on the keys, written by full-chunk updates of a shared rule."""

from __future__ import annotations

import torch
from torch import Tensor

from tttabpfn.fast_weights import operations, update_rules
from tttabpfn.fast_weights.reference.step import restore_row_norms, row_norms
from tttabpfn.memory.rows import MemoryRows, Observer, residuals, write_in_full_chunks

FINAL_SHARE = 1 / 3
"""Share of the step size left at the last step; a line leads there."""
INPUT_WEIGHTS = ("w0", "w2")

Weights = dict[str, Tensor]


def start_swiglu(rows: MemoryRows, n_memories: int, hidden: int, seed: int) -> Weights:
    """Starting weights: random input weights, the same for every memory, and an output weight of zeros.

    The memory therefore reads zero before the first update.

    Parameters
    ----------
    rows : MemoryRows
    n_memories : int
        Memories per member, C * F.
    hidden : int
        Hidden width.
    seed : int
        Of the input weights.

    Returns
    -------
    dict of Tensor
        w0 and w2 of shape (C * F * M, H, E), w1 of shape (C * F * M, K, H).
    """
    width, stack = rows.keys.shape[2], n_memories * rows.n_members
    generator = torch.Generator().manual_seed(seed)

    def drawn() -> Tensor:
        weight = torch.randn(1, hidden, width, generator=generator) / width**0.5
        return weight.to(rows.keys).repeat(stack, 1, 1)

    return {"w0": drawn(), "w1": rows.keys.new_zeros(stack, rows.n_classes, hidden), "w2": drawn()}


def read_swiglu(weights: Weights, keys: Tensor, *, backend: str = "auto") -> Tensor:
    """What S SwiGLU memories for each of M members read at keys (M, Q, E), of shape (S, M, Q, K)."""
    stack = weights["w0"].shape[0] // keys.shape[0]
    read = operations.swiglu_apply(
        weights["w0"], weights["w1"], weights["w2"], keys.repeat(stack, 1, 1), backend=backend
    )
    return read.reshape(stack, *keys.shape[:2], read.shape[2])


def swiglu_loss_gradients(
    weights: Weights, rows: MemoryRows, start: int, end: int, *, backend: str = "auto"
) -> tuple[Tensor, Weights]:
    r"""A slice's share of the loss and of its gradients, for every stacked memory.

    LaCT's operation takes the gradient of :math:`-f(k)^T v`; with :math:`v` the negative derivative of the
    cross-entropy by the logits, that is the cross-entropy's own gradient.

    Parameters
    ----------
    weights : dict of Tensor
        w0, w1, w2 of C * F * M memories.
    rows : MemoryRows
    start, end : int
    backend : {"auto", "torch", "triton"}, default="auto"

    Returns
    -------
    loss : Tensor of shape (C, F, M)
    gradients : dict of Tensor
        Shaped like the weights. Both add up over slices.
    """
    keys = rows.keys[:, start:end]
    read = read_swiglu(weights, keys, backend=backend).unflatten(0, (-1, rows.n_folds))
    loss, derivative = residuals(read + rows.offsets[:, start:end], rows, start, end)
    values = -derivative.flatten(0, 2)
    repeated = keys.repeat(len(values) // rows.n_members, 1, 1)
    rate = torch.ones_like(repeated[..., :1])
    g0, g1, g2 = operations.swiglu_gradients(
        weights["w0"], weights["w1"], weights["w2"], repeated, values, rate, rate, rate, backend=backend
    )
    return loss, {"w0": g0, "w1": g1, "w2": g2}


def write_swiglu(
    rows: MemoryRows,
    step_sizes: Tensor,
    n_steps: int,
    *,
    until: int | None = None,
    rule: str,
    hidden: int,
    restore: bool,
    seed: int,
    backend: str,
    observer: Observer | None = None,
) -> tuple[Weights, list[float]]:
    """Write SwiGLU memories for every step size, fold and member in one stack.

    Parameters
    ----------
    rows : MemoryRows
    step_sizes : Tensor of shape (C,)
        In the unit of the rule; Muon's is AdamW's ("match_rms").
    n_steps : int
        Steps of the whole schedule.
    until : int, optional
        Steps to take, by default all.
    rule : {"sgd", "momentum", "muon", "adamw"}
    hidden : int
        Hidden width.
    restore : bool
        Restore the row norms of the input weights after each update. The output weight starts at zero and is free.
    seed : int
        Of the starting weights.
    backend : {"auto", "torch", "triton"}
    observer : callable, optional
        Called with the number of steps done and the weights.

    Returns
    -------
    weights : dict of Tensor
    losses : list of float
        Mean loss over the stack before each step.
    """
    weights = start_swiglu(rows, len(step_sizes) * rows.n_folds, hidden, seed)
    norms = {name: row_norms(weights[name]) for name in INPUT_WEIGHTS}
    sizes = step_sizes.to(rows.keys).repeat_interleave(rows.n_folds * rows.n_members)

    def update(now: Weights, gradients: Weights, state: update_rules.State) -> tuple[Weights, update_rules.State]:
        factor = 1 - (1 - FINAL_SHARE) * int(state.step) / max(1, n_steps - 1)
        new, state = update_rules.update(
            rule, now, gradients, state, sizes * factor, scale="match_rms", backend=backend
        )
        if restore:
            new |= {name: restore_row_norms(new[name], norms[name]) for name in INPUT_WEIGHTS}
        return new, state

    return write_in_full_chunks(
        rows,
        weights,
        update_rules.init_state(rule, weights),
        n_steps if until is None else until,
        rows.micro_batch(len(sizes), rows.keys.shape[2] + 4 * hidden),
        lambda now, start, end: swiglu_loss_gradients(now, rows, start, end, backend=backend),
        update,
        observer,
    )
