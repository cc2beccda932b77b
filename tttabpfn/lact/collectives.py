"""Sums over processes that autograd follows, each with the derivative its place needs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, distributed

__all__ = ["check_same", "copied", "sum_gradients", "sum_over", "summed_output"]


def sum_over(tensors: Iterable[Tensor], group: Any) -> tuple[Tensor, ...]:
    """Sum each tensor over the processes in one message; the derivative is summed over them as well.

    For what every process goes on to use for outputs of its own: the total loss is the sum of the processes' losses.
    All tensors have one dtype.
    """
    parts = tuple(tensors)
    flat = _Sum.apply(torch.cat([part.flatten() for part in parts]), group, True, True)
    pieces = flat.split([part.numel() for part in parts])
    return tuple(piece.reshape(part.shape) for piece, part in zip(pieces, parts, strict=True))


def summed_output(tensor: Tensor, group: Any) -> Tensor:
    """Sum over the processes; the derivative is handed on as it is, for all processes compute one and the same loss."""
    return _Sum.apply(tensor, group, True, False)


def copied(tensor: Tensor, group: Any) -> Tensor:
    """Return the tensor as it is; its derivative is summed over the processes, each of which used it for a part."""
    return _Sum.apply(tensor, group, False, True)


class _Sum(torch.autograd.Function):
    """Sum forwards, backwards, or both."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Any, forwards: bool, backwards: bool) -> Tensor:
        ctx.group, ctx.backwards = group, backwards
        return _reduced(tensor, group) if forwards else tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return (_reduced(gradient, ctx.group) if ctx.backwards else gradient), None, None, None


def _reduced(tensor: Tensor, group: Any) -> Tensor:
    out = tensor.detach().clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(out, group=group)
    return out


def sum_gradients(module: torch.nn.Module, group: Any = None) -> None:
    """Sum `.grad` of every parameter over the processes, in place; call it after ``backward``.

    A parameter without a gradient on some process counts as zero there.

    Parameters
    ----------
    module : torch.nn.Module
        The same on every process.
    group : ProcessGroup, optional
        None: all processes.
    """
    for parameter in module.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        distributed.all_reduce(parameter.grad, group=group)


def check_same(value: int, name: str, group: Any, device: torch.device) -> None:
    """Raise ValueError on every process unless all have the same `value`: unequal shares would wait for one another."""
    ends = torch.tensor([value, -value], device=device)
    distributed.all_reduce(ends, op=distributed.ReduceOp.MAX, group=group)
    if int(ends[0]) != -int(ends[1]):
        raise ValueError(
            f"{name} must be the same on every process, got {value} here, {-int(ends[1])} to {int(ends[0])} overall"
        )
