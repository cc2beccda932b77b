"""A written memory: a mixture of the model's own prediction and what its parts predict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tttabpfn.memory.inputs import MemoryInputs
from tttabpfn.memory.parts import Part, of_names
from tttabpfn.memory.rows import KeyScale

ToProbabilities = Callable[[Tensor], NDArray[np.float64]]
"""From logits (M, Q, K), divided by the softmax temperature, to probabilities (Q, K), ensembled as at predict."""


@dataclass(frozen=True)
class Memory:
    """Parts and their shares, ready to be read.

    Parameters
    ----------
    scale : KeyScale
        Of the embeddings.
    log_shares : Tensor of shape (K,)
        Logarithms of the demonstrations' class shares.
    parts : tuple of Part
        In the order of their names.
    shares : Tensor of shape (1 + P,), float64
        Share of the model's own probabilities in the mixture, then of each part's; they sum to 1.
    """

    scale: KeyScale
    log_shares: Tensor
    parts: tuple[Part, ...]
    shares: Tensor

    @classmethod
    def of_shares(
        cls, scale: KeyScale, log_shares: Tensor, parts: Sequence[Part], shares: NDArray[np.float64], min_share: float
    ) -> Memory:
        """Keep the parts whose share is large enough, in the order of their names.

        Parameters
        ----------
        scale, log_shares
            As the memory takes them.
        parts : sequence of Part
        shares : ndarray of shape (1 + P,)
            The model's share, then each part's.
        min_share : float
            Parts with a smaller one are left out; what is left is scaled to a sum of 1.

        Returns
        -------
        Memory
        """
        large = np.flatnonzero(shares[1:] >= min_share)
        ordered = sorted((parts[position].name, position) for position in large.tolist())
        kept = np.array([shares[0], *(shares[1 + position] for _, position in ordered)])
        chosen = tuple(parts[int(position)] for _, position in ordered)
        return cls(scale, log_shares, chosen, torch.as_tensor(kept / kept.sum()))

    def probabilities(
        self, inputs: MemoryInputs, to_probabilities: ToProbabilities, *, backend: str = "auto"
    ) -> NDArray[np.float64]:
        """Mix the model's probabilities with those of the parts.

        Parameters
        ----------
        inputs : MemoryInputs
            Rows to predict.
        to_probabilities : callable
        backend : {"auto", "torch", "triton"}, default="auto"

        Returns
        -------
        ndarray of shape (Q, K)
        """
        mixed = float(self.shares[0]) * np.asarray(to_probabilities(inputs.logits), dtype=np.float64)
        for part, share in zip(self.parts, self.shares[1:].tolist(), strict=True):
            logits = part.logits(inputs, self.scale, self.log_shares, backend)
            mixed += share * np.asarray(to_probabilities(logits), dtype=np.float64)
        return mixed

    def to(self, device: torch.device) -> Memory:
        """The same memory with its embeddings' scale on a device; parts follow the rows they read."""
        scale = KeyScale(self.scale.mean.to(device), self.scale.spread.to(device))
        return Memory(scale, self.log_shares.to(device), self.parts, self.shares)

    def describe(self) -> dict[str, float]:
        """Shares in words, the largest first."""
        names = ["TabPFN, frozen", *(part.describe() for part in self.parts)]
        shares = dict(zip(names, self.shares.tolist(), strict=True))
        return dict(sorted(shares.items(), key=lambda item: -item[1]))

    @property
    def nbytes(self) -> int:
        """Size in bytes; it depends on the widths of embedding and columns and on the classes, not on the rows."""
        return sum(value.nbytes for value in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name, which `of_tensors` takes."""
        named = {"mean": self.scale.mean, "spread": self.scale.spread, "log_shares": self.log_shares}
        named["shares"] = self.shares
        for part in self.parts:
            named |= {f"{part.name}/{name}": value for name, value in part.weights.items()}
        return {name: value.detach().contiguous() for name, value in named.items()}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> Memory:
        """Rebuild a memory from what `tensors` returned."""
        own = dict(tensors)
        scale = KeyScale(own.pop("mean"), own.pop("spread"))
        log_shares, shares = own.pop("log_shares"), own.pop("shares")
        return cls(scale, log_shares, tuple(of_names(own)), shares)
