"""What a causal LaCT run hands on from one call to the next: a small value that can be saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["LaCTState"]

FORMAT = "tttabpfn.lact.state/1"


@dataclass(frozen=True)
class LaCTState:
    """State after some tokens of a causal sequence, see `lact_swiglu_resume`; its size does not grow with them.

    A chunk that is not full yet is here as the sum of its gradients, not as its tokens. Values are never written in
    place, so an older state stays good: a prefix can be continued in several ways.

    Letters: b batch (heads included), w window size.

    Attributes
    ----------
    seen : int
        Tokens of the present chunk so far.
    weights : dict of Tensor
        The fast weights that are updated, as updates add up in them (un-normalised for "causal-prenorm").
    used : dict of Tensor
        The normalised copies for "causal-prenorm"; empty otherwise.
    running : dict of Tensor
        Running gradients; empty without momentum.
    gradient : dict of Tensor
        Gradients summed over the present chunk.
    momentum : dict of Tensor of shape [b]
        Momentum factors summed over the present chunk, under the name "sum"; empty without momentum.
    still, chunk_still : dict of Tensor of shape [b], bool
        Whether all rates have been zero so far, and in the present chunk, per weight.
    window : dict of Tensor of shape [b, up to w - 1, width]
        The layer's last keys and values, "k" and "v", for sliding-window attention; empty without a window.

    Examples
    --------
    >>> import tempfile, torch
    >>> from pathlib import Path
    >>> from tttabpfn.lact import LaCTSwiGLU
    >>> layer = LaCTSwiGLU(8, mode="causal", chunk_size=4)
    >>> with torch.no_grad():
    ...     _, state = layer.prefill(torch.zeros(1, 6, 8))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     state.save(Path(folder) / "state.safetensors")
    ...     same = LaCTState.load(Path(folder) / "state.safetensors")
    >>> same.seen, torch.equal(same.weights["w1"], state.weights["w1"])
    (2, True)
    """

    seen: int
    weights: dict[str, Tensor]
    used: dict[str, Tensor]
    running: dict[str, Tensor]
    gradient: dict[str, Tensor]
    momentum: dict[str, Tensor]
    still: dict[str, Tensor]
    chunk_still: dict[str, Tensor]
    window: dict[str, Tensor]

    def tensors(self) -> dict[str, Tensor]:
        """All tensors under flat names such as "weights.w1"."""
        return {f"{part}.{name}": tensor for part in _parts() for name, tensor in getattr(self, part).items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors().values())

    def map(self, change: Callable[[Tensor], Tensor]) -> LaCTState:
        """Return a state with `change` done to every tensor, e.g. ``state.map(lambda t: t.to("cuda"))``."""
        changed = {part: {name: change(one) for name, one in getattr(self, part).items()} for part in _parts()}
        return LaCTState(self.seen, **changed)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file; tensors are detached and brought to the CPU."""
        kept = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in self.tensors().items()}
        save_file(kept, str(path), metadata={"format": FORMAT, "seen": str(self.seen)})

    @classmethod
    def load(cls, path: str | Path) -> LaCTState:
        """Read what `save` wrote.

        Raises
        ------
        ValueError
            If the file holds something else.
        """
        with safe_open(str(path), framework="pt") as file:
            meta = file.metadata() or {}
            if meta.get("format") != FORMAT or not meta.get("seen", "").isdecimal():
                raise ValueError(f"path must be a file of LaCTState.save with format {FORMAT!r}, got metadata {meta}")
            found: dict[str, Any] = {part: {} for part in _parts()}
            for name in file.keys():  # noqa: SIM118 - not a mapping
                part, _, key = name.partition(".")
                if part not in found:
                    raise ValueError(f"path must hold parts {_parts()} alone, got a tensor {name!r}")
                found[part][key] = file.get_tensor(name)
        return cls(int(meta["seen"]), **found)


def _parts() -> list[str]:
    return [field.name for field in fields(LaCTState) if field.name != "seen"]


def zeros(weights: dict[str, Tensor], momentum: bool) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Gradient, momentum sum and flags of a chunk without tokens."""
    gradient = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    one = next(iter(weights.values()))
    total = {"sum": one.new_zeros(one.shape[0])} if momentum else {}
    still = {name: torch.ones(one.shape[0], dtype=torch.bool, device=one.device) for name in weights}
    return gradient, total, still
