"""How named parameters are stacked for one batched update."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StackLayout:
    """How named parameters of equal shape are stacked along a leading batch axis.

    Parameters
    ----------
    groups : tuple of (str, tuple of str)
        Each stack's key and its members' names in order.
    shapes : dict of str to tuple of int
        Each parameter's own shape.

    Examples
    --------
    >>> weights = {"a.weight": torch.zeros(3, 2), "b.weight": torch.ones(3, 2), "a.bias": torch.zeros(3)}
    >>> layout = StackLayout.of(weights)
    >>> stacks = layout.stack(weights)
    >>> {key: tuple(stack.shape) for key, stack in stacks.items()}
    {'3x2': (2, 3, 2), '3': (1, 3)}
    >>> torch.equal(layout.unstack(stacks)["b.weight"], weights["b.weight"])
    True
    """

    groups: tuple[tuple[str, tuple[str, ...]], ...]
    shapes: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> StackLayout:
        """Group parameters by shape, in order of first appearance; three or more dimensions become ``[D_out, -1]``."""
        groups: dict[str, list[str]] = {}
        for name, weight in weights.items():
            groups.setdefault("x".join(str(size) for size in _flat_shape(weight.shape)), []).append(name)
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        return cls(tuple((key, tuple(names)) for key, names in groups.items()), shapes)

    def stack(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Stack named tensors of this layout's shapes, as ``[B, D_out, D_in]`` or ``[B, D]``, in new memory."""
        return {
            key: torch.stack([weights[name].reshape(_flat_shape(self.shapes[name])) for name in names])
            for key, names in self.groups
        }

    def unstack(self, stacks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each parameter's part of the stacks in its own shape, as views."""
        named = {
            name: stacks[key][position].view(self.shapes[name])
            for key, names in self.groups
            for position, name in enumerate(names)
        }
        return {name: named[name] for name in self.shapes}


def _flat_shape(shape: Iterable[int]) -> tuple[int, ...]:
    sizes = tuple(shape)
    if len(sizes) <= 1:
        return sizes or (1,)
    width = 1
    for size in sizes[1:]:
        width *= size
    return (sizes[0], width)
