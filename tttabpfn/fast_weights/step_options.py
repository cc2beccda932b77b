"""What every implementation of a fast-weight step is told."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["StepOptions"]


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
