"""Checks of what users pass to the LaCT layer; every message names the argument, what is allowed and what came."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tttabpfn.lact.checks import check_chunk_size, check_lengths
from tttabpfn.lact.chunk_rule import UPDATED

__all__ = ["MODES", "check_call", "check_layer", "check_lengths_of_rows"]

MODES = ("set", "causal", "causal-prenorm", "operators")


def check_layer(
    dim: int,
    n_heads: int,
    hidden_ratio: float,
    mode: str,
    chunk_size: int | None,
    window_size: int | None,
    base_rate: float,
    updated: str,
) -> None:
    """Raise ValueError unless a layer's settings fit one another; they are those of `LaCTSwiGLU`."""
    if n_heads < 1 or dim < 1 or dim % n_heads:
        raise ValueError(f"dim must be a positive multiple of n_heads, got dim={dim}, n_heads={n_heads}")
    if not hidden_ratio > 0:
        raise ValueError(f"hidden_ratio must be above 0, got {hidden_ratio!r}")
    if mode not in MODES:
        raise ValueError(f"mode must be one of {list(MODES)}, got {mode!r}")
    if chunk_size is not None:
        check_chunk_size(chunk_size)
        if mode == "operators":
            raise ValueError(f'chunk_size must be None with mode="operators", got {chunk_size}')
    if window_size is not None and (not mode.startswith("causal") or window_size < 1):
        raise ValueError(
            f'window_size must be None, or 1 or more in a causal mode, got {window_size!r} with mode="{mode}"'
        )
    if not base_rate > 0:
        raise ValueError(f"base_rate must be above 0, got {base_rate!r}")
    if updated not in UPDATED:
        raise ValueError(f"updated must be one of {list(UPDATED)}, got {updated!r}")


def check_call(layer: Any, x: Tensor, operators: Sequence[Any] | None, group: Any) -> None:
    """Raise ValueError unless tokens, operators and processes fit a `LaCTSwiGLU`."""
    if x.dim() != 3 or x.shape[2] != layer.dim:
        raise ValueError(f"x must have shape [n, l, {layer.dim}], got {tuple(x.shape)}")
    if (operators is None) == (layer.mode == "operators"):
        needed = "be given" if layer.mode == "operators" else "be None"
        raise ValueError(f'operators must {needed} with mode="{layer.mode}", got {operators!r}')
    if group is None:
        return
    if layer.window_size is not None:
        raise ValueError(f"window_size must be None where processes share a sequence, got {layer.window_size}")
    if layer.chunk_size is not None and layer.chunk_size % group.size():
        raise ValueError(f"chunk_size must be a multiple of the {group.size()} processes, got {layer.chunk_size}")


def check_lengths_of_rows(lengths: Sequence[Any], x: Tensor, mode: str) -> bool:
    """Whether `lengths` has a list per row; raise ValueError if these do not fit."""
    if not isinstance(lengths, (list, tuple)) or not any(isinstance(row, (list, tuple)) for row in lengths):
        return False
    if mode == "operators":
        raise ValueError(f'lengths must be one list for all rows with mode="operators", got {lengths!r}')
    if len(lengths) != x.shape[0] or not all(isinstance(row, (list, tuple)) for row in lengths):
        raise ValueError(f"lengths must be one list, or a list for each of the {x.shape[0]} rows, got {lengths!r}")
    for row in lengths:
        check_lengths(row, x.shape[1])
    return True
