"""What predicts: TabPFN on its context, frozen or adapted, with what a memory reads added if there is one."""

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
from tttabpfn.adaptation.outcome import memory_of
from tttabpfn.adaptation.settings import Settings
from tttabpfn.inputs.data import distinct_rows, take_rows
from tttabpfn.memory.memory import Memory


@dataclass(frozen=True)
class Predictor:
    """A fitted TabPFN and, if there is one, a memory on its row embeddings; knows nothing of training.

    Parameters
    ----------
    inner : TabPFNClassifier
        Fitted on the context rows, with the networks that predict.
    memory : Memory or None
        One memory per ensemble member, written on these networks' embeddings.
    settings : Settings
        What the adaptation was asked to do.
    """

    inner: TabPFNClassifier
    memory: Memory | None
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
            return self.inner.predict_proba(X)
        positions, inverse = distinct_rows(X)
        return self._predict(take_rows(X, positions))[inverse]

    def _predict(self, X: Any) -> NDArray[np.floating[Any]]:
        if self.memory is None:
            return self.inner.predict_proba(X)
        logits, embeddings = adapter.predict_with_embeddings(self.inner, X)
        with torch.no_grad():
            added = self.memory.to(logits.device).read(embeddings, backend=self.settings.backend)
        return adapter.probabilities(self.inner, logits + added)


def build_predictor(
    estimator: TabPFNClassifier,
    settings: Settings,
    tensors: Mapping[str, Tensor],
    X: Any,
    y: Any,
    all_members: TabPFNClassifier | None = None,
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
    X, y : array-like of shape (n, n_features), (n,)
        Context rows and labels, as the user gave them.
    all_members : TabPFNClassifier, optional
        Fitted on them with ``fit_mode="fit_preprocessors"``, if it is at hand: its preprocessing is taken over.

    Returns
    -------
    Predictor
        If the adaptation was not to change anything, with what the estimator's own `fit` leaves.
    """
    base = adapter.load_base(estimator)
    if settings.is_frozen:
        return Predictor(adapter.fit_tabpfn(estimator, base, X, y), None, settings)
    models = predicting_models(base, tensors)
    if all_members is None:
        all_members = adapter.fit_tabpfn(estimator, base, X, y, fit_mode="fit_preprocessors")
    if adapter.can_be_refitted(all_members):
        fitted = all_members
        if tensors:
            members = adapter.members_to_adapt(all_members, settings.recipe.max_members)
            fitted = adapter.with_members(all_members, members)
        inner = adapter.refit_with_cache(fitted, base, models)
    else:
        inner = adapter.fit_tabpfn(estimator, base, X, y, models=models, fit_mode="fit_with_cache")
    return Predictor(inner, memory_of(tensors), settings)
