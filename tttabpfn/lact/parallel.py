"""LaCT over several processes: heads apart, or one long sequence apart; started with ``torchrun``.

Both equal one process in outputs and gradients, on any backend of `torch.distributed` (gloo on a CPU, NCCL on GPUs).
Every process holds the same layer; after ``backward``, `sum_gradients` completes the gradients of its slow weights.

- Heads: `heads_parallel` gives every process all tokens and a share of the heads.
- Sequence: ``layer(split_sequence(x, ...), group=group)`` gives every process a share of each chunk's tokens. Per chunk
  one message sums the fast weights' gradients: its size is that of the fast weights, whatever the chunk's.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, distributed

from tttabpfn.lact.collectives import copied, sum_gradients, summed_output
from tttabpfn.lact.layer import LaCTSwiGLU

__all__ = ["heads_parallel", "join_sequence", "split_sequence", "sum_gradients"]


def heads_parallel(layer: LaCTSwiGLU, x: Tensor, group: Any = None, **call: Any) -> Tensor:
    """Run a layer with its heads spread over the processes.

    Parameters
    ----------
    layer : LaCTSwiGLU
        The same on every process, which uses its share of each weight; the number of heads must be a multiple of the
        processes.
    x : Tensor of shape [n, l, dim]
        All tokens, the same on every process.
    group : torch.distributed.ProcessGroup, optional
        None: all processes.
    **call
        What ``layer.forward`` takes besides: operators, lengths.

    Returns
    -------
    Tensor
        The layer's output, the same on every process. Every process has to compute the same loss from it; the
        derivative of `x` is complete, those of the slow weights after `sum_gradients`.

    Raises
    ------
    ValueError
        If the heads do not divide by the processes.
    """
    size, rank = distributed.get_world_size(group), distributed.get_rank(group)
    if layer.n_heads % size:
        raise ValueError(f"n_heads must be a multiple of the {size} processes, got {layer.n_heads}")
    count = layer.n_heads // size
    own = slice(rank * count, (rank + 1) * count)
    local = copy.copy(layer)
    local.n_heads = count
    y = torch.func.functional_call(local, _share_of_weights(layer, own), (copied(x, group),), call)
    return summed_output(y, group)


def _share_of_weights(layer: LaCTSwiGLU, own: slice) -> dict[str, Tensor]:
    """Slow weights of some heads: rows of what makes heads, columns of what merges them."""
    shares = {}
    for name, weight in layer.named_parameters():
        if name in ("w0", "w1", "w2"):
            shares[name] = weight[own]
        elif name == "to_output.weight":
            shares[name] = weight.unflatten(1, (layer.n_heads, -1))[:, own].flatten(1)
        elif name.startswith(("to_qkv", "to_rates", "to_momentum")):
            parts = 1 if name.startswith("to_momentum") else 3
            shares[name] = weight.unflatten(0, (parts, layer.n_heads, -1))[:, own].flatten(0, 2)
        else:
            shares[name] = weight
    return shares


def split_sequence(x: Tensor, chunk_size: int | None, group: Any = None) -> Tensor:
    """Return the tokens of this process: an equal part of every chunk, chunks in order.

    Parameters
    ----------
    x : Tensor of shape [n, l, width]
        The whole sequence.
    chunk_size : int, optional
        The layer's. None: one chunk.
    group : torch.distributed.ProcessGroup, optional

    Returns
    -------
    Tensor of shape [n, l / processes, width]

    Raises
    ------
    ValueError
        If a chunk, the last one included, does not divide by the processes.
    """
    size, rank = distributed.get_world_size(group), distributed.get_rank(group)
    parts = [part.chunk(size, dim=1)[rank] for part in _chunks(x, chunk_size, size)]
    return torch.cat(parts, dim=1)


def join_sequence(parts: list[Tensor], chunk_size: int | None) -> Tensor:
    """Put the processes' parts, by rank, back into one sequence: the inverse of `split_sequence`.

    Examples
    --------
    >>> first, second = torch.tensor([[[0.0], [1.0], [4.0]]]), torch.tensor([[[2.0], [3.0], [5.0]]])
    >>> join_sequence([first, second], 4).flatten().tolist()
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    """
    share = None if chunk_size is None else chunk_size // len(parts)
    pieces = zip(*(_chunks(part, share, 1) for part in parts), strict=True)
    return torch.cat([part for one in pieces for part in one], dim=1)


def _chunks(x: Tensor, chunk_size: int | None, size: int) -> tuple[Tensor, ...]:
    chunks = x.split(chunk_size or max(1, x.shape[1]), dim=1)
    for chunk in chunks:
        if chunk.shape[1] % size:
            raise ValueError(f"every chunk must divide by the {size} processes, got one of {chunk.shape[1]} tokens")
    return chunks
