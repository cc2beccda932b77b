"""Checks of what users pass to the LaCT operation; every message names the argument, what is allowed and what came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tttabpfn.lact.chunk_rule import UPDATED
from tttabpfn.lact.collectives import check_same

__all__ = [
    "ORDERS",
    "check_chunk_size",
    "check_group",
    "check_lengths",
    "check_operation",
    "check_operators",
    "check_state",
]

ORDERS = ("causal", "causal-prenorm", "operators")


def check_operation(
    weights: Mapping[str, Tensor],
    inputs: Mapping[str, Tensor | None],
    order: str,
    chunk_size: int | None,
    operators: Sequence[Any] | None,
    lengths: Sequence[int] | None = None,
    updated: str = "all",
) -> None:
    """Check all arguments of `lact_swiglu` against one another.

    Parameters
    ----------
    weights : mapping
        w0, w1, w2.
    inputs : mapping
        q, k, v, lr0, lr1, lr2 and momentum, which may be None.
    order, chunk_size, operators, lengths, updated
        As in `lact_swiglu`.

    Raises
    ------
    ValueError
        If one of them does not fit.
    TypeError
        If a tensor is none.
    """
    if order not in ORDERS:
        raise ValueError(f"order must be one of {list(ORDERS)}, got {order!r}")
    if updated not in UPDATED:
        raise ValueError(f"updated must be one of {list(UPDATED)}, got {updated!r}")
    tensors: dict[str, Any] = {
        **weights,
        **{name: value for name, value in inputs.items() if name != "momentum" or value is not None},
    }
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
        if value.dim() != 3:
            raise ValueError(f"{name} must have three axes, got shape {tuple(value.shape)}")
    _check_shapes(tensors)
    length = tensors["q"].shape[1]
    if lengths is not None:
        check_lengths(lengths, length)
    if order == "operators":
        if chunk_size is not None:
            raise ValueError(f'chunk_size must be None with order="operators", got {chunk_size!r}')
        check_operators(operators, length)
    else:
        if operators is not None:
            raise ValueError(f'operators must be None with order="{order}", got {operators!r}')
        check_chunk_size(chunk_size)


def _check_shapes(tensors: Mapping[str, Any]) -> None:
    w0, w1, q = tensors["w0"], tensors["w1"], tensors["q"]
    (batch, hidden, keys), values, length = w0.shape, w1.shape[1], q.shape[1]
    wanted = {
        "w1": (batch, values, hidden),
        "w2": (batch, hidden, keys),
        "q": (batch, length, keys),
        "k": (batch, length, keys),
        "v": (batch, length, values),
        **dict.fromkeys(("lr0", "lr1", "lr2", "momentum"), (batch, length, 1)),
    }
    for name, value in tensors.items():
        if name in wanted and tuple(value.shape) != wanted[name]:
            raise ValueError(
                f"{name} must have shape {wanted[name]} (from w0 {tuple(w0.shape)}, w1 {tuple(w1.shape)}, "
                f"q {tuple(q.shape)}), got {tuple(value.shape)}"
            )
        pattern = w0 if name in ("w1", "w2") else q if name in ("k", "v") else None
        if not value.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {value.dtype}")
        if pattern is not None and value.dtype != pattern.dtype:
            like = "w0" if pattern is w0 else "q"
            raise ValueError(f"{name} must have the dtype of {like} ({pattern.dtype}), got {value.dtype}")
        if value.device != w0.device:
            raise ValueError(f"{name} must be on the device of w0 ({w0.device}), got {value.device}")


def check_chunk_size(chunk_size: Any) -> None:
    """Raise ValueError unless `chunk_size` is an integer of 1 or more."""
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1:
        raise ValueError(f"chunk_size must be an integer of 1 or more, got {chunk_size!r}")


def check_operators(operators: Sequence[Any] | None, length: int) -> None:
    """Raise ValueError unless `operators` are windows (start, end, update, apply) inside `length` tokens.

    Examples
    --------
    >>> check_operators([(0, 4, True, True)], 4)
    >>> check_operators([(0, 5, True, True)], 4)
    Traceback (most recent call last):
        ...
    ValueError: operators[0] must have 0 <= start < end <= 4 (the tokens), got start=0, end=5
    """
    if operators is None or (length and not operators):
        raise ValueError(f"operators must be a non-empty list of (start, end, update, apply), got {operators!r}")
    for index, entry in enumerate(operators):
        if not isinstance(entry, (tuple, list)) or len(entry) != 4:
            raise ValueError(f"operators[{index}] must be (start, end, update, apply), got {entry!r}")
        start, end = entry[:2]
        if not all(isinstance(edge, int) and not isinstance(edge, bool) for edge in (start, end)):
            raise ValueError(f"operators[{index}] must have integer start and end, got {entry!r}")
        if not 0 <= start < end <= length:
            raise ValueError(
                f"operators[{index}] must have 0 <= start < end <= {length} (the tokens), got start={start}, end={end}"
            )


def check_lengths(lengths: Any, length: int) -> None:
    """Raise ValueError unless `lengths` are integers of 0 or more that sum to `length` tokens.

    Examples
    --------
    >>> check_lengths([3, 0, 2], 5)
    >>> check_lengths([3, 1], 5)
    Traceback (most recent call last):
        ...
    ValueError: lengths must sum to the number of tokens, 5, got [3, 1], which sum to 4
    """
    whole = isinstance(lengths, (list, tuple)) and all(
        isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in lengths
    )
    if not whole or not lengths:
        raise ValueError(f"lengths must be a non-empty list of integers of 0 or more, got {lengths!r}")
    if sum(lengths) != length:
        raise ValueError(
            f"lengths must sum to the number of tokens, {length}, got {list(lengths)}, which sum to {sum(lengths)}"
        )


def check_group(group: Any, lengths: Sequence[int] | None, tokens: int, operators: int, device: torch.device) -> None:
    """Raise ValueError unless every process has the same number of tokens and operators, and nothing is packed."""
    if lengths is not None:
        raise ValueError(f"lengths must be None with a group of processes, got {list(lengths)}")
    check_same(tokens, "the number of tokens", group, device)
    check_same(operators, "the number of operators", group, device)


def check_state(state: Any, moving: Mapping[str, Tensor], prenorm: bool, momentum: bool, chunk_size: int) -> None:
    """Raise ValueError unless a `LaCTState` fits the weights that are updated and the options in use."""
    if not 0 <= state.seen < chunk_size:
        raise ValueError(f"state must be one of chunk_size={chunk_size}, got {state.seen} tokens in its chunk")
    shapes = {name: tuple(weight.shape) for name, weight in moving.items()}
    wanted = {
        "weights": shapes,
        "used": shapes if prenorm else {},
        "running": shapes if momentum else {},
        "gradient": shapes,
    }
    for part, expected in wanted.items():
        got = {name: tuple(one.shape) for name, one in getattr(state, part).items()}
        if got != expected:
            raise ValueError(f"state.{part} must have shapes {expected} (same layer, options, batch), got {got}")
    if bool(state.momentum) != momentum:
        raise ValueError(f"state must come from a run with momentum={momentum}, got momentum={bool(state.momentum)}")
