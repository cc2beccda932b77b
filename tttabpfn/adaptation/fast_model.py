"""Private copies of a base's networks whose fast weights are set, differentiated and read as stacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tttabpfn import tabpfn_adapter as adapter
from tttabpfn.adaptation.outcome import fast_weight_name, network_weights
from tttabpfn.fast_weights.stacks import StackLayout

Stacks = dict[str, Tensor]


class FastModel:
    """Private copies of the base's networks whose fast weights can be set, differentiated and read as stacks.

    Parameters
    ----------
    models : sequence of Module
        The base's networks; shared, never written to.
    selection : str or sequence of str
        Which parameters are fast weights.
    """

    def __init__(self, models: Sequence[nn.Module], selection: str | Sequence[str]) -> None:
        chosen = []
        for model in models:
            own = dict(model.named_parameters())
            chosen.append({name: own[name] for name in adapter.select_names(adapter.adaptable_names(model), selection)})
        self.models = adapter.private_copies(models, chosen)
        self._parameters = {
            fast_weight_name(position, name): parameter
            for position, (twin, names) in enumerate(zip(self.models, chosen, strict=True))
            for name, parameter in twin.named_parameters()
            if name in names
        }
        self.layout = StackLayout.of(self._parameters)
        self.initial = self.layout.stack({name: value.detach() for name, value in self._parameters.items()})

    def load(self, stacks: Stacks) -> None:
        """Set the fast weights to the values of the stacks."""
        with torch.no_grad():
            for name, value in self.layout.unstack(stacks).items():
                self._parameters[name].copy_(value)

    def named(self, stacks: Stacks) -> dict[str, Tensor]:
        """Fast weights by parameter name, each name led by its network's position."""
        return self.layout.unstack(stacks)

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        """Gradients of a loss by parameter name; zeros where a parameter plays no part."""
        names = list(self._parameters)
        gradients = torch.autograd.grad(loss, [self._parameters[name] for name in names], allow_unused=True)
        return {
            name: torch.zeros_like(self._parameters[name]) if gradient is None else gradient
            for name, gradient in zip(names, gradients, strict=True)
        }

    @property
    def nbytes(self) -> int:
        """Size of the fast weights in bytes."""
        return sum(stack.nbytes for stack in self.initial.values())


def predicting_models(base: adapter.Base, tensors: Mapping[str, Tensor]) -> list[nn.Module]:
    """Read-only copies of a base's networks that use an adaptation's fast weights themselves, and no memory's."""
    return adapter.private_copies(base.models, network_weights(tensors, len(base.models)), trainable=False)
