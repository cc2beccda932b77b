"""Rows as what predicts sees them: its networks' embeddings of rows given the context, members side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tttabpfn import tabpfn_adapter as adapter
from tttabpfn.adaptation.episodes import seeded
from tttabpfn.adaptation.fast_model import predicting_models
from tttabpfn.adaptation.session import Session
from tttabpfn.inputs.data import take_rows
from tttabpfn.inputs.distinct import distinct_rows
from tttabpfn.prediction.predictor import ROWS_PER_PASS as ROWS
from tttabpfn.prediction.predictor import Predictor

N_FOLDS, FOLD_BRANCH = 4, 21
MAX_ROWS_AT_ONCE = 2048
Embeddings = NDArray[np.float32]


def embed(predictor: Predictor, X: Any) -> Embeddings:
    """Embed rows with the networks that predict: the adapted ones, or the frozen ones where those predict.

    Parameters
    ----------
    predictor : Predictor
        What predicts.
    X : frame or ndarray of shape (n_rows, n_features)
        Rows like those given to `fit`.

    Returns
    -------
    ndarray of shape (n_rows, n_members * n_dimensions), float32
        Members one after the other: each codes the classes in an order of its own, so that a mean over them would mix
        what means different things.
    """
    inner = predictor.inner
    if inner is None:
        assert predictor.memory is not None
        inner = predictor.memory.inner
    positions, inverse = distinct_rows(X)
    found = [
        _side_by_side(adapter.predict_with_embeddings(inner, take_rows(X, positions[start : start + ROWS])).embeddings)
        for start in range(0, len(positions), ROWS)
    ]
    return np.concatenate(found)[inverse]


def embed_known(session: Session, tensors: Mapping[str, Tensor], seed: int) -> Embeddings:
    """Embed the rows given to `fit`, none with itself in the context, where its own label would be read.

    Parameters
    ----------
    session : Session
        The demonstrations, preprocessed as they are for predictions.
    tensors : mapping of str to Tensor
        What the adaptation left behind; empty if the frozen model predicts.
    seed : int
        Of the folds.

    Returns
    -------
    ndarray of shape (N, n_members * n_dimensions), float32
        Rows outside the context, given the context; rows of the context, a fold at a time, given the other folds.
    """
    demonstrations = session.demonstrations if tensors else session.all_demonstrations
    models = predicting_models(session.base, tensors)
    codes, context = session.labels, session.split.context
    folds = np.full(len(codes), -1)
    folds[context] = _folds(codes[context], seed)
    found: list[Embeddings] = []
    asked: list[NDArray[np.int64]] = []
    for fold in range(-1, N_FOLDS):
        rest = context[folds[context] != fold]
        rows = np.flatnonzero(folds == fold)
        # The only context row of its class stays: without it the network would not know the class.
        lonely = rows[~np.isin(codes[rows], codes[rest])] if fold >= 0 else rows[:0]
        given = torch.as_tensor(np.sort(np.concatenate([rest, lonely])), device=demonstrations.labels.device)
        for start in range(0, len(rows), MAX_ROWS_AT_ONCE):
            some = rows[start : start + MAX_ROWS_AT_ONCE]
            query = torch.as_tensor(some, device=given.device)
            with torch.no_grad():
                output = adapter.member_logits(models, demonstrations, given, query, embeddings=True)
            found.append(_side_by_side(output.embeddings))
            asked.append(some)
    return np.concatenate(found)[np.argsort(np.concatenate(asked))]


def _side_by_side(embeddings: Tensor) -> Embeddings:
    members, rows, width = embeddings.shape
    return embeddings.permute(1, 0, 2).reshape(rows, members * width).cpu().numpy()


def _folds(codes: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """A fold for each row, each class spread over all of them."""
    shuffled = seeded(seed, FOLD_BRANCH).permutation(len(codes))
    ranked = shuffled[np.argsort(codes[shuffled], kind="stable")]
    folds = np.empty(len(codes), dtype=np.int64)
    folds[ranked] = np.arange(len(codes)) % N_FOLDS
    return folds
