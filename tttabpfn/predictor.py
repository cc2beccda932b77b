"""What predicts: TabPFN on its context, frozen or adapted, with what a memory reads added if there is one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tabpfn import TabPFNClassifier
from torch import Tensor

from tttabpfn import tabpfn_adapter as adapter
from tttabpfn.adaptation import Session, Settings, predicting_models
from tttabpfn.adaptation.memory_reader import Memory


class MemoryPredictor:
    """Predicts with a fitted TabPFN and a memory on its row embeddings.

    Parameters
    ----------
    inner : TabPFNClassifier
        Fitted on the context rows, with the networks that the memory was written on.
    memory : Memory
        One memory per ensemble member.
    backend : {"auto", "torch", "triton"}
        Who runs the memory's leaf operations.
    """

    def __init__(self, inner: TabPFNClassifier, memory: Memory, backend: str) -> None:
        self.inner = inner
        self.memory = memory
        self.backend = backend

    def predict_proba(self, X: Any) -> NDArray[np.floating[Any]]:
        """Predict class probabilities.

        Parameters
        ----------
        X : array-like of shape (n_rows, n_features)
            Rows as the user gave them.

        Returns
        -------
        ndarray of shape (n_rows, n_classes)
        """
        logits, embeddings = adapter.predict_with_embeddings(self.inner, X)
        with torch.no_grad():
            added = self.memory.to(logits.device).read(embeddings, backend=self.backend)
        return adapter.probabilities(self.inner, logits + added)


def build_predictor(
    estimator: TabPFNClassifier,
    settings: Settings,
    tensors: Mapping[str, Tensor],
    X: Any,
    y: Any,
    session: Session | None = None,
) -> TabPFNClassifier | MemoryPredictor:
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
    session : Session, optional
        The adaptation's, if it is at hand: its fitted preprocessing is taken over.

    Returns
    -------
    TabPFNClassifier or MemoryPredictor
        Fitted; if the adaptation was not to change anything, as the estimator's own `fit` leaves it.
    """
    base = adapter.load_base(estimator)
    if settings.is_frozen:
        return adapter.fit_tabpfn(estimator, base, X, y)
    models = predicting_models(base, tensors)
    if session is None:
        whole = adapter.fit_tabpfn(estimator, base, X, y, fit_mode="fit_preprocessors")
    else:
        whole = session.whole
    if adapter.can_be_refitted(whole):
        most = settings.recipe.most_members
        fitted = adapter.with_members(whole, adapter.members_to_adapt(whole, most)) if tensors else whole
        inner = adapter.refit_with_cache(fitted, base, models)
    else:
        inner = adapter.fit_tabpfn(estimator, base, X, y, models=models, fit_mode="fit_with_cache")
    memory = Memory.of_tensors(tensors)
    return inner if memory is None else MemoryPredictor(inner, memory, settings.backend)
