"""What memories read of a row: TabPFN's embedding and logits, and the table's own columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tttabpfn.memory.rows import KeyScale


@dataclass(frozen=True)
class ColumnRows:
    """Labelled rows as trees see them.

    Parameters
    ----------
    cells : ndarray of shape (N, B), float32
    labels : ndarray of shape (N,), int
        Class codes.
    weights : ndarray of shape (N,) or None
    """

    cells: NDArray[np.float32]
    labels: NDArray[np.int64]
    weights: NDArray[np.float64] | None = None

    def of(self, kept: NDArray[np.bool_]) -> ColumnRows:
        """Some of the rows."""
        return ColumnRows(self.cells[kept], self.labels[kept], None if self.weights is None else self.weights[kept])

    def joined(self, others: ColumnRows) -> ColumnRows:
        """These rows and others, all or none of which have weights."""
        weights = None
        if self.weights is not None and others.weights is not None:
            weights = np.concatenate([self.weights, others.weights])
        cells, labels = np.concatenate([self.cells, others.cells]), np.concatenate([self.labels, others.labels])
        return ColumnRows(cells, labels, weights)


@dataclass(frozen=True)
class MemoryInputs:
    """Rows as memories see them.

    Parameters
    ----------
    embeddings : Tensor of shape (M, Q, E)
        Of each ensemble member, given the context.
    logits : Tensor of shape (M, Q, K)
        The model's own, divided by its softmax temperature.
    columns : Tensor of shape (Q, D)
        Encoded columns, scaled.
    cells : ndarray of shape (Q, B), float32
        What trees split.
    averages_logits : bool, default=False
        Whether the members' logits are averaged where the model predicts, not their probabilities.
    cells_by_fold : tuple of ndarray of shape (Q, B)
        The cells for the writing without each fold; empty if they are the same for all.
    """

    embeddings: Tensor
    logits: Tensor
    columns: Tensor
    cells: NDArray[np.float32]
    averages_logits: bool = False
    cells_by_fold: tuple[NDArray[np.float32], ...] = ()

    def cells_without(self, fold: int) -> NDArray[np.float32]:
        """Cells for the writing without a fold."""
        return self.cells_by_fold[fold] if self.cells_by_fold else self.cells

    def keys(self, block: str, scale: KeyScale) -> Tensor:
        """Keys of a block, of shape (M, Q, width); with M = 1 where they are the same for every member.

        Parameters
        ----------
        block : {"embedding", "columns", "both"}
        scale : KeyScale
            Of the embeddings.

        Returns
        -------
        Tensor
            The last key is 1.
        """
        if block == "columns":
            return torch.cat([self.columns, torch.ones_like(self.columns[:, :1])], dim=1)[None]
        keys = scale.keys(self.embeddings)
        if block == "embedding":
            return keys
        columns = self.columns[None].expand(len(keys), -1, -1)
        return torch.cat([columns, keys], dim=2)

    def start(self, start: str, log_shares: Tensor) -> Tensor:
        """Logits that a memory adds to, of shape (M, Q, K); with M = 1 for class shares.

        Parameters
        ----------
        start : {"model", "shares"}
        log_shares : Tensor of shape (K,)
            Logarithms of the class shares.

        Returns
        -------
        Tensor
        """
        if start == "model":
            return self.logits
        return log_shares.to(self.logits).expand(1, self.logits.shape[1], -1)

    def mean_start(self, start: str, log_shares: Tensor) -> NDArray[np.float64]:
        """The same as one row of logits for all members, of shape (Q, K): the logarithm of their prediction."""
        logits = self.start(start, log_shares)
        shares = logits.mean(dim=0).softmax(dim=-1) if self.averages_logits else logits.softmax(dim=-1).mean(dim=0)
        return shares.double().clamp_min(1e-6).log().cpu().numpy()
