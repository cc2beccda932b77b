"""One cached set of fast weights: named tensors and a JSON-ready header."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch

DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)
"""What an entry may hold: dtypes that a safetensors file gives back bit for bit."""


@dataclass(frozen=True, eq=False)
class CacheEntry:
    """Named tensors with a header that says what they are.

    The tensors of an entry that came from a cache are shared by everyone who asks for it: read them, do not write to
    them.

    Parameters
    ----------
    tensors : dict of str to Tensor
        Dense tensors of any shape.
    header : dict of str to object
        Anything that JSON can hold.

    Examples
    --------
    >>> entry = CacheEntry({"weight": torch.zeros(2, 3)}, {"n_steps": 4})
    >>> entry.nbytes
    24
    """

    tensors: dict[str, torch.Tensor]
    header: dict[str, Any]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def detached(self) -> CacheEntry:
        """Return a copy that shares nothing with this entry: contiguous CPU tensors without gradient.

        The header goes through JSON, so that an entry from memory and one from a file are the same.

        Returns
        -------
        CacheEntry
            The copy; it holds `nbytes` bytes, whatever storages the tensors were views of.

        Raises
        ------
        TypeError
            If a tensor is sparse, quantized or of a dtype that a file cannot hold, or the header is not JSON-ready.

        Examples
        --------
        >>> weight = torch.zeros(2)
        >>> copy = CacheEntry({"weight": weight}, {"shape": (2,)}).detached()
        >>> _ = weight.add_(1)
        >>> copy.tensors["weight"].tolist(), copy.header
        ([0.0, 0.0], {'shape': [2]})
        """
        try:
            header = json.loads(json.dumps(self.header))
        except (TypeError, ValueError) as error:
            raise TypeError(f"header must hold JSON-ready values only: {error}") from error
        if not isinstance(header, dict):
            raise TypeError(f"header must be a dict, got {type(self.header).__name__}")
        return CacheEntry({name: _copied(name, tensor) for name, tensor in self.tensors.items()}, header)


def _copied(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if not isinstance(name, str) or name == "__metadata__":
        raise TypeError(f"tensors must have strings other than '__metadata__' as names, got {name!r}")
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.dtype not in DTYPES:
        kind = f"{tensor.layout} {tensor.dtype}" if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise TypeError(f"tensors[{name!r}] must be a dense tensor of a real dtype, got {kind}")
    copy = torch.empty(tensor.shape, dtype=tensor.dtype)
    return copy.copy_(tensor.detach())
