"""Demonstrations into a memory: embedded by forward passes, chosen and judged on held-back rows, then written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tttabpfn import tabpfn_adapter as adapter
from tttabpfn.adaptation.episodes import RowIndices, query_folds, seeded, stratified_parts
from tttabpfn.adaptation.guard import Verdict, judge
from tttabpfn.adaptation.outcome import WrittenMemory
from tttabpfn.adaptation.session import Session
from tttabpfn.adaptation.settings import Settings
from tttabpfn.fast_weights.chunked import in_slices
from tttabpfn.memory.choice import Choice, choose
from tttabpfn.memory.kinds import KINDS
from tttabpfn.memory.memory import Memory
from tttabpfn.memory.rows import KeyScale, MemoryRows
from tttabpfn.memory.settings import MemorySettings

FOLD_BRANCH, PART_BRANCH, START_BRANCH = 10, 11, 12
UNJUDGED_PENALTY = 0.1
"""Penalty of the linear memory where no rows are left to choose by."""


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
    cross_validated : bool
        Whether rows outside the context may each be held back once (the networks were not trained on any of them).
        False: only the session's held-back rows are.
    """

    def __init__(
        self, session: Session, models: Sequence[nn.Module], settings: Settings, *, cross_validated: bool = True
    ) -> None:
        self.session = session
        self.models = models
        self.known_rows = adapter.matching_row_embeddings(session.row_embeddings, models)
        self.recipe = settings.recipe.memory
        self.cross_validated = cross_validated
        self.guard = settings.guard
        self.evidence = self.recipe.evidence * settings.recipe.evidence_factor(session.split.held_back_in_context)
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
        """Choose on held-back rows, judge, write with all rows."""
        with torch.no_grad():
            return self._judged() if len(self.session.split.held_back) else self._unjudged()

    def _judged(self) -> WrittenMemory:
        embedded, folds = self._embedded_with_folds()
        rows = self._rows(embedded, KeyScale.of(embedded.embeddings), folds)

        def row_losses(scaled: Tensor, positions: NDArray[np.int64]) -> NDArray[np.float64]:
            logits = scaled * self.session.demonstrations.temperature
            return self.session.scores.of_rows(logits, embedded.rows[positions])

        choice = choose(rows, self.settings, row_losses)
        # Each row once, in the order in which `choose` scores them: fold by fold of those that hold rows back.
        order = np.concatenate([np.flatnonzero(~fold) for fold in folds])
        frozen = row_losses(embedded.offsets[:, order], order)
        if self.cross_validated:  # refused, the frozen model would predict with all its members
            frozen = frozen - self.session.scores.worth_of_other_members()
        verdict = judge(frozen, choice.losses, evidence=self.evidence)
        verdict = replace(verdict, reason=f"{choice.describe()}: {verdict.reason}")
        if not self.guard:
            verdict = replace(verdict, accepted=choice.kind != "none", reason=f"guard=False; {verdict.reason}")
        memory: Memory | None = None
        losses: tuple[float, ...] = ()
        if verdict.accepted:
            memory, losses = self._write(choice, embedded)
        return WrittenMemory(memory, verdict, choice, float(frozen.mean()), len(frozen), losses, tuple(self.notes))

    def _embedded_with_folds(self) -> tuple[_Embedded, NDArray[np.bool_]]:
        """The rows that a memory is written with, embedded, and for each fold which of them it writes."""
        split, n_rows = self.session.split, len(self.session.labels)
        if not split.held_back_in_context:
            # Rows outside the predicting context, embedded as new rows will be; folds hold each of them back once.
            embedded = self._embed(split.context, np.setdiff1d(np.arange(n_rows), split.context))
            return embedded, self._folds(embedded.rows)
        if self._may_fold(n_rows):
            # All rows are context: each part is embedded given the others, and one fold holds it back.
            return self._embed_by_parts(split.context, np.arange(n_rows))
        # All rows are context, but the networks were trained on some of them (or there are too many rows to embed four
        # times): only the session's held-back rows can be scored; the others are written, each fold given the others.
        held_back = self._embed(split.guard_context, split.held_back)
        known = self._embed_folds(split.guard_context, split.folds)
        embedded = _Embedded.joined([known, held_back])
        return embedded, np.isin(embedded.rows, known.rows)[None]

    def _unjudged(self) -> WrittenMemory:
        """Too few rows to compare anything: nothing is written, unless the guard is off."""
        why = "too few demonstrations to hold any back, so nothing could be compared"
        none = np.empty(0)
        if self.guard:
            refused = Verdict(False, why, 0.0, np.inf)
            return WrittenMemory(None, refused, Choice("none", 0.0, 0, 0.0, none), np.nan, 0, (), ())
        choice = Choice("linear", UNJUDGED_PENALTY, self.settings.n_steps, 1.0, none)
        everything = np.arange(len(self.session.labels))
        embedded, _ = self._embed_by_parts(self.session.split.context, everything)
        memory, losses = self._write(choice, embedded)
        verdict = Verdict(True, f"guard=False; {choice.describe()}: {why}", 0.0, np.inf)
        return WrittenMemory(memory, verdict, choice, np.nan, 0, losses, tuple(self.notes))

    def _write(self, choice: Choice, embedded: _Embedded) -> tuple[Memory, tuple[float, ...]]:
        """Write the chosen memory with all rows."""
        scale = KeyScale.of(embedded.embeddings)
        rows = self._rows(embedded, scale, np.ones((1, len(embedded.rows)), dtype=bool))
        weights, losses = KINDS[choice.kind].write(rows, (choice.value,), self.settings, choice.steps, None)
        factor = choice.gate * self.session.demonstrations.temperature
        return Memory.gated(choice.kind, scale, weights, factor), tuple(losses)

    def _rows(self, embedded: _Embedded, scale: KeyScale, written: NDArray[np.bool_]) -> MemoryRows:
        labels = self.session.demonstrations.labels
        device = labels.device
        return MemoryRows(
            keys=scale.keys(embedded.embeddings),
            offsets=embedded.offsets,
            labels=labels[torch.as_tensor(embedded.rows, device=device)],
            written=torch.as_tensor(written, dtype=torch.float32, device=device),
        )

    def _folds(self, rows: RowIndices) -> NDArray[np.bool_]:
        """Which rows each fold writes."""
        if not self._may_fold(len(rows)):
            return ~np.isin(rows, self.session.split.held_back)[None]
        labels = self.session.labels[rows]
        parts = stratified_parts(labels, self.recipe.folds, seeded(self.seed, FOLD_BRANCH))
        return np.stack([parts != part for part in range(self.recipe.folds)])

    def _may_fold(self, n_rows: int) -> bool:
        return self.cross_validated and n_rows <= self.recipe.max_folded

    def _embed_by_parts(self, context: RowIndices, rows: RowIndices) -> tuple[_Embedded, NDArray[np.bool_]]:
        """Embed rows in parts, each given the context's other rows, and tell which rows are not in each part.

        One row of every class only serves as context.
        """
        rng = seeded(self.seed, PART_BRANCH)
        folds = query_folds(self.session.labels, rows, self.recipe.parts, rng, keep_out=context)
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

        def embed(start: int, end: int) -> _Embedded:
            chunk = rows[start:end]
            output = adapter.member_logits(
                self.models,
                demonstrations,
                given,
                torch.as_tensor(chunk, device=device),
                embeddings=True,
                known_rows=self.known_rows,
            )
            return _Embedded(chunk, output.embeddings, output.logits / demonstrations.temperature)

        parts: list[_Embedded] = []
        self.notes.extend(in_slices(embed, 0, len(rows), self.recipe.rows_per_pass, parts.append).notes)
        return _Embedded.joined(parts)
