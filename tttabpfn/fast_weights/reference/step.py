"""Momentum, weight update and row-norm restoration as one leaf operation, in plain PyTorch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tttabpfn.fast_weights.dispatch import differentiated

__all__ = ["StepOptions", "restore_row_norms", "row_norms", "step"]


class StepOptions(NamedTuple):
    """How a step moves a stack of weights [B, D_out, D_in].

    Attributes
    ----------
    momentum : float or Tensor of shape [B]
        Factor on the running gradient; plays no part where there is none.
    step_size : float or Tensor of shape [B]
    weight_decay : float, default=0.0
        Decoupled, a share of the weight per unit of step size.
    norms : Tensor of shape [B, D_out, 1] or None
        Row norms to restore; None: no restoration.
    norm_eps : float, default=1e-8
        Added to the present norm.
    """

    momentum: float | Tensor
    step_size: float | Tensor
    weight_decay: float = 0.0
    norms: Tensor | None = None
    norm_eps: float = 1e-8


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


def row_norms(weight: Tensor) -> Tensor:
    r"""L2 norm of each row (last axis) of a stack of matrices.

    Parameters
    ----------
    weight : Tensor of shape [B, D_out, D_in]
        Floating point.

    Returns
    -------
    Tensor of shape [B, D_out, 1]
        :math:`\sqrt{\sum_j W_{ij}^2}`, in the dtype of `weight`.

    Examples
    --------
    >>> import torch
    >>> row_norms(torch.tensor([[[3.0, 4.0], [0.0, 2.0]]])).flatten().tolist()
    [5.0, 2.0]
    """
    return torch.linalg.vector_norm(weight, dim=-1, keepdim=True)


def restore_row_norms(weight: Tensor, norms: Tensor, eps: float = 1e-8) -> Tensor:
    r"""Scale each row of `weight` back to the norm in `norms`.

    The result is :math:`W_i \, n_i / (\lVert W_i \rVert + \varepsilon)`: `eps` is added to the norm, not put under the
    root, as LaCT does (Zhang et al. 2025, arXiv 2505.23884, with ``eps=1e-5``).

    Guaranteed: the direction of every row is kept, and its norm is :math:`n_i` up to the relative error
    :math:`\varepsilon / \lVert W_i \rVert` plus rounding (below 1e-6 in float32 for the default `eps` and rows of norm
    0.01 and more). Not guaranteed: a row that has become zero stays zero, and a row with ``norms == 0`` becomes zero.

    Parameters
    ----------
    weight : Tensor of shape [B, D_out, D_in]
    norms : Tensor of shape [B, D_out, 1]
        The norms to restore, usually ``row_norms`` of the starting weights.
    eps : float, default=1e-8
        Added to the present norm; keeps zero rows finite.

    Returns
    -------
    Tensor of shape [B, D_out, D_in]
        A new tensor.

    Examples
    --------
    >>> import torch
    >>> start = torch.tensor([[[3.0, 4.0]]])
    >>> moved = start * 2.0
    >>> bool(torch.allclose(restore_row_norms(moved, row_norms(start)), start))
    True
    """
    return weight * (norms / (row_norms(weight) + eps))
