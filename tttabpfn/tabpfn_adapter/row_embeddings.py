"""Row embeddings, kept: the part of a network that in-context fast weights cannot change runs once per context."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tttabpfn.tabpfn_adapter.base import adaptable_names
from tttabpfn.tabpfn_adapter.selection import in_context_names

_STAGE = "_stages_0_to_2"
"""The method of v3 and v3.5 that turns cells into row embeddings."""
MAX_ROWS = 4096
"""Rows outside a context above which they are embedded when asked for, and not kept."""
MAX_BYTES = 256 * 1024**2


class _RowsAreKnown(Exception):
    """Ends a forward pass behind the row embeddings."""


@dataclass(frozen=True)
class _KeptRows:
    """One member's rows given one context: `rows[position[row]]` embeds demonstration `row`; position -1: not there."""

    rows: Tensor
    position: Tensor

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes + self.position.nbytes


class RowEmbeddings:
    """Embeddings of demonstrations by ensemble member and context, least recently used out first.

    Parameters
    ----------
    models : sequence of Module
        Private copies of a base's networks with the base's own weights; their forward passes are cut short here.
    n_rows : int
        Number of demonstrations.
    prepare : callable
        ``prepare(member, rows, n_context)`` returns a member's network inputs (R, 1, C) and labels (R,) for rows that
        begin with the context.
    max_bytes : int
        Size of all kept embeddings.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        n_rows: int,
        prepare: Callable[[int, Tensor, int], tuple[Tensor, Tensor, int]],
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._models = models
        self._n_rows = n_rows
        self._prepare = prepare
        self._max_bytes = max_bytes
        self._kept: OrderedDict[tuple[int, bytes], _KeptRows] = OrderedDict()
        self._expected: dict[bytes, Tensor] = {}

    def expect(self, context: Tensor, query: Tensor) -> None:
        """Say which rows will be asked for with a context, so that the others need not be embedded.

        Parameters
        ----------
        context, query : Tensor of shape (n,), (Q,), int64
            Demonstrations; if others are asked for all the same, all are embedded.
        """
        self._expected[_digest(context)] = query

    def fit_for(self, models: Iterable[nn.Module]) -> bool:
        """Whether these networks embed rows with the very tensors that made the kept embeddings."""
        return all(_row_stage(model) == _row_stage(own) for model, own in zip(models, self._models, strict=True))

    @property
    def nbytes(self) -> int:
        """Size of what is kept, in bytes."""
        return sum(embedded.nbytes for embedded in self._kept.values())

    def get(self, member: int, context: Tensor, query: Tensor) -> Tensor:
        """Embeddings of context and query rows, given the context.

        Parameters
        ----------
        member : int
            Ensemble member.
        context, query : Tensor of shape (n,), (Q,), int64
            Demonstrations.

        Returns
        -------
        Tensor of shape (1, n + Q, C, E)
            A fresh tensor, which the network may write to.
        """
        if self._n_rows - len(context) > MAX_ROWS:
            return self._embed(member, torch.cat([context, query]), len(context))
        digest = _digest(context)
        rows = torch.cat([context, query])
        kept = self._kept.get((member, digest))
        if kept is None:
            kept = self._embed_with(member, context, self._expected.get(digest))
        if (kept.position[rows] < 0).any():
            kept = self._embed_with(member, context, None)
        self._kept[member, digest] = kept
        self._kept.move_to_end((member, digest))
        while len(self._kept) > 1 and self.nbytes > self._max_bytes:
            self._kept.popitem(last=False)
        return kept.rows[:, kept.position[rows]]

    def _embed_with(self, member: int, context: Tensor, query: Tensor | None) -> _KeptRows:
        """All expected rows (None: all there are) at once: a row's bits do not depend on which are asked for first."""
        outside = torch.full((self._n_rows,), query is None, device=context.device)
        if query is not None:
            outside[query] = True
        outside[context] = False
        rows = torch.cat([context, torch.nonzero(outside).flatten()])
        position = torch.full((self._n_rows,), -1, device=rows.device)
        position[rows] = torch.arange(len(rows), device=rows.device)
        return _KeptRows(self._embed(member, rows, len(context)), position)

    @torch.no_grad()
    def _embed(self, member: int, rows: Tensor, n_context: int) -> Tensor:
        x, labels, model_index = self._prepare(member, rows, n_context)
        model: Any = self._models[model_index]
        found: list[Tensor] = []
        original = getattr(model, _STAGE)

        def record(*args: Any, **kwargs: Any) -> None:
            found.append(original(*args, **kwargs)[0])
            raise _RowsAreKnown

        with _replaced(model, record), suppress(_RowsAreKnown):
            model(x, labels[:n_context], only_return_standard_out=True, **multiclass(model))
        return found[0]


def matching_row_embeddings(kept: RowEmbeddings | None, models: Sequence[nn.Module]) -> RowEmbeddings | None:
    """Kept row embeddings if they are what these networks, private copies, would embed; else None."""
    return kept if kept is not None and kept.fit_for(models) else None


def _digest(rows: Tensor) -> bytes:
    return hashlib.blake2b(rows.cpu().numpy().tobytes(), digest_size=16).digest()


def has_row_stage(model: nn.Module) -> bool:
    """Whether a network embeds each row before it compares rows, in a way known here."""
    return hasattr(model, _STAGE) and bool(in_context_names(adaptable_names(model)))


def _row_stage(model: nn.Module) -> list[tuple[str, int]]:
    """Names and addresses of the parameters that rows are embedded with."""
    own = dict(model.named_parameters())
    behind = set(in_context_names(own))
    return [(name, parameter.data_ptr()) for name, parameter in own.items() if name not in behind]


@contextmanager
def given_rows(model: nn.Module, embeddings: Tensor) -> Iterator[None]:
    """Let a private network start from row embeddings (B, R, C, E), which it writes to, in place of its row stage."""
    with _replaced(model, lambda *args, **kwargs: (embeddings, None, {})):
        yield


def multiclass(model: Any) -> dict[str, str]:
    """The argument by which a network that also does regression is told to classify."""
    return {"task_type": "multiclass"} if "task_type" in model.forward.__code__.co_varnames else {}


@contextmanager
def _replaced(model: nn.Module, stage: Callable[..., Any]) -> Iterator[None]:
    setattr(model, _STAGE, stage)
    try:
        yield
    finally:
        delattr(model, _STAGE)
