"""What predicts: TabPFN on its context, frozen or adapted, mixed with a memory if there is one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tabpfn import TabPFNClassifier
from torch import Tensor

from tttabpfn import tabpfn_adapter as adapter
from tttabpfn.adaptation.episodes import rows_to_read
from tttabpfn.adaptation.fast_model import predicting_models
from tttabpfn.adaptation.outcome import adapted_by_gradient, gradient_share, memory_of, memory_tensors_of
from tttabpfn.adaptation.settings import Settings
from tttabpfn.inputs.data import take_rows
from tttabpfn.inputs.distinct import distinct_rows
from tttabpfn.memory.columns import ColumnEncoder
from tttabpfn.memory.inputs import MemoryInputs
from tttabpfn.memory.memory import Memory
from tttabpfn.memory.soundness import shape_of

ROWS_PER_PASS = 16_384
"""Rows predicted at a time: it bounds the peak of memory."""


@dataclass(frozen=True)
class MemoryReader:
    """A memory and what it reads rows with.

    Parameters
    ----------
    inner : TabPFNClassifier
        Fitted on the context rows, with the frozen networks.
    memory : Memory
        Written on their embeddings and the table's columns.
    columns : ColumnEncoder
        Fitted on the demonstrations that the network reads.
    backend : {"auto", "torch", "triton"}
        Who runs the memory's leaf operations.
    averages_logits : bool, default=False
        Whether the base's members are ensembled by the mean of their logits whatever `inner` was told.
    """

    inner: TabPFNClassifier
    memory: Memory
    columns: ColumnEncoder
    backend: str
    averages_logits: bool = False

    def averaged(self, X: Any) -> NDArray[np.floating[Any]]:
        """Mixed probabilities of rows, before thresholds and rounding."""
        inputs, temperature = self.inputs(X), float(self.inner.softmax_temperature_)
        with torch.no_grad():
            return self.memory.to(inputs.logits.device).probabilities(
                inputs, lambda scaled: adapter.averaged(self.inner, scaled * temperature), backend=self.backend
            )

    def inputs(self, X: Any) -> MemoryInputs:
        """What the memory reads of rows."""
        rows = adapter.predict_with_embeddings(self.inner, X)
        keys, cells = self.columns.transform(rows.table)
        columns = torch.as_tensor(keys, device=rows.logits.device)
        scaled = rows.logits / float(self.inner.softmax_temperature_)
        return MemoryInputs(rows.embeddings, scaled, columns, cells, self.averages_logits)


@dataclass(frozen=True)
class Predictor:
    """A fitted TabPFN, a memory beside it, or both mixed; knows nothing of training.

    Parameters
    ----------
    inner : TabPFNClassifier or None
        Fitted on the context rows, with the networks that predict; None if the memory predicts alone.
    memory : MemoryReader or None
        None if there is none.
    share : float
        Of what `inner` predicts, beside the memory.
    settings : Settings
        What the adaptation was asked to do.
    """

    inner: TabPFNClassifier | None
    memory: MemoryReader | None
    share: float
    settings: Settings

    def predict_proba(self, X: Any) -> NDArray[np.floating[Any]]:
        """Predict class probabilities.

        Parameters
        ----------
        X : frame or ndarray of shape (n_rows, n_features)
            Rows as the user gave them.

        Returns
        -------
        ndarray of shape (n_rows, n_classes)
            Neither order nor repetition of rows changes a bit, unless nothing was to be adapted: then the bits are
            those of the wrapped classifier.
        """
        if self.settings.is_frozen:
            assert self.inner is not None
            return self.inner.predict_proba(X)
        positions, inverse = distinct_rows(X)
        parts = [
            self._predict(take_rows(X, positions[start : start + ROWS_PER_PASS]))
            for start in range(0, len(positions), ROWS_PER_PASS)
        ]
        return np.concatenate(parts)[inverse]

    def _predict(self, X: Any) -> NDArray[np.floating[Any]]:
        if self.memory is None:
            assert self.inner is not None
            return self.inner.predict_proba(X)
        mixed = self.memory.averaged(X)
        if self.inner is not None:
            logits = adapter.predict_with_embeddings(self.inner, X).logits
            mixed = (1.0 - self.share) * mixed + self.share * adapter.averaged(self.inner, logits)
        return adapter.finished(self.memory.inner, mixed)


class ForeignMemoryError(Exception):
    """A memory, sound in itself, is not one of these demonstrations."""


def build_predictor(
    estimator: TabPFNClassifier,
    base: adapter.Base,
    settings: Settings,
    tensors: Mapping[str, Tensor],
    rows: Any,
    labels: NDArray[Any],
    codes: NDArray[np.int64],
    context: NDArray[np.int64],
    all_members: TabPFNClassifier | None = None,
    columns: ColumnEncoder | None = None,
    weights: NDArray[np.float64] | None = None,
) -> Predictor:
    """What predicts after an adaptation: its members with the adapted networks, or all members with the frozen ones.

    Parameters
    ----------
    estimator : TabPFNClassifier
        Settings of the wrapped classifier; not changed.
    base : Base
        Its base, the one that was adapted.
    settings : Settings
        What the adaptation was asked to do.
    tensors : mapping of str to Tensor
        What it left behind; empty if the frozen model predicts.
    rows : frame or ndarray of shape (N, n_features)
        All demonstrations as the user gave them; a memory's columns are scaled by those that the network reads.
    labels, codes : ndarray of shape (N,)
        Their labels, and class codes.
    context : ndarray of shape (n,), int
        Rows kept as context.
    all_members : TabPFNClassifier, optional
        Fitted on them with ``fit_mode="fit_preprocessors"``, if it is at hand: its preprocessing is taken over.
    columns : ColumnEncoder, optional
        Fitted on the demonstrations that the network reads as `all_members` encodes them, if it is at hand.
    weights : ndarray of shape (N,), optional
        Of the demonstrations.

    Returns
    -------
    Predictor
        If the adaptation was not to change anything, with what the estimator's own `fit` leaves.

    Raises
    ------
    ForeignMemoryError
        If a memory reads other sizes than the demonstrations have.
    """
    X, y = take_rows(rows, context), labels[context]
    if settings.is_frozen:
        return Predictor(adapter.fit_tabpfn(estimator, base, X, y), None, 1.0, settings)
    if all_members is None:
        all_members = adapter.fit_tabpfn(estimator, base, X, y, fit_mode="fit_preprocessors")

    def fitted_with(weights: Mapping[str, Tensor]) -> TabPFNClassifier:
        models = predicting_models(base, weights)
        if not adapter.can_be_refitted(all_members):
            return adapter.fit_tabpfn(estimator, base, X, y, models=models, fit_mode="fit_with_cache")
        fitted = all_members
        if tensors:
            members = adapter.members_to_adapt(all_members, settings.recipe.members(len(codes), len(context)))
            fitted = adapter.with_members(all_members, members)
        return adapter.refit_with_cache(fitted, base, models)

    memory = memory_of(tensors)
    if memory is None:
        return Predictor(fitted_with(tensors), None, 1.0, settings)
    if columns is None:
        read = rows_to_read(codes, context, settings.recipe.memory.max_rows, settings.seed)
        table = adapter.encode_rows(all_members, take_rows(rows, read))
        encoder = ColumnEncoder(adapter.category_positions(all_members), seed=0)
        columns = encoder.fit(table, codes[read], None if weights is None else weights[read])
    reader = MemoryReader(fitted_with({}), memory, columns, settings.backend, base.averages_logits)
    own = memory_tensors_of(tensors)
    if not shape_of(own, len(memory.log_shares)).fits(reader.inputs(take_rows(rows, context[:1]))):
        raise ForeignMemoryError
    inner = fitted_with(tensors) if adapted_by_gradient(tensors) else None
    return Predictor(inner, reader, gradient_share(tensors), settings)
