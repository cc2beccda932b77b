"""A written memory: what is kept of it, and how it is read for rows to predict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tttabpfn.adaptation.memory_linear import read_linear
from tttabpfn.adaptation.memory_rows import KeyScale
from tttabpfn.adaptation.memory_swiglu import read_swiglu

PREFIX = "memory:"
_OUTPUT = {"linear": "w", "swiglu": "w1"}


def read_kind(kind: str, weights: Mapping[str, Tensor], keys: Tensor, *, backend: str = "auto") -> Tensor:
    """What memories of one kind read, of shape (S, M, Q, K), for keys of shape (M, Q, E)."""
    if kind == "linear":
        return read_linear(weights["w"], keys)
    return read_swiglu(dict(weights), keys, backend=backend)


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
        output = _OUTPUT[kind]
        return cls(kind, scale, {**weights, output: weights[output] * factor})

    def read(self, embeddings: Tensor, *, backend: str = "auto") -> Tensor:
        """What to add to raw logits.

        Parameters
        ----------
        embeddings : Tensor of shape (M, Q, E)
            Of the rows to predict, given the context.
        backend : {"auto", "torch", "triton"}, default="auto"

        Returns
        -------
        Tensor of shape (M, Q, K)
        """
        return read_kind(self.kind, self.weights, self.scale.keys(embeddings), backend=backend)[0]

    def to(self, device: torch.device) -> Memory:
        """The same memory on a device."""
        scale = KeyScale(self.scale.mean.to(device), self.scale.spread.to(device))
        return Memory(self.kind, scale, {name: value.to(device) for name, value in self.weights.items()})

    @property
    def nbytes(self) -> int:
        """Size in bytes; it depends on the model's width and the classes, not on the rows written."""
        return sum(value.numel() * value.element_size() for value in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Named tensors for the cache."""
        named = {"mean": self.scale.mean, "spread": self.scale.spread, **self.weights}
        return {PREFIX + name: value.detach().clone() for name, value in named.items()}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> Memory | None:
        """Rebuild the memory among an adaptation's tensors; None if there is none."""
        own = {name.removeprefix(PREFIX): value for name, value in tensors.items() if name.startswith(PREFIX)}
        if not own:
            return None
        scale = KeyScale(own.pop("mean"), own.pop("spread"))
        return cls("linear" if "w" in own else "swiglu", scale, own)


def any_memory(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a memory is among an adaptation's tensors."""
    return any(name.startswith(PREFIX) for name in tensors)
