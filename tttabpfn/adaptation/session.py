"""One set of demonstrations on one base: what every adaptation of them shares; it knows none of the algorithms."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tabpfn import TabPFNClassifier

from tttabpfn import tabpfn_adapter as adapter
from tttabpfn.adaptation.episodes import RowIndices, Split, rows_to_read, seeded, split_demonstrations
from tttabpfn.adaptation.fast_model import FastModel, predicting_models
from tttabpfn.adaptation.guard import HeldBackScores
from tttabpfn.adaptation.outcome import WrittenMemory
from tttabpfn.adaptation.path import FirstGradient, GradientPath
from tttabpfn.adaptation.settings import Recipe, Settings
from tttabpfn.cache.forks import renew_in_children
from tttabpfn.cache.predictions import SharedPredictions
from tttabpfn.inputs.data import take_rows
from tttabpfn.memory.columns import ColumnEncoder
from tttabpfn.memory.inputs import ColumnRows

HELD_BACK_BRANCH = 2
_ROWS = 65_536
"""Rows that are encoded at a time."""


class Session:
    """Preprocessed demonstrations, frozen scores and first gradients of one set of demonstrations.

    Candidates of a grid search over the step size meet in one session and share all of these.

    Parameters
    ----------
    estimator : TabPFNClassifier
        Settings of the wrapped classifier; not changed.
    X : array-like of shape (N, n_features)
        Demonstrations as the user gave them.
    y : array-like of shape (N,)
        Labels.
    labels : ndarray of shape (N,), int
        Class codes in sorted order of the labels.
    context : ndarray of shape (n,), int
        Rows kept as context at predict.
    seed : int
        Root of the seed tree.
    recipe : Recipe
        Says how much is held back, how many members adapt and how many rows the network reads; nothing else of it is
        used. All that the session holds is about these rows alone, and numbers them.
    split : Split, optional
        Which rows play which part; None: drawn.
    weights : ndarray of shape (N,), optional
        Of the demonstrations, above 0: in losses and scores one of weight 2 counts as two rows.
    base : Base, optional
        The one that the keys of what is adapted were made for; None: the estimator's as of now.
    """

    def __init__(
        self,
        estimator: TabPFNClassifier,
        X: Any,
        y: Any,
        labels: NDArray[np.int64],
        context: RowIndices,
        *,
        seed: int,
        recipe: Recipe,
        split: Split | None = None,
        weights: NDArray[np.float64] | None = None,
        base: adapter.Base | None = None,
    ) -> None:
        self.n_demonstrations = len(labels)
        self.base = adapter.load_base_for(estimator, int(labels.max()) + 1) if base is None else base
        self._everything = (X, labels, weights)
        self.read_rows = rows_to_read(labels, context, recipe.memory.max_rows, seed)
        if len(self.read_rows) < len(labels):
            X, y, labels = take_rows(X, self.read_rows), take_rows(y, self.read_rows), labels[self.read_rows]
            context = np.searchsorted(self.read_rows, context)
            weights = None if weights is None else weights[self.read_rows]
        self.labels = labels
        self.weights = weights
        self.split = _draw_split(labels, context, seed, recipe) if split is None else split
        rows = take_rows(X, context), take_rows(y, context)
        self.all_members = adapter.fit_tabpfn(estimator, self.base, *rows, fit_mode="fit_preprocessors")
        members = adapter.members_to_adapt(self.all_members, recipe.members(self.n_demonstrations, len(context)))
        self.all_demonstrations = adapter.prepare_demonstrations(self.all_members, self.base, X, labels, weights)
        self.demonstrations = self.all_demonstrations.of_members(members)
        self.table = adapter.encode_rows(self.all_members, X)
        encoder = ColumnEncoder(adapter.category_positions(self.all_members), seed=0)
        self.columns = encoder.fit(self.table, labels, weights)
        self._members = members
        self._lock = threading.RLock()
        self._is_adapting = False
        self.n_adaptations = 0
        self.predictions = SharedPredictions()
        self._start()
        renew_in_children(self)

    def _start(self) -> None:
        """Make what adaptations write to; all else is only read once it stands."""
        self.row_embeddings = adapter.keep_row_embeddings(self.base.models, self.demonstrations)
        self._expect_folds()
        # Copies: a network that starts from kept row embeddings has its row stage replaced meanwhile.
        self.frozen = predicting_models(self.base, {})
        self.scores = HeldBackScores(
            self.split,
            self.labels,
            self.frozen,
            self.all_members,
            adapter.with_members(self.all_members, self._members),
            self.all_demonstrations,
            self._members,
            self.row_embeddings,
            self.weights,
        )
        self.frozen_memories: dict[Settings, WrittenMemory] = {}
        self._fast_models: dict[str | tuple[str, ...], FastModel] = {}
        self._first_gradients: dict[Settings, FirstGradient] = {}

    @contextmanager
    def adapting(self) -> Iterator[None]:
        """Hold the session for one adaptation; others wait meanwhile."""
        with self._lock:
            if self._is_adapting:
                # Forked while another thread adapted: what that thread was writing is half written here.
                self._start()
            self._is_adapting = True
            self.n_adaptations += 1
            try:
                yield
            finally:
                self._is_adapting = False

    def renew_after_fork(self) -> None:
        """Start with a lock that no thread holds."""
        self._lock = threading.RLock()

    def _expect_folds(self) -> None:
        """Episodes with a fold's rows as queries never ask for held-back rows, which need not be embedded for them."""
        if self.row_embeddings is None:
            return
        device = self.demonstrations.labels.device
        for fold in self.split.folds:
            context = np.setdiff1d(self.split.pool, fold)
            self.row_embeddings.expect(*(torch.as_tensor(rows, device=device) for rows in (context, fold)))

    @property
    def n_unread(self) -> int:
        """Demonstrations that are too many for the network to read."""
        return self.n_demonstrations - len(self.read_rows)

    def unread_rows(self) -> ColumnRows | None:
        """These demonstrations as trees see them, encoded part by part; None if there are none."""
        if not self.n_unread:
            return None
        X, labels, weights = self._everything
        unread = np.setdiff1d(np.arange(len(labels)), self.read_rows)
        cells = [
            self.columns.cells(adapter.encode_rows(self.all_members, take_rows(X, unread[start : start + _ROWS])))
            for start in range(0, len(unread), _ROWS)
        ]
        return ColumnRows(np.concatenate(cells), labels[unread], None if weights is None else weights[unread])

    @property
    def is_searched(self) -> bool:
        """Whether these demonstrations were adapted to before, as they are by a search over step sizes."""
        return self.n_adaptations > 1

    @property
    def nbytes(self) -> int:
        """Size of demonstrations, row embeddings and first gradients (one at least), in bytes."""
        first = sum(gradient.nbytes for gradient in self._first_gradients.values())
        kept = 0 if self.row_embeddings is None else self.row_embeddings.nbytes
        shared = sum(2 * fast.nbytes for fast in self._fast_models.values())
        own = self.all_demonstrations.nbytes + self.table.nbytes + kept + shared + self.predictions.nbytes
        return own + (first or sum(adapter.model_bytes(model) for model in self.base.models))

    def path(self, settings: Settings) -> GradientPath:
        """A gradient path from the frozen weights; its first gradient serves every step size and number of steps."""
        key = replace(settings, step_size=None, n_steps=1, guard=True)
        first = self._first_gradients.setdefault(key, FirstGradient())
        first.keeps_factors = self.is_searched
        fast = self._fast_models.get(settings.fast_weights)
        if fast is None:
            fast = FastModel(self.base.models, settings.fast_weights)
            if self.is_searched:
                self._fast_models[settings.fast_weights] = fast
        known_rows = adapter.matching_row_embeddings(self.row_embeddings, fast.models)
        return GradientPath(fast, self.demonstrations, self.split, settings, first, known_rows)


def _draw_split(labels: NDArray[np.int64], context: RowIndices, seed: int, recipe: Recipe) -> Split:
    return split_demonstrations(
        labels,
        context,
        share=recipe.held_back_share,
        max_held_back=recipe.max_held_back,
        rng=seeded(seed, HELD_BACK_BRANCH),
    )
