"""Muon for matrices and AdamW for everything else, with one state to save."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tttabpfn.fast_weights.operations import newton_schulz

ADAMW_PARTS = ("embedding", "x_embed", "cls_tokens", "inducing_vectors", "softmax_scaling", "encoder")
"""Parts of parameter names that mark a matrix as a lookup table or a tiny layer, which AdamW updates."""


class MuonAdamW:
    """Muon on the matrices of a model and AdamW on the rest.

    Matrices of one shape are orthogonalised in one batch. An update of a matrix has spectral norm
    ``lr * max(1, d_out / d_in) ** 0.5``.

    Parameters
    ----------
    named_parameters : iterable of (str, Parameter)
        The model's parameters.
    muon_lr, adamw_lr : float
        Peak step sizes.
    momentum : float
        Decay of Muon's momentum (Nesterov).
    betas : tuple of two float
        Decays of AdamW's first and second moments.
    weight_decay : float
        Decoupled weight decay, relative to the step size; matrices only.
    half : bool
        Whether matrices are orthogonalised in bfloat16.

    References
    ----------
    Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        muon_lr: float,
        adamw_lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 0.0,
        half: bool = False,
    ) -> None:
        self.muon_lr, self.adamw_lr = muon_lr, adamw_lr
        self.momentum, self.betas, self.weight_decay, self.half = momentum, betas, weight_decay, half
        self.matrices: dict[torch.Size, dict[str, nn.Parameter]] = defaultdict(dict)
        self.others: dict[str, nn.Parameter] = {}
        self.state: dict[str, dict[str, Tensor]] = {}
        for name, parameter in named_parameters:
            if not parameter.requires_grad:
                continue
            small = parameter.ndim != 2 or min(parameter.shape) < 16
            if small or any(part in name for part in ADAMW_PARTS):
                self.others[name] = parameter
                keys = ["mean", "square"]
            else:
                self.matrices[parameter.shape][name] = parameter
                keys = ["momentum"]
            self.state[name] = {key: torch.zeros_like(parameter) for key in keys}
            if "mean" in keys:
                self.state[name]["count"] = torch.zeros((), dtype=torch.int64)

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for group in (self.others, *self.matrices.values()):
            for parameter in group.values():
                parameter.grad = None

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return the moments by parameter name."""
        return self.state

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Restore what `state_dict` returned."""
        for name, values in self.state.items():
            for key, value in values.items():
                value.copy_(state[name][key])

    @torch.no_grad()
    def step(self, scale: float = 1.0) -> None:
        """Update all parameters that have a gradient.

        Parameters
        ----------
        scale : float
            Step size relative to its peak.
        """
        for shape, group in self.matrices.items():
            self._muon(shape, {name: p for name, p in group.items() if p.grad is not None}, scale)
        for name, parameter in self.others.items():
            if parameter.grad is not None:
                self._adamw(parameter, parameter.grad, self.state[name], scale)

    def _muon(self, shape: torch.Size, group: dict[str, nn.Parameter], scale: float) -> None:
        updates = []
        for name, parameter in group.items():
            momentum, gradient = self.state[name]["momentum"], parameter.grad
            assert gradient is not None
            momentum.lerp_(gradient, 1 - self.momentum)
            updates.append(gradient.lerp(momentum, self.momentum))
        if not updates:
            return
        lr = self.muon_lr * scale
        step_size = lr * max(1.0, shape[0] / shape[1]) ** 0.5
        dtype = "bfloat16" if self.half or updates[0].dtype == torch.bfloat16 else "float32"
        orthogonal = newton_schulz(torch.stack(updates), "fixed", 5, dtype)
        for parameter, update in zip(group.values(), orthogonal, strict=True):
            parameter.mul_(1 - lr * self.weight_decay).sub_(update, alpha=step_size)

    def _adamw(self, parameter: nn.Parameter, gradient: Tensor, state: dict[str, Tensor], scale: float) -> None:
        first, second = self.betas
        state["count"] += 1
        count = int(state["count"])
        state["mean"].lerp_(gradient, 1 - first)
        state["square"].lerp_(gradient * gradient, 1 - second)
        mean = state["mean"] / (1 - first**count)
        root = (state["square"] / (1 - second**count)).sqrt_().add_(1e-8)
        parameter.addcdiv_(mean, root, value=-self.adamw_lr * scale)
