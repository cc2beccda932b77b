"""From a stream to what predicts: the ground it stands on, and the memory read off its sums."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tttabpfn.adaptation.deadline import Deadline
from tttabpfn.adaptation.guard import mean_loss
from tttabpfn.adaptation.memory import MemoryWriter
from tttabpfn.cache.cache import FastWeightCache
from tttabpfn.cache.fingerprint import fingerprint
from tttabpfn.inputs.data import take_rows
from tttabpfn.memory.rows import KeyScale
from tttabpfn.prediction.embeddings import Embeddings, embed
from tttabpfn.prediction.lookup import Fitted, Lookup
from tttabpfn.prediction.predictor import MemoryReader, Predictor, tabpfn_on_context
from tttabpfn.prediction.streaming.reservoir import Reservoir, row_hashes
from tttabpfn.prediction.streaming.stream import Ground, Stream, WrittenSums
from tttabpfn.report import AdaptationReport


class StreamLookup(Lookup):
    """One call's way down where rows keep coming; built like `Lookup`, on the context rows alone.

    Parameters
    ----------
    fitted : Fitted
        The context rows, all of them context.
    cache : FastWeightCache
        Keeps ground and predictor at hand.
    stream : Stream or None
        Rows so far; None: none.
    """

    def __init__(self, fitted: Fitted, cache: FastWeightCache, stream: Stream | None = None) -> None:
        super().__init__(fitted, cache)
        self._stream = stream

    @property
    def stream(self) -> Stream:
        """Rows so far."""
        return Stream.empty(self.ground()) if self._stream is None else self._stream

    def ground(self) -> Ground:
        """Return what stands still, made once for all that share context, wrapped estimator, base and settings."""
        return self.cache.attachments.get_or_build(self.keys.adaptation, "ground", self._build_ground)

    def _build_ground(self) -> Ground:
        fitted, settings = self.fitted, self.fitted.settings
        session = self._build_session()
        with torch.no_grad():
            embedded = MemoryWriter(session, settings, Deadline(None)).embedded()
        if embedded is None:
            raise ValueError(
                "the first rows are too few: partial_fit needs a context of at least 8 rows beside one a class."
            )
        n_members = settings.recipe.members(len(fitted.codes), len(fitted.context))
        inner = tabpfn_on_context(
            fitted.estimator, self.base, fitted.rows, fitted.labels, {}, session.all_members, n_members
        )
        shares = np.bincount(session.labels, session.weights, minlength=embedded.logits.shape[2]) + 0.5
        labels, table = session.labels[embedded.rows], np.asarray(session.table[embedded.rows], dtype=np.float64)
        weights = np.ones(len(labels)) if session.weights is None else session.weights[embedded.rows]
        return Ground(
            inner=inner,
            columns=session.columns,
            scale=KeyScale.of(embedded.embeddings),
            log_shares=embedded.logits.new_tensor(np.log(shares / shares.sum())),
            averages_logits=self.base.averages_logits,
            known=Reservoir(
                row_hashes(table, labels),
                labels,
                weights,
                embedded.embeddings.cpu().numpy(),
                embedded.logits.cpu().numpy(),
                table,
            ),
        )

    def _written(self) -> WrittenSums:
        key = fingerprint(self.keys.adaptation, self.stream.token)
        return self.cache.attachments.get_or_build(key, "written", lambda: self.stream.written(self.ground()))

    def predictor(self) -> Predictor:
        """Return what predicts: the memory that the sums give, or TabPFN on its context."""
        ground, memory = self.ground(), self._written().memory
        if memory is None:
            return Predictor(ground.inner, None, 1.0, self.fitted.settings)
        reader = MemoryReader(
            ground.inner, memory, ground.columns, self.fitted.settings.backend, ground.averages_logits
        )
        return Predictor(None, reader, 1.0, self.fitted.settings)

    def predict_proba(self, rows: Any) -> NDArray[np.floating[Any]]:
        """Predict checked rows."""
        return self.predictor().predict_proba(rows)

    def embed(self, rows: Any) -> Embeddings:
        """Embed checked rows."""
        return embed(self.predictor(), rows)

    def embed_demonstrations(self) -> Embeddings:
        """Raise: rows that came in batches are not kept."""
        raise ValueError("rows given to partial_fit are not kept, so that they cannot be embedded; use transform.")

    def report(self) -> AdaptationReport:
        """Return what the rows so far have led to."""
        written, settings, n_context = self._written(), self.fitted.settings, len(self.fitted.codes)
        memory = written.memory
        losses = [mean_loss(one, None) if len(one) else None for one in (written.before, written.after)]
        return AdaptationReport(
            adaptation="memory",
            accepted=memory is not None,
            reason=written.verdict.reason,
            update_rule=settings.update_rule,
            context_size=n_context,
            n_demonstrations=n_context + self.stream.n_rows,
            n_members=self.ground().known.logits.shape[0],
            n_held_back=written.n_rows,
            loss_frozen=losses[0],
            loss_adapted=losses[1],
            gain_standard_error=written.verdict.standard_error if len(written.before) else None,
            shares={} if memory is None else memory.describe(),
            fast_weight_bytes=sum(one.nbytes for one in self.stream.sums),
            notes=("rows given to partial_fit are kept as sums; shares are found on a sample of them",),
        )


def context_alone(fitted: Fitted) -> tuple[Fitted, NDArray[np.int64]]:
    """A fit reduced to its context rows, and the positions of the others."""
    context = fitted.context
    rows = take_rows(fitted.rows, context)
    labels, codes = fitted.labels[context], fitted.codes[context]
    weights = None if fitted.weights is None else fitted.weights[context]
    everything = np.arange(len(context))
    reduced = replace(
        fitted,
        rows=rows,
        labels=labels,
        codes=codes,
        weights=weights,
        context=everything,
        data_print=fingerprint(rows, labels, everything, *([] if weights is None else [weights])),
        note="",
    )
    return reduced, np.setdiff1d(np.arange(len(fitted.codes)), context)
