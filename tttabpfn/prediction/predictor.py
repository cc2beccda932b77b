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
from tttabpfn.adaptation.fast_model import predicting_models
from tttabpfn.adaptation.outcome import adapted_by_gradient, gradient_share, memory_of
from tttabpfn.adaptation.settings import Settings
from tttabpfn.inputs.data import take_rows
from tttabpfn.inputs.distinct import distinct_rows
from tttabpfn.memory.columns import ColumnEncoder
from tttabpfn.memory.inputs import MemoryInputs
from tttabpfn.memory.memory import Memory


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
        Fitted on all demonstrations.
    backend : {"auto", "torch", "triton"}
        Who runs the memory's leaf operations.
    """

    inner: TabPFNClassifier
    memory: Memory
    columns: ColumnEncoder
    backend: str

    def averaged(self, X: Any) -> NDArray[np.floating[Any]]:
        """Mixed probabilities of rows, before thresholds and rounding."""
        rows = adapter.predict_with_embeddings(self.inner, X)
        temperature = float(self.inner.softmax_temperature_)
        keys, cells = self.columns.transform(rows.table)
        columns = torch.as_tensor(keys, device=rows.logits.device)
        inputs = MemoryInputs(rows.embeddings, rows.logits / temperature, columns, cells)
        with torch.no_grad():
            return self.memory.to(rows.logits.device).probabilities(
                inputs, lambda scaled: adapter.averaged(self.inner, scaled * temperature), backend=self.backend
            )


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
        return self._predict(take_rows(X, positions))[inverse]

    def _predict(self, X: Any) -> NDArray[np.floating[Any]]:
        if self.memory is None:
            assert self.inner is not None
            return self.inner.predict_proba(X)
        mixed = self.memory.averaged(X)
        if self.inner is not None:
            logits = adapter.predict_with_embeddings(self.inner, X).logits
            mixed = (1.0 - self.share) * mixed + self.share * adapter.averaged(self.inner, logits)
        return adapter.finished(self.memory.inner, mixed)


def build_predictor(
    estimator: TabPFNClassifier,
    settings: Settings,
    tensors: Mapping[str, Tensor],
    rows: Any,
    labels: NDArray[Any],
    codes: NDArray[np.int64],
    context: NDArray[np.int64],
    all_members: TabPFNClassifier | None = None,
    columns: ColumnEncoder | None = None,
) -> Predictor:
    """What predicts after an adaptation: its members with the adapted networks, or all members with the frozen ones.

    Parameters
    ----------
    estimator : TabPFNClassifier
        Settings of the wrapped classifier; not changed.
    settings : Settings
        What the adaptation was asked to do.
    tensors : mapping of str to Tensor
        What it left behind; empty if the frozen model predicts.
    rows : frame or ndarray of shape (N, n_features)
        All demonstrations as the user gave them; a memory's columns are scaled by them.
    labels, codes : ndarray of shape (N,)
        Their labels, and class codes.
    context : ndarray of shape (n,), int
        Rows kept as context.
    all_members : TabPFNClassifier, optional
        Fitted on them with ``fit_mode="fit_preprocessors"``, if it is at hand: its preprocessing is taken over.
    columns : ColumnEncoder, optional
        Fitted on all demonstrations as `all_members` encodes them, if it is at hand.

    Returns
    -------
    Predictor
        If the adaptation was not to change anything, with what the estimator's own `fit` leaves.
    """
    base = adapter.load_base(estimator)
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
            members = adapter.members_to_adapt(all_members, settings.recipe.max_members)
            fitted = adapter.with_members(all_members, members)
        return adapter.refit_with_cache(fitted, base, models)

    memory = memory_of(tensors)
    if memory is None:
        return Predictor(fitted_with(tensors), None, 1.0, settings)
    if columns is None:
        table = adapter.encode_rows(all_members, rows)
        columns = ColumnEncoder(adapter.category_positions(all_members), seed=0).fit(table, codes)
    reader = MemoryReader(fitted_with({}), memory, columns, settings.backend)
    inner = fitted_with(tensors) if adapted_by_gradient(tensors) else None
    return Predictor(inner, reader, gradient_share(tensors), settings)
