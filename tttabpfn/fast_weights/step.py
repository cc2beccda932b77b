"""Momentum, weight update and row-norm restoration as one leaf operation, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from tttabpfn.fast_weights.dispatch import differentiated
from tttabpfn.fast_weights.norms import row_norms
from tttabpfn.fast_weights.step_options import StepOptions

__all__ = ["StepOptions", "step"]


def step(weight: Tensor, gradient: Tensor, buffer: Tensor | None, options: StepOptions) -> tuple[Tensor, Tensor | None]:
    r"""Update a stack of matrices, and restore its row norms.

    :math:`M \leftarrow G + \mu M`, :math:`W \leftarrow W - s (M + \lambda W)`, then rows scaled to `options.norms`.
    Entries of the stack with step size 0 keep the bits of their weight.

    Parameters
    ----------
    weight, gradient : Tensor of shape [B, D_out, D_in]
    buffer : Tensor of shape [B, D_out, D_in] or None
        Running gradient; None: no momentum, the gradient itself is the direction.
    options : StepOptions

    Returns
    -------
    weight : Tensor of shape [B, D_out, D_in]
    buffer : Tensor of shape [B, D_out, D_in] or None
        The new running gradient; None where none came in.

    Examples
    --------
    >>> import torch
    >>> w, g = torch.ones(1, 1, 1), torch.full((1, 1, 1), 2.0)
    >>> new, running = step(w, g, torch.ones(1, 1, 1), StepOptions(momentum=0.5, step_size=0.1))
    >>> round(new.item(), 3), running.item()
    (0.75, 2.5)
    """
    momentum, step_size, weight_decay, norms, norm_eps = options
    if buffer is not None:
        buffer = gradient + _column(momentum, weight) * buffer
    direction = gradient if buffer is None else buffer
    if not isinstance(step_size, Tensor) and step_size == 0:
        return weight, buffer
    size = _column(step_size, weight)
    if weight_decay:
        direction = direction + weight_decay * weight
    moved = weight - size * direction if isinstance(size, Tensor) else torch.sub(weight, direction, alpha=size)
    if norms is not None:
        scale = norms / (row_norms(moved) + norm_eps)
        # moved is a temporary of this function: without autograd it is scaled in place, one pass instead of two
        moved = moved * scale if differentiated([moved]) else moved.mul_(scale)
    return (torch.where(size == 0, weight, moved) if isinstance(size, Tensor) else moved), buffer


def _column(value: float | Tensor, weight: Tensor) -> float | Tensor:
    """Shape a per-entry tensor [B] so that it broadcasts over the entries of `weight`."""
    return value.to(weight).reshape(-1, 1, 1) if isinstance(value, Tensor) else value
