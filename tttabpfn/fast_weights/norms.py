"""Row norms of stacked weights and their restoration after an update."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["restore_row_norms", "row_norms"]


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
