"""What a fitted TabPFN predicts: raw logits and embeddings by ensemble member, and probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tabpfn import TabPFNClassifier
from tabpfn.constants import PROBABILITY_EPSILON_ROUND_ZERO, SKLEARN_16_DECIMAL_PRECISION
from torch import Tensor

from tttabpfn.tabpfn_adapter.demonstrations import encode_rows


def predict_with_embeddings(inner: TabPFNClassifier, X: Any) -> tuple[Tensor, Tensor]:
    """Raw logits and embeddings of rows to predict, from a fitted TabPFN.

    Parameters
    ----------
    inner : TabPFNClassifier
        Fitted, in any fit mode that predicts plain rows.
    X : array-like of shape (Q, n_features)
        Rows as the user gave them.

    Returns
    -------
    logits : Tensor of shape (M, Q, K)
        Raw logits (before the softmax temperature), classes in the order of ``classes_``.
    embeddings : Tensor of shape (M, Q, E)
        The rows' embeddings given the context.
    """
    if inner.fit_mode == "fit_preprocessors":
        inner.executor_.use_torch_inference_mode(use_inference=True)
    outputs = inner.executor_.iter_outputs(
        encode_rows(inner, X), autocast=inner.use_autocast_, task_type="multiclass", only_return_standard_out=False
    )
    logits, embeddings = [], []
    for output, config in outputs:
        standard, embedded = (_without_batch(output[name]).float() for name in ("standard", "test_embeddings"))
        order = np.arange(inner.n_classes_) if config.class_permutation is None else config.class_permutation
        logits.append(standard[:, torch.as_tensor(np.asarray(order), device=standard.device)])
        embeddings.append(embedded)
    return torch.stack(logits), torch.stack(embeddings)


def _without_batch(output: Tensor) -> Tensor:
    return output.squeeze(1) if output.ndim == 3 else output


def probabilities(inner: TabPFNClassifier, logits: Tensor) -> np.ndarray:
    """Turn raw logits into class probabilities as a fitted TabPFN does.

    Parameters
    ----------
    inner : TabPFNClassifier
        Fitted; its temperature, averaging, balancing, tuned thresholds and rounding apply.
    logits : Tensor of shape (M, Q, K)
        Raw logits of all members, classes in the order of ``classes_``.

    Returns
    -------
    ndarray of shape (Q, K)
    """
    scores = inner._maybe_reweight_probas(inner.logits_to_probabilities(logits).float().cpu().numpy())
    if inner.inference_config_.USE_SKLEARN_16_DECIMAL_PRECISION:
        scores = np.around(scores, decimals=SKLEARN_16_DECIMAL_PRECISION)
        scores = np.where(scores < PROBABILITY_EPSILON_ROUND_ZERO, 0.0, scores)
    return scores / scores.sum(axis=1, keepdims=True)
