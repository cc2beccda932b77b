"""Causal LaCT in parts: any cut of a sequence gives what one pass gives."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from torch import Tensor

from tttabpfn.fast_weights import update_rules
from tttabpfn.fast_weights.chunked import Chunk, run_chunks
from tttabpfn.lact.checks import check_operation, check_state
from tttabpfn.lact.chunk_rule import Carried, Rule, Tokens, Weights, Writer, chunk_gradient, move, still_rates
from tttabpfn.lact.state import LaCTState, zeros

__all__ = ["lact_swiglu_resume"]


class _Progress(NamedTuple):
    """What is carried between pieces of chunks."""

    carried: Carried
    gradient: Weights
    momentum: dict[str, Tensor]
    chunk_still: dict[str, Tensor]
    seen: int


def lact_swiglu_resume(
    w0: Tensor,
    w1: Tensor,
    w2: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr0: Tensor,
    lr1: Tensor,
    lr2: Tensor,
    *,
    state: LaCTState | None = None,
    order: str = "causal",
    chunk_size: int,
    momentum: Tensor | None = None,
    muon: bool = False,
    newton_schulz: str = "schedule",
    newton_schulz_steps: int = 5,
    newton_schulz_dtype: str = "float32",
    updated: str = "all",
    weight_norm: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, LaCTState]:
    """Go on with a causal sequence where `state` left it.

    Chunks are counted from the start of the sequence. The gradients of a chunk that is not full yet are summed in the
    state, all at the weights that the chunk started with, so the state does not grow and nothing is computed twice.

    Guaranteed: the outputs of the parts are those of one pass of `lact_swiglu` up to rounding, whatever the cut, and
    autograd goes through. Not guaranteed: bits.

    Parameters
    ----------
    w0, w1, w2 : Tensor
        The fast weights at the start of the sequence, in every call (their row norms are the ones to give back).
    q, k, v, lr0, lr1, lr2 : Tensor
        The next tokens, as in `lact_swiglu`; none or more.
    state : LaCTState, optional
        From the call before. None: the sequence starts here.
    order : {"causal", "causal-prenorm"}, default="causal"
    chunk_size : int
        The same in every call, like all options below.
    momentum, muon, newton_schulz, newton_schulz_steps, newton_schulz_dtype, updated, weight_norm, backend
        As in `lact_swiglu`.

    Returns
    -------
    o : Tensor of shape [b, l, dv]
    state : LaCTState

    Raises
    ------
    ValueError
        If an argument does not fit, or `state` is not one of the same options and shapes.

    Examples
    --------
    >>> import torch
    >>> from tttabpfn.lact import lact_swiglu
    >>> draw = torch.Generator().manual_seed(0)
    >>> w0, w2, w1 = (torch.randn(2, 8, 8, generator=draw) / 8**0.5 for _ in range(3))
    >>> q, k, v = (torch.randn(2, 10, 8, generator=draw) for _ in range(3))
    >>> rate = torch.full((2, 10, 1), 0.01)
    >>> whole, _ = lact_swiglu(w0, w1, w2, q, k, v, rate, rate, rate, chunk_size=4)
    >>> state, parts = None, []
    >>> for part in (slice(0, 5), slice(5, 6), slice(6, 10)):
    ...     tokens = [x[:, part] for x in (q, k, v, rate, rate, rate)]
    ...     o, state = lact_swiglu_resume(w0, w1, w2, *tokens, state=state, chunk_size=4)
    ...     parts.append(o)
    >>> bool(torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-5)), state.seen
    (True, 2)
    """
    tokens = Tokens(q, k, v, lr0, lr1, lr2, momentum)
    start = {"w0": w0, "w1": w1, "w2": w2}
    if order == "operators":
        raise ValueError(f'order must be "causal" or "causal-prenorm" in parts, got {order!r}')
    check_operation(start, tokens._asdict(), order, chunk_size, None, None, updated)
    rule = Rule.of(
        start,
        tokens,
        order=order,
        muon=muon,
        newton_schulz=newton_schulz,
        newton_schulz_steps=newton_schulz_steps,
        newton_schulz_dtype=newton_schulz_dtype,
        updated=updated,
        weight_norm=weight_norm,
        backend=backend,
    )
    current, progress = _begin(rule, start, momentum is not None, state, chunk_size)
    pieces = _pieces(progress.seen, q.shape[1], chunk_size)
    writer = Writer(pieces, tokens, current, backend)
    done = run_chunks(
        pieces,
        current,
        progress,
        gradient=lambda piece, weights: chunk_gradient(rule, tokens, piece, weights),
        update=lambda piece, weights, found, before: _add(rule, tokens, chunk_size, piece, weights, found, before),
        apply=writer.apply,
        order="apply_then_update",
    )
    return writer.result(done.outputs), _state(rule, done.weights, done.state, momentum is not None)


def _begin(
    rule: Rule, start: Weights, momentum: bool, state: LaCTState | None, chunk_size: int
) -> tuple[Weights, _Progress]:
    """Weights to apply, and what is carried, at the start of a call."""
    moving = {name: start[name] for name in rule.updated}
    memory = update_rules.init_state(rule.name, moving)
    if state is None:
        gradient, total, still = zeros(moving, momentum)
        return start, _Progress(Carried(memory, start, {}), gradient, total, still, 0)
    prenorm = rule.order == "causal-prenorm" and rule.norms is not None
    check_state(state, moving, prenorm, momentum, chunk_size)
    if momentum:
        memory = memory._replace(first=dict(state.running))
    carried = Carried(memory, {**start, **state.weights}, dict(state.still))
    used = {**start, **(state.used if prenorm else state.weights)}
    return used, _Progress(carried, state.gradient, state.momentum, state.chunk_still, state.seen)


def _pieces(seen: int, length: int, chunk_size: int) -> list[Chunk]:
    """Cut the new tokens where chunks end, counted from the start of the sequence."""
    edges = [0, *range(chunk_size - seen, length, chunk_size), length]
    return [Chunk(left, right) for left, right in itertools.pairwise(edges) if left < right]


def _add(
    rule: Rule, tokens: Tokens, chunk_size: int, piece: Chunk, current: Weights, found: Weights, before: _Progress
) -> tuple[Weights, _Progress]:
    """Add a piece to the present chunk; update once it is full."""
    gradient = {name: before.gradient[name] + one for name, one in found.items()}
    total = dict(before.momentum)
    if tokens.momentum is not None:
        factors = tokens.momentum[:, piece.start : piece.end].sum(dim=(1, 2))
        total["sum"] = total["sum"] + factors.to(total["sum"].dtype)
    still = {name: one & before.chunk_still[name] for name, one in still_rates(rule, tokens, piece).items()}
    seen = before.seen + piece.end - piece.start
    if seen < chunk_size:
        return current, _Progress(before.carried, gradient, total, still, seen)
    mean = total["sum"] / chunk_size if total else None
    weights, carried = move(rule, current, gradient, mean, still, before.carried)
    empty = zeros({name: weights[name] for name in rule.updated}, tokens.momentum is not None)
    return weights, _Progress(carried, *empty, 0)


def _state(rule: Rule, used: Weights, progress: _Progress, momentum: bool) -> LaCTState:
    carried = progress.carried
    prenorm = rule.order == "causal-prenorm" and rule.norms is not None
    return LaCTState(
        seen=progress.seen,
        weights={name: carried.weights[name] for name in rule.updated},
        used={name: used[name] for name in rule.updated} if prenorm else {},
        running=dict(carried.rule.first) if momentum else {},
        gradient=progress.gradient,
        momentum=progress.momentum,
        still=carried.still,
        chunk_still=progress.chunk_still,
        window={},
    )
