"""What a fitted TabPFN predicts: raw logits and embeddings by ensemble member, and probabilities."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from tabpfn import TabPFNClassifier
from tabpfn.constants import PROBABILITY_EPSILON_ROUND_ZERO, SKLEARN_16_DECIMAL_PRECISION
from tabpfn.preprocessing.datamodel import FeatureModality
from torch import Tensor

from tttabpfn.tabpfn_adapter.demonstrations import encode_rows


class RowOutput(NamedTuple):
    """What a fitted TabPFN makes of Q rows."""

    logits: Tensor
    """(M, Q, K), raw: before the softmax temperature; classes in the order of ``classes_``."""
    embeddings: Tensor
    """(M, Q, E), given the context."""
    table: np.ndarray
    """(Q, C), the rows as numbers and codes of categories, as its preprocessing has made them."""


def predict_with_embeddings(inner: TabPFNClassifier, X: Any) -> RowOutput:
    """Run rows to predict through a fitted TabPFN.

    Parameters
    ----------
    inner : TabPFNClassifier
        Fitted, in any fit mode that predicts plain rows.
    X : array-like of shape (Q, n_features)
        Rows as the user gave them.

    Returns
    -------
    RowOutput
    """
    if inner.fit_mode == "fit_preprocessors":
        inner.executor_.use_torch_inference_mode(use_inference=True)
    table = encode_rows(inner, X)
    outputs = inner.executor_.iter_outputs(
        table, autocast=inner.use_autocast_, task_type="multiclass", only_return_standard_out=False
    )
    logits, embeddings = [], []
    for output, config in outputs:
        standard, embedded = (_without_batch(output[name]).float() for name in ("standard", "test_embeddings"))
        order = np.arange(inner.n_classes_) if config.class_permutation is None else config.class_permutation
        logits.append(standard[:, torch.as_tensor(np.asarray(order), device=standard.device)])
        embeddings.append(embedded)
    return RowOutput(torch.stack(logits), torch.stack(embeddings), table)


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
    return finished(inner, averaged(inner, logits))


def averaged(inner: TabPFNClassifier, logits: Tensor) -> np.ndarray:
    """The first half of `probabilities`: temperature, averaging over the members, and balancing of classes.

    Parameters
    ----------
    inner : TabPFNClassifier
        Fitted.
    logits : Tensor of shape (M, Q, K)
        Raw logits of any number of members.

    Returns
    -------
    ndarray of shape (Q, K)
        What predictions of several models may be mixed from.
    """
    with torch.no_grad():
        return inner.logits_to_probabilities(logits).float().cpu().numpy()


def finished(inner: TabPFNClassifier, mixed: np.ndarray) -> np.ndarray:
    """The second half of `probabilities`: tuned thresholds, rounding, and a sum of 1.

    Parameters
    ----------
    inner : TabPFNClassifier
        Fitted.
    mixed : ndarray of shape (Q, K)
        From `averaged`, or a mixture of such.

    Returns
    -------
    ndarray of shape (Q, K)
    """
    found = inner._maybe_reweight_probas(mixed.astype(np.float32))
    if inner.inference_config_.USE_SKLEARN_16_DECIMAL_PRECISION:
        found = np.around(found, decimals=SKLEARN_16_DECIMAL_PRECISION)
        found = np.where(found < PROBABILITY_EPSILON_ROUND_ZERO, 0.0, found)
    return found / found.sum(axis=1, keepdims=True)


def category_positions(inner: TabPFNClassifier) -> list[int]:
    """Columns of `RowOutput.table` that hold codes of categories."""
    return list(inner.inferred_feature_schema_.indices_for(FeatureModality.CATEGORICAL))
