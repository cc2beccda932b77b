"""Several sequences in one row: cut apart, run in stacks of like ones, and put back in their places."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tttabpfn.lact.chunk_rule import Tokens, Weights
from tttabpfn.lact.window import window_attention

__all__ = ["packed_window_attention", "run_packed"]

Operator = tuple[int, int, bool, bool]
Run = Callable[[Tokens, Weights, Any], tuple[Tensor, Weights]]


def run_packed(
    run: Run,
    tokens: Tokens,
    weights: Weights,
    lengths: list[int],
    chunk_size: int | None,
    operators: Sequence[Any] | None,
) -> tuple[Tensor, Weights]:
    """Run packed sequences, each from the same starting weights.

    Sequences that share their chunks run as one stack. In the causal orders these are the ones with equally many
    chunks: all chunks but the last are full, and the last is never learned from, so filling it up changes nothing. With
    operators the windows have to be the same.

    Parameters
    ----------
    run : callable
        ``run(tokens, weights, operators)`` returns outputs and weights of a stack of sequences of one length.
    tokens : Tokens
        [b, sum of lengths, width].
    weights : dict of Tensor
    lengths : list of int
    chunk_size, operators
        As in `lact_swiglu`.

    Returns
    -------
    o : Tensor
        In the order of the tokens, or of the operators.
    weights : dict of Tensor of shape [sequences, b, ...]
    """
    starts = _starts(lengths)
    own: list[list[Operator]] = [[] for _ in lengths]
    places: list[tuple[int, int]] = []
    if operators is None:
        keys: list[Hashable] = [-(-length // (chunk_size or 1)) for length in lengths]
        places = [(sequence, length) for sequence, length in enumerate(lengths)]
    else:
        for index, (start, end, update, apply) in enumerate(operators):
            sequence = _owner(index, start, end, starts, lengths)
            shift = starts[sequence]
            own[sequence].append((start - shift, end - shift, bool(update), bool(apply)))
            if apply:
                places.append((sequence, end - start))
        keys = [(length, *one) for length, one in zip(lengths, own, strict=True)]

    outputs: list[Tensor] = [tokens.v] * len(lengths)
    after: list[Weights] = [weights] * len(lengths)
    for members in _groups(keys):
        longest = max(lengths[one] for one in members)
        spans = [(starts[one], lengths[one]) for one in members]
        stacked = Tokens(*(None if part is None else _stack(part, spans, longest) for part in tokens))  # type: ignore[arg-type]
        repeated = {name: weight.repeat(len(members), 1, 1) for name, weight in weights.items()}
        o, last = run(stacked, repeated, None if operators is None else own[members[0]])
        for position, one in enumerate(members):
            entries = slice(position * tokens.q.shape[0], (position + 1) * tokens.q.shape[0])
            outputs[one] = o[entries]
            after[one] = {name: weight[entries] for name, weight in last.items()}
    read = [0] * len(lengths)
    pieces = [tokens.v[:, :0]]
    for sequence, size in places:
        pieces.append(outputs[sequence][:, read[sequence] : read[sequence] + size])
        read[sequence] += size
    return torch.cat(pieces, dim=1), {name: torch.stack([one[name] for one in after]) for name in weights}


def packed_window_attention(q: Tensor, k: Tensor, v: Tensor, window_size: int, lengths: Sequence[int]) -> Tensor:
    """`window_attention` of each packed sequence apart; sequences of about the same length run as one stack.

    Examples
    --------
    >>> v = torch.arange(4.0).reshape(1, 4, 1)
    >>> q = torch.zeros(1, 4, 1)
    >>> packed_window_attention(q, q, v, 2, [1, 3]).flatten().tolist()  # token 1 does not see token 0
    [0.0, 1.0, 1.5, 2.5]
    """
    starts = _starts(lengths)
    outputs = [v[:, :0]] * len(lengths)
    for members in _groups([-(-length // window_size) for length in lengths]):
        longest = max(lengths[one] for one in members)
        if longest == 0:
            continue
        spans = [(starts[one], lengths[one]) for one in members]
        queries, keys, values = (_stack(part, spans, longest) for part in (q, k, v))
        o = window_attention(queries, keys, values, window_size)
        for one, rows in zip(members, o.split(q.shape[0]), strict=True):
            outputs[one] = rows[:, : lengths[one]]
    return torch.cat(outputs, dim=1)


def _starts(lengths: Sequence[int]) -> list[int]:
    starts = [0]
    for length in lengths[:-1]:
        starts.append(starts[-1] + length)
    return starts


def _groups(keys: Sequence[Hashable]) -> list[list[int]]:
    """Positions with equal keys together."""
    found: dict[Hashable, list[int]] = {}
    for position, key in enumerate(keys):
        found.setdefault(key, []).append(position)
    return list(found.values())


def _stack(tensor: Tensor, spans: list[tuple[int, int]], longest: int) -> Tensor:
    """Spans (start, length) of the token axis behind one another in the batch axis, filled up with zeros."""
    parts = [F.pad(tensor[:, start : start + length], (0, 0, 0, longest - length)) for start, length in spans]
    return torch.cat(parts)


def _owner(index: int, start: int, end: int, starts: list[int], lengths: Sequence[int]) -> int:
    for sequence, (first, length) in enumerate(zip(starts, lengths, strict=True)):
        if first <= start and end <= first + length:
            return sequence
    raise ValueError(
        f"operators[{index}] must stay inside one of the packed sequences of lengths {list(lengths)}, "
        f"got start={start}, end={end}"
    )
