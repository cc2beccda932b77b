"""A written memory: what is kept of it, and how it is read for rows to predict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tttabpfn.memory.kinds import KINDS
from tttabpfn.memory.rows import KeyScale


@dataclass(frozen=True)
class Memory:
    """One memory per ensemble member, ready to be read.

    Parameters
    ----------
    kind : {"linear", "swiglu"}
    scale : KeyScale
        From embeddings to keys.
    weights : dict of Tensor
        Stacked over the M members; the output weight contains the gate and the softmax temperature.
    """

    kind: str
    scale: KeyScale
    weights: dict[str, Tensor]

    @classmethod
    def gated(cls, kind: str, scale: KeyScale, weights: Mapping[str, Tensor], factor: float) -> Memory:
        """A memory whose output is multiplied by `factor`."""
        output = KINDS[kind].output
        return cls(kind, scale, {**weights, output: weights[output] * factor})

    def read(self, embeddings: Tensor, *, backend: str = "auto") -> Tensor:
        """What to add to raw logits, of shape (M, Q, K), given the embeddings (M, Q, E) of rows to predict."""
        return KINDS[self.kind].read(self.weights, self.scale.keys(embeddings), backend)[0]

    def to(self, device: torch.device) -> Memory:
        """The same memory on a device."""
        scale = KeyScale(self.scale.mean.to(device), self.scale.spread.to(device))
        return Memory(self.kind, scale, {name: value.to(device) for name, value in self.weights.items()})

    @property
    def nbytes(self) -> int:
        """Size in bytes; it depends on the model's width and the classes, not on the rows written."""
        return sum(value.nbytes for value in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name, which `of_tensors` takes."""
        named = {"mean": self.scale.mean, "spread": self.scale.spread, **self.weights}
        return {name: value.detach() for name, value in named.items()}

    @classmethod
    def of_tensors(cls, kind: str, tensors: Mapping[str, Tensor]) -> Memory:
        """Rebuild a memory of a kind from what `tensors` returned."""
        weights = dict(tensors)
        scale = KeyScale(weights.pop("mean"), weights.pop("spread"))
        return cls(kind, scale, weights)
