"""What predicts once an adaptation has a memory: TabPFN on its context, with what the memory reads added."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tabpfn import TabPFNClassifier

from tttabpfn import tabpfn_adapter as adapter
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
