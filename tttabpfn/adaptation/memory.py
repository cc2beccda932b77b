"""Demonstrations into a memory: embedded by forward passes, written in parts, mixed and judged on held-back rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tttabpfn import tabpfn_adapter as adapter
from tttabpfn.adaptation.deadline import Deadline
from tttabpfn.adaptation.episodes import RowIndices, query_folds, seeded, stratified_parts, stratified_rows
from tttabpfn.adaptation.guard import Verdict, judge, row_losses, weigh
from tttabpfn.adaptation.outcome import Progress, WrittenMemory
from tttabpfn.adaptation.session import Session
from tttabpfn.adaptation.settings import Settings
from tttabpfn.fast_weights.chunked import in_slices
from tttabpfn.memory.inputs import MemoryInputs
from tttabpfn.memory.memory import Memory
from tttabpfn.memory.mixture import cross_fitted_mixture, mixture_shares, prior_shares
from tttabpfn.memory.parts import Written, write_family
from tttabpfn.memory.rows import KeyScale
from tttabpfn.memory.settings import MemorySettings

FOLD_BRANCH, PART_BRANCH, START_BRANCH, SCORED_BRANCH, MORE_BRANCH = 10, 11, 12, 14, 15
_CHEAP_CONTEXT = 1000
_CLEAR = 0.01
"""Nats per row."""
_EMBEDDING = 0.5
"""Share of the work that embedding is, about."""
MIN_ROWS = 8
"""Fewer rows than these cannot tell a better mixture from a worse one."""


@dataclass(frozen=True)
class Embedded:
    """Rows, their embeddings (M, Q, E) and scaled logits (M, Q, K) given a context without them, and their folds."""

    rows: RowIndices
    embeddings: Tensor
    logits: Tensor
    folds: NDArray[np.int64]

    @staticmethod
    def joined(parts: Sequence[Embedded]) -> Embedded:
        """One after the other."""
        return Embedded(
            np.concatenate([part.rows for part in parts]),
            torch.cat([part.embeddings for part in parts], dim=1),
            torch.cat([part.logits for part in parts], dim=1),
            np.concatenate([part.folds for part in parts]),
        )


class MemoryWriter:
    """Embeds, writes, mixes and judges; forward passes only.

    Parameters
    ----------
    session : Session
        Demonstrations, split and the frozen model.
    settings : Settings
    deadline : Deadline
        Once it has passed, no further family of parts is written.
    progress : callable, optional
        Called as ``progress("memory", done, total)``.
    """

    def __init__(
        self, session: Session, settings: Settings, deadline: Deadline, progress: Progress | None = None
    ) -> None:
        self.progress = progress
        self.session = session
        self.recipe = settings.recipe.memory.for_rows(session.n_demonstrations)
        self.guard = settings.guard
        self.seed = settings.seed
        self.deadline = deadline
        self.known_rows = adapter.matching_row_embeddings(session.row_embeddings, session.frozen)
        self.settings = MemorySettings(
            n_steps=settings.n_steps,
            # With gradient steps beside it, the given size is theirs.
            step_size=settings.step_size if settings.adaptation == "memory" else None,
            update_rule=settings.update_rule,
            backend=settings.backend,
            seed=int(seeded(settings.seed, START_BRANCH).integers(2**31)),
            recipe=self.recipe,
        )
        self.notes: list[str] = []
        self.n_embedded = 0

    def run(self) -> WrittenMemory:
        """Write every part, each row held back from one writing; mix them; judge the mixture.

        Returns
        -------
        WrittenMemory
            Without a memory if it was refused.
        """
        with torch.no_grad():
            embedded = self.embedded()
            if embedded is None:
                why = "too few demonstrations to hold any back, so nothing could be compared"
                return WrittenMemory(
                    None, Verdict(False, why, 0.0, np.inf), np.empty(0, dtype=np.int64), np.empty((0, 0))
                )
            return self._mixed(embedded)

    def _mixed(self, embedded: Embedded) -> WrittenMemory:
        session, recipe = self.session, self.recipe
        labels = session.labels[embedded.rows]
        weights = None if session.weights is None else session.weights[embedded.rows]
        shares = np.bincount(session.labels, session.weights, minlength=embedded.logits.shape[2]) + 0.5
        log_shares = torch.as_tensor(np.log(shares / shares.sum()), dtype=torch.float32, device=embedded.logits.device)
        keys, cells = session.columns.transform_known(session.table[embedded.rows], labels, embedded.folds, weights)
        columns = torch.as_tensor(keys, device=embedded.logits.device)
        averages = session.base.averages_logits
        held_back = self._held_back(embedded)
        by_fold = self._cells_by_fold(embedded, labels, held_back, weights)
        inputs = MemoryInputs(embedded.embeddings, embedded.logits, columns, cells, averages, by_fold)
        scale = KeyScale.of(embedded.embeddings)
        written = self._written(inputs, scale, labels, held_back, log_shares, weights)
        scored = np.flatnonzero(held_back >= 0)
        rows, labels = embedded.rows[scored], labels[scored]
        weights = None if weights is None else weights[scored]
        frozen = self._averaged(embedded.logits[:, scored])
        if not written:
            verdict = Verdict(False, "the time limit left no time to write any part", 0.0, np.inf)
            return WrittenMemory(None, verdict, rows, frozen, tuple(self.notes))
        parts = np.stack([frozen, *(self._averaged(one.logits[:, scored]) for one in written)]).astype(np.float64)
        prior = prior_shares(len(written), recipe.model_share)
        # No row has a say in its own mixture, whether or not all of them were held back by one and the same fold.
        crossed = cross_fitted_mixture(parts, labels, embedded.folds[scored], prior, recipe.prior_rows, weights)
        before = row_losses(session.scores.finished(frozen), labels)
        after = row_losses(session.scores.finished(crossed), labels)
        verdict, share = weigh(before, after, min_trust=recipe.min_trust, weights=weights)
        if verdict.gain < 3 * verdict.standard_error:
            # It is a close call: refused, the frozen model would predict with all its members.
            before = before - session.scores.worth_of_other_members()
            verdict, share = weigh(before, after, min_trust=recipe.min_trust, weights=weights)
        if not self.guard:
            verdict, share = replace(verdict, accepted=True, reason=f"guard=False; {verdict.reason}"), 1.0
        if not verdict.accepted:
            self._compare_with_more_context(rows, before)
            return WrittenMemory(None, verdict, rows, frozen, tuple(self.notes), before, after, weights)

        chosen = parts[:, np.arange(len(labels)), labels]
        kept = share * mixture_shares(chosen, prior, recipe.prior_rows, weights)
        kept[0] += 1.0 - share
        memory = Memory.of_shares(scale, log_shares, [one.part for one in written], kept, recipe.min_share)
        mixed = share * crossed + (1.0 - share) * frozen
        losses = row_losses(session.scores.finished(mixed), labels)
        self._compare_with_more_context(rows, losses)
        return WrittenMemory(memory, verdict, rows, mixed, tuple(self.notes), before, losses, weights)

    def _cells_by_fold(
        self,
        embedded: Embedded,
        labels: NDArray[np.int64],
        held_back: NDArray[np.int64],
        weights: NDArray[np.float64] | None,
    ) -> tuple[NDArray[np.float32], ...]:
        """Cells for the writing without each fold, where labels go into cells."""
        columns, table = self.session.columns, self.session.table[embedded.rows]
        if not columns.reads_labels:
            return ()
        return tuple(
            columns.cells_without(table, labels, embedded.folds, held_back == fold, weights)
            for fold in range(int(held_back.max()) + 1)
        )

    def _compare_with_more_context(self, rows: RowIndices, losses: NDArray[np.float64]) -> None:
        """Note it if TabPFN with all rows as context clearly does better than what predicts; two members say so."""
        session = self.session
        labels, context = session.labels, session.split.context
        outside = np.flatnonzero(~np.isin(rows, context))
        # Beyond what is cheap nobody would want them all; below, the context is most of them already.
        if session.n_demonstrations > _CHEAP_CONTEXT or len(context) > 0.75 * len(labels) or len(outside) < MIN_ROWS:
            return
        asked = stratified_rows(
            labels[rows], outside, min(len(outside), len(labels) // 4), seeded(self.seed, MORE_BRANCH)
        )
        demonstrations, members = session.demonstrations, list(range(min(2, session.demonstrations.n_members)))
        device = demonstrations.labels.device
        given = torch.as_tensor(np.setdiff1d(np.arange(len(labels)), rows[asked]), device=device)
        query = torch.as_tensor(rows[asked], device=device)
        output = adapter.member_logits(session.frozen, demonstrations, given, query, members)
        found = judge(losses[asked], session.scores.of_rows(output.logits, rows[asked]), evidence=2.0)
        if found.accepted and found.gain > _CLEAR:
            self.notes.append(
                f"TabPFN with all {len(labels)} rows as context does better by {found.gain:.3f} +- "
                f"{found.standard_error:.3f} in log loss on {len(asked)} rows: try context_size=None"
            )

    def _held_back(self, embedded: Embedded) -> NDArray[np.int64]:
        """The fold whose writing does without each row: its own; of many rows, one fold for some, -1 for the others."""
        rows, recipe = embedded.rows, self.recipe
        if len(rows) <= recipe.crossed_rows:
            return embedded.folds
        # Gradient steps beside the memory are judged on the session's held-back rows: the memory must not know them.
        known = np.flatnonzero(np.isin(rows, self.session.split.held_back))
        size = min(recipe.max_scored_rows, len(rows) // recipe.folds) - len(known)
        others = np.setdiff1d(np.arange(len(rows)), known)
        labels, rng = self.session.labels[rows], seeded(self.seed, SCORED_BRANCH)
        drawn = stratified_rows(labels, others, max(0, size), rng, every_class=False)
        folds = np.full(len(rows), -1, dtype=np.int64)
        folds[known] = folds[drawn] = 0
        return folds

    def _written(
        self,
        inputs: MemoryInputs,
        scale: KeyScale,
        labels: NDArray[np.int64],
        folds: NDArray[np.int64],
        log_shares: Tensor,
        weights: NDArray[np.float64] | None,
    ) -> list[Written]:
        """Every family's parts, as many of them as the time limit leaves."""
        codes = torch.as_tensor(labels, device=log_shares.device)
        reads_all = any(family.kind == "boosted" for family in self.recipe.families)
        others = self.session.unread_rows() if reads_all else None
        written: list[Written] = []
        for number, family in enumerate(self.recipe.families):
            self._tell(_EMBEDDING + number / len(self.recipe.families) * (1.0 - _EMBEDDING))
            if self.deadline.has_passed():
                left = len(self.recipe.families) - number
                self.notes.append(f"time limit reached: {left} of {len(self.recipe.families)} families not written")
                break
            written += write_family(family, inputs, scale, codes, folds, log_shares, self.settings, weights, others)
        return written

    def _tell(self, share: float) -> None:
        if self.progress is not None:
            self.progress("memory", round(100 * share), 100)

    def _averaged(self, scaled: Tensor) -> NDArray[np.float32]:
        """Probabilities from logits divided by the temperature, ensembled as at predict."""
        return self.session.scores.averaged(scaled * self.session.demonstrations.temperature)

    def embedded(self) -> Embedded | None:
        """All rows but one of each class, embedded without themselves in the context; None if they are too few."""
        session, recipe = self.session, self.recipe
        context, labels = session.split.context, session.labels
        outside = np.setdiff1d(np.arange(len(labels)), context)
        if session.n_unread:
            n_outside = len(outside) + session.n_unread
            self.notes.append(f"TabPFN reads {len(outside)} of {n_outside} rows outside the context, boosted trees all")
        # Rows of the context are embedded part by part, given the others; one row of every class stays in all of them.
        parts = query_folds(labels, context, recipe.folds, seeded(self.seed, PART_BRANCH), keep_out=context)
        if len(outside) + sum(map(len, parts)) < MIN_ROWS:
            return None
        embedded = [
            self._embed(np.setdiff1d(context, part), part, np.full(len(part), number))
            for number, part in enumerate(parts)
        ]
        if len(outside):
            dealt = stratified_parts(labels[outside], recipe.folds, seeded(self.seed, FOLD_BRANCH))
            embedded.append(self._embed(context, outside, dealt))
        joined = Embedded.joined(embedded)
        # Folds that nothing fell into would leave gaps in their numbers.
        return replace(joined, folds=np.unique(joined.folds, return_inverse=True)[1])

    def _embed(self, context: RowIndices, rows: RowIndices, folds: NDArray[np.int64]) -> Embedded:
        """Embed rows given a context, in large chunks; out of memory halves them."""
        demonstrations = self.session.demonstrations
        device = demonstrations.labels.device
        given = torch.as_tensor(context, device=device)
        if self.known_rows is not None:
            # Else all rows there are would be embedded with every part of the context.
            self.known_rows.expect(given, torch.as_tensor(rows, device=device))

        def embed(start: int, end: int) -> Embedded:
            chunk = rows[start:end]
            output = adapter.member_logits(
                self.session.frozen,
                demonstrations,
                given,
                torch.as_tensor(chunk, device=device),
                embeddings=True,
                known_rows=self.known_rows,
            )
            return Embedded(chunk, output.embeddings, output.logits / demonstrations.temperature, folds[start:end])

        parts: list[Embedded] = []

        def keep(part: Embedded) -> None:
            parts.append(part)
            self.n_embedded += len(part.rows)
            self._tell(_EMBEDDING * min(1.0, self.n_embedded / len(self.session.labels)))

        self.notes.extend(in_slices(embed, 0, len(rows), self.recipe.rows_per_pass, keep).notes)
        return Embedded.joined(parts)
