"""What a memory is written with: keys, frozen logits and labels, and their cross-entropy.

Letters: M ensemble members, N rows, E width of the keys, K classes, C candidates, F folds, B = C * F * M stacked
memories, in this order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tttabpfn.fast_weights.chunked import Chunk, accumulate, run_chunks
from tttabpfn.fast_weights.update_rules import State

STACK_BYTES = 64 * 1024**2
"""Bytes of what a stack of memories reads from one slice of rows."""
_MIN_SPREAD = 1e-6


Observer = Callable[[int, dict[str, Tensor]], None]
"""Called with the number of updates done and the weights."""


@dataclass(frozen=True)
class KeyScale:
    """Turns a member's row embeddings into keys: centred, scaled to unit variance, with a constant 1 appended.

    Parameters
    ----------
    mean, spread : Tensor of shape (M, E)
        Statistics of the rows written.
    """

    mean: Tensor
    spread: Tensor

    @classmethod
    def of(cls, embeddings: Tensor) -> KeyScale:
        """Take the statistics of embeddings of shape (M, N, E).

        Examples
        --------
        >>> import torch
        >>> scale = KeyScale.of(torch.tensor([[[0.0, 5.0], [2.0, 5.0]]]))
        >>> scale.keys(torch.tensor([[[3.0, 5.0]]])).tolist()
        [[[2.0, 0.0, 1.0]]]
        """
        mean = embeddings.mean(dim=1, dtype=torch.float64)
        # Member by member: centred copies of all of them at once would double the peak of memory.
        spread = torch.stack(
            [
                (member - centre).square().mean(dim=0, dtype=torch.float64).sqrt()
                for member, centre in zip(embeddings, mean.to(embeddings.dtype), strict=True)
            ]
        )
        # A coordinate that hardly moves carries rounding errors, not news: it must not be blown up.
        floor = _MIN_SPREAD * (mean.abs() + spread.mean(dim=1, keepdim=True)) + torch.finfo(torch.float32).tiny
        spread = torch.where(spread > floor, spread, torch.inf)
        return cls(mean.float(), spread.float())

    def keys(self, embeddings: Tensor) -> Tensor:
        """Keys of shape (M, Q, E + 1)."""
        scaled = (embeddings.float() - self.mean[:, None]) / self.spread[:, None]
        return torch.cat([scaled, torch.ones_like(scaled[..., :1])], dim=-1)


@dataclass(frozen=True)
class MemoryRows:
    """Rows to write, and which of them each fold holds back.

    Parameters
    ----------
    keys : Tensor of shape (M, N, E)
    offsets : Tensor of shape (M, N, K)
        The model's own logits, divided by its softmax temperature.
    labels : Tensor of shape (N,), int64
    written : Tensor of shape (F, N)
        1 (or the row's weight) where a fold writes a row, 0 where it holds it back.
    """

    keys: Tensor
    offsets: Tensor
    labels: Tensor
    written: Tensor

    @property
    def n_members(self) -> int:
        """Number of ensemble members, M."""
        return self.keys.shape[0]

    @property
    def n_rows(self) -> int:
        """Number of rows, N."""
        return self.keys.shape[1]

    @property
    def n_folds(self) -> int:
        """Number of folds, F."""
        return self.written.shape[0]

    @property
    def n_classes(self) -> int:
        """Number of classes, K."""
        return self.offsets.shape[2]

    def micro_batch(self, stack: int, width: int) -> int:
        """Rows per slice, so that `stack` memories with `width` numbers a row stay within `STACK_BYTES`."""
        return max(1, STACK_BYTES // (4 * max(1, stack * width)))


def residuals(logits: Tensor, rows: MemoryRows, start: int, end: int) -> tuple[Tensor, Tensor]:
    r"""Cross-entropy of a slice of rows and its derivative by the logits, for every stacked memory.

    A fold's loss is the mean over the rows it writes, so slices add up.

    Parameters
    ----------
    logits : Tensor of shape (C, F, M, end - start, K)
        Frozen logits plus what the memories read.
    rows : MemoryRows
        All rows.
    start, end : int
        The slice.

    Returns
    -------
    loss : Tensor of shape (C, F, M)
        The slice's share of the loss.
    derivative : Tensor of shape (C, F, M, end - start, K)
        :math:`w_n (p_n - e_{y_n}) / \sum w`.
    """
    share = rows.written / rows.written.sum(dim=1, keepdim=True)
    share = share[None, :, None, start:end, None]
    log_p = logits.log_softmax(dim=-1)
    target = rows.labels[start:end].reshape(1, 1, 1, -1, 1).expand(*logits.shape[:-1], 1)
    chosen = log_p.gather(-1, target)
    derivative = log_p.exp()
    derivative.scatter_add_(-1, target, torch.full_like(chosen, -1.0))
    return -(chosen * share).sum(dim=(-1, -2)), derivative * share


def write_in_full_chunks(
    rows: MemoryRows,
    weights: dict[str, Tensor],
    state: State,
    n_steps: int,
    micro_batch: int,
    loss_gradients: Callable[[dict[str, Tensor], int, int], tuple[Tensor, dict[str, Tensor]]],
    update: Callable[[dict[str, Tensor], dict[str, Tensor], State], tuple[dict[str, Tensor], State]],
    observer: Observer | None = None,
) -> tuple[dict[str, Tensor], list[float]]:
    """Write a stack of memories: every update sees all rows, as one large chunk.

    Parameters
    ----------
    rows : MemoryRows
    weights : dict of Tensor
        Starting weights.
    state : State
        The update rule's.
    n_steps : int
        Updates.
    micro_batch : int
        Rows per slice; it changes the peak of memory alone.
    loss_gradients : callable
        ``loss_gradients(weights, start, end)`` returns a slice's share of the loss (C, F, M) and of its gradients.
    update : callable
        ``update(weights, gradients, state)`` returns new weights and state.
    observer : callable, optional

    Returns
    -------
    weights : dict of Tensor
    losses : list of float
        Mean loss over the stack before each update.
    """
    losses: list[float] = []

    def gradient(chunk: Chunk, now: dict[str, Tensor]) -> dict[str, Tensor]:
        def of_slice(start: int, end: int) -> dict[str, Tensor]:
            loss, parts = loss_gradients(now, start, end)
            return {**parts, "loss": loss.mean()}

        total = dict(accumulate(of_slice, chunk.start, chunk.end, micro_batch).total)
        losses.append(float(total.pop("loss")))
        return total

    def observe(chunk: Chunk, now: dict[str, Tensor], state: State) -> None:
        if observer is not None:
            observer(int(state.step), now)

    run = run_chunks(
        [Chunk(0, rows.n_rows, apply=False)] * n_steps,
        weights,
        state,
        gradient=gradient,
        update=lambda chunk, now, gradients, state: update(now, gradients, state),
        observer=observe,
    )
    return run.weights, losses
