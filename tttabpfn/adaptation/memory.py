"""The fast-weight memory: demonstrations embedded by forward passes and written into weights on the embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tttabpfn import tabpfn_adapter as adapter
from tttabpfn.adaptation.episodes import Rows as RowIndices
from tttabpfn.adaptation.episodes import Split, query_folds, seeded, stratified_parts
from tttabpfn.adaptation.guard import Verdict, judge, row_losses
from tttabpfn.adaptation.memory_choice import Choice, MemorySettings, choose, write
from tttabpfn.adaptation.memory_reader import Memory
from tttabpfn.adaptation.memory_rows import KeyScale, Rows
from tttabpfn.adaptation.settings import Settings
from tttabpfn.fast_weights.chunked import is_out_of_memory

if TYPE_CHECKING:
    from tttabpfn.adaptation.session import Session

FOLD_BRANCH, PART_BRANCH, START_BRANCH = 10, 11, 12
UNJUDGED_PENALTY = 0.1
"""Penalty of the linear memory where no rows are left to choose by."""


@dataclass(frozen=True)
class WrittenMemory:
    """What writing a memory led to.

    Parameters
    ----------
    memory : Memory or None
        None if it was refused.
    verdict : Verdict
        The guard's.
    choice : Choice
        What was chosen on held-back rows.
    loss_frozen : float
        Mean log loss of the held-back rows without the memory.
    n_held_back : int
        Rows that were held back, each from one writing.
    step_losses : tuple of float
        Loss over all rows before each update of the final writing.
    notes : tuple of str
    """

    memory: Memory | None
    verdict: Verdict
    choice: Choice
    loss_frozen: float
    n_held_back: int
    step_losses: tuple[float, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Embedded:
    """Rows, their embeddings (M, Q, E) and the model's scaled logits (M, Q, K), given a context without them."""

    rows: RowIndices
    embeddings: Tensor
    offsets: Tensor

    @staticmethod
    def joined(parts: Sequence[_Embedded]) -> _Embedded:
        return _Embedded(
            np.concatenate([part.rows for part in parts]),
            torch.cat([part.embeddings for part in parts], dim=1),
            torch.cat([part.offsets for part in parts], dim=1),
        )


class MemoryWriter:
    """Embeds, chooses, judges and writes; forward passes only.

    Parameters
    ----------
    session : Session
        Demonstrations and split.
    models : sequence of Module
        Networks that embed and that will predict: the base's, or adapted ones.
    settings : Settings
    refolded : bool
        Whether rows outside the context may each be held back once (the networks were not trained on any of them).
        False: only the session's held-back rows are.
    """

    def __init__(
        self, session: Session, models: Sequence[nn.Module], settings: Settings, *, refolded: bool = True
    ) -> None:
        self.session = session
        self.models = models
        self.known_rows = session.known_rows(models)
        self.recipe = settings.recipe.memory
        self.refolded = refolded
        self.guard = settings.guard
        self.evidence = self.recipe.evidence * settings.recipe.evidence_factor(session.split.crossed)
        self.seed = settings.seed
        self.settings = MemorySettings(
            n_steps=settings.n_steps,
            # With gradient steps before it, the given size is theirs.
            step_size=settings.step_size if settings.adaptation == "memory" else None,
            update_rule=settings.update_rule,
            backend=settings.backend,
            seed=int(seeded(settings.seed, START_BRANCH).integers(2**31)),
            recipe=self.recipe,
        )
        self.notes: list[str] = []

    def run(self) -> WrittenMemory:
        """Do it all."""
        with torch.no_grad():
            return self._judged() if len(self.session.split.held_back) else self._unjudged()

    def _judged(self) -> WrittenMemory:
        split = self.session.split
        if split.crossed and self._may_refold(len(self.session.labels)):
            everything, folds = self._embed_crossed(split.context, np.arange(len(self.session.labels)))
        elif split.crossed:
            held_back = self._embed(split.guard_context, split.held_back)
            known = self._embed_folds(split.guard_context, split.folds)
            everything = _Embedded.joined([known, held_back])
            folds = np.isin(everything.rows, known.rows)[None]
        else:
            everything = self._embed(split.context, np.setdiff1d(np.arange(len(self.session.labels)), split.context))
            folds = self._folds(everything.rows, split)
        scale = KeyScale.of(everything.embeddings)
        choice = choose(self._rows(everything, scale, folds), self.settings, self._row_losses(everything.rows))
        order = np.concatenate([np.flatnonzero(~fold) for fold in folds])
        frozen = self._row_losses(everything.rows)(everything.offsets[:, order], order)
        if self.refolded:  # refused, the frozen model would predict with all its members
            frozen = frozen - self.session.worth_of_other_members()
        verdict = judge(frozen, choice.losses, evidence=self.evidence)
        verdict = replace(verdict, reason=f"{choice.describe()}: {verdict.reason}")
        if not self.guard:
            verdict = replace(verdict, accepted=choice.kind != "none", reason=f"guard=False; {verdict.reason}")
        memory: Memory | None = None
        losses: tuple[float, ...] = ()
        if verdict.accepted:
            memory, losses = self._write(choice, everything)
        return WrittenMemory(memory, verdict, choice, float(frozen.mean()), len(frozen), losses, tuple(self.notes))

    def _unjudged(self) -> WrittenMemory:
        """Too few rows to compare anything: nothing is written, unless the guard is off."""
        why = "too few demonstrations to hold any back, so nothing could be compared"
        none = np.empty(0)
        if self.guard:
            refused = Verdict(False, why, 0.0, np.inf)
            return WrittenMemory(None, refused, Choice("none", 0.0, 0, 0.0, none), np.nan, 0, (), ())
        choice = Choice("linear", UNJUDGED_PENALTY, self.settings.n_steps, 1.0, none)
        everything = np.arange(len(self.session.labels))
        embedded, _ = self._embed_crossed(self.session.split.context, everything)
        memory, losses = self._write(choice, embedded)
        verdict = Verdict(True, f"guard=False; {choice.describe()}: {why}", 0.0, np.inf)
        return WrittenMemory(memory, verdict, choice, np.nan, 0, losses, tuple(self.notes))

    def _write(self, choice: Choice, embedded: _Embedded) -> tuple[Memory, tuple[float, ...]]:
        """Write the chosen memory with all rows."""
        scale = KeyScale.of(embedded.embeddings)
        rows = self._rows(embedded, scale, np.ones((1, len(embedded.rows)), dtype=bool))
        weights, losses = write(choice.kind, rows, (choice.value,), self.settings, until=choice.steps)
        factor = choice.gate * self.session.demonstrations.temperature
        return Memory.gated(choice.kind, scale, weights, factor), tuple(losses)

    def _rows(self, embedded: _Embedded, scale: KeyScale, written: NDArray[np.bool_]) -> Rows:
        labels = self.session.demonstrations.labels
        device = labels.device
        return Rows(
            keys=scale.keys(embedded.embeddings),
            offsets=embedded.offsets,
            labels=labels[torch.as_tensor(embedded.rows, device=device)],
            written=torch.as_tensor(written, dtype=torch.float32, device=device),
        )

    def _row_losses(self, rows: RowIndices) -> _RowLosses:
        return _RowLosses(self.session, rows)

    def _folds(self, rows: RowIndices, split: Split) -> NDArray[np.bool_]:
        """Which rows each fold writes."""
        if not self._may_refold(len(rows)):
            return ~np.isin(rows, split.held_back)[None]
        labels = self.session.labels[rows]
        parts = stratified_parts(labels, self.recipe.folds, seeded(self.seed, FOLD_BRANCH))
        return np.stack([parts != part for part in range(self.recipe.folds)])

    def _may_refold(self, n_rows: int) -> bool:
        return self.refolded and n_rows <= self.recipe.most_folded

    def _embed_crossed(self, context: RowIndices, rows: RowIndices) -> tuple[_Embedded, NDArray[np.bool_]]:
        """Embed rows in parts, each given the context's other rows, and tell which rows are not in each part.

        One row of every class only serves as context.
        """
        rng = seeded(self.seed, PART_BRANCH)
        folds = query_folds(self.session.labels, rows, self.recipe.parts, rng, spare=context)
        embedded = self._embed_folds(context, folds)
        return embedded, np.stack([~np.isin(embedded.rows, fold) for fold in folds])

    def _embed_folds(self, context: RowIndices, folds: Sequence[RowIndices]) -> _Embedded:
        """Embed each fold's rows given the context's others."""
        return _Embedded.joined([self._embed(np.setdiff1d(context, fold), fold) for fold in folds])

    def _embed(self, context: RowIndices, rows: RowIndices) -> _Embedded:
        """Embed rows given a context, in large chunks; out of memory halves them."""
        demonstrations = self.session.demonstrations
        device = demonstrations.labels.device
        given = torch.as_tensor(context, device=device)
        size, position, parts = self.recipe.rows_per_pass, 0, []
        while position < len(rows):
            chunk = rows[position : position + size]
            try:
                logits, embeddings = adapter.member_logits(
                    self.models,
                    demonstrations,
                    given,
                    torch.as_tensor(chunk, device=device),
                    embeddings=True,
                    known_rows=self.known_rows,
                )
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or len(chunk) == 1:
                    raise
                size = max(1, len(chunk) // 2)
                self.notes.append(f"out of memory with {len(chunk)} rows per forward pass; went on with {size}")
                continue
            parts.append(_Embedded(chunk, embeddings, logits / demonstrations.temperature))
            position += len(chunk)
        return _Embedded.joined(parts)


class _RowLosses:
    """Log loss of rows by position among the embedded ones, ensembled as the predicting configuration does."""

    def __init__(self, session: Session, rows: RowIndices) -> None:
        self.inner = session.inner
        self.temperature = session.demonstrations.temperature
        self.labels = session.labels[rows]

    def __call__(self, scaled: Tensor, positions: NDArray[np.int64]) -> NDArray[np.float64]:
        probabilities = adapter.probabilities(self.inner, scaled * self.temperature)
        return row_losses(probabilities, self.labels[positions])
