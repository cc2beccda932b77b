"""One set of demonstrations on one base: what every adaptation of them shares, and the adaptation itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tabpfn import TabPFNClassifier
from torch import Tensor, nn

from tttabpfn import tabpfn_adapter as adapter
from tttabpfn.adaptation.episodes import Rows, seeded, split_demonstrations
from tttabpfn.adaptation.fast_model import FastModel
from tttabpfn.adaptation.gradient import GradientAdaptation
from tttabpfn.adaptation.guard import row_losses
from tttabpfn.adaptation.memory import WrittenMemory
from tttabpfn.adaptation.memory_reader import any_memory
from tttabpfn.adaptation.memory_session import memory_alone, memory_on_top
from tttabpfn.adaptation.outcome import Adaptation, Progress
from tttabpfn.adaptation.path import FirstGradient, GradientPath
from tttabpfn.adaptation.settings import Settings
from tttabpfn.adaptation.shared_predictions import SharedPredictions

HELD_BACK_BRANCH = 2


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
    take : callable
        ``take(X, rows)`` picks rows of a frame or array.
    seed : int
        Root of the seed tree.
    share, most : float, int
        Share and number of rows to hold back.
    most_members : int
        Ensemble members that adapt, where the estimator leaves their number open.
    """

    def __init__(
        self,
        estimator: TabPFNClassifier,
        X: Any,
        y: Any,
        labels: NDArray[np.int64],
        context: Rows,
        *,
        take: Callable[[Any, Rows], Any],
        seed: int,
        share: float,
        most: int,
        most_members: int,
    ) -> None:
        self.labels = labels
        self.base = adapter.load_base(estimator)
        rng = seeded(seed, HELD_BACK_BRANCH)
        self.split = split_demonstrations(labels, context, share=share, most=most, rng=rng)
        self.whole = adapter.fit_tabpfn(
            estimator, self.base, take(X, context), take(y, context), fit_mode="fit_preprocessors"
        )
        self.members = adapter.members_to_adapt(self.whole, most_members)
        self.inner = adapter.with_members(self.whole, self.members)
        self._everyone = adapter.prepare_demonstrations(self.whole, self.base, X, labels)
        self.demonstrations = self._everyone.of_members(self.members)
        self.row_embeddings = adapter.keep_row_embeddings(self.base.models, self.demonstrations)
        self._announce_folds()
        # Copies: a network that starts from kept row embeddings has its row stage replaced meanwhile.
        self.frozen = predicting_models(self.base, {})
        self.lock = threading.RLock()
        self._adaptations = 0
        self._fast_models: dict[str | tuple[str, ...], FastModel] = {}
        self.predictions = SharedPredictions()
        self._standing_losses: NDArray[np.float64] | None = None
        self._frozen_losses: dict[tuple[int, ...] | None, NDArray[np.float64]] = {}
        self._first_gradients: dict[Settings, FirstGradient] = {}
        self._frozen_memories: dict[Settings, WrittenMemory] = {}

    def adapt(self, settings: Settings, progress: Progress | None = None) -> Adaptation:
        """Adapt to the demonstrations.

        Parameters
        ----------
        settings : Settings
            What to do; `settings.is_frozen` must be False.
        progress : callable, optional
            Called as ``progress(what, done, total)``.

        Returns
        -------
        Adaptation
            Fast weights and report.
        """
        started = time.perf_counter()
        with self.lock:
            self._adaptations += 1
            found = self._adapt(settings, progress)
        report = replace(found.report, seconds=time.perf_counter() - started)
        return Adaptation(found.tensors, report)

    def _adapt(self, settings: Settings, progress: Progress | None) -> Adaptation:
        if settings.adaptation == "memory":
            return memory_alone(self, settings)
        gradient = GradientAdaptation(self, settings, progress)
        found = gradient.run()
        if settings.adaptation == "gradient":
            return gradient.absorbed(found)
        models = predicting_models(self.base, found.tensors) if found.tensors else self.frozen
        both = memory_on_top(self, settings, models, found, self._frozen_memories)
        # A memory is written with the held-back rows too; without one, gradient steps have to take them in.
        return both if any_memory(both.tensors) else gradient.absorbed(both)

    def _announce_folds(self) -> None:
        """Episodes with a fold's rows as queries never ask for held-back rows."""
        if self.row_embeddings is None:
            return
        device = self.demonstrations.labels.device
        for fold in self.split.folds:
            context = np.setdiff1d(self.split.pool, fold)
            self.row_embeddings.announce(*(torch.as_tensor(rows, device=device) for rows in (context, fold)))

    @property
    def is_searched(self) -> bool:
        """Whether these demonstrations were adapted to before, as they are by a search over step sizes."""
        return self._adaptations > 1

    @property
    def nbytes(self) -> int:
        """Size of demonstrations, row embeddings and first gradients (one at least), in bytes."""
        first = sum(gradient.nbytes for gradient in self._first_gradients.values())
        kept = 0 if self.row_embeddings is None else self.row_embeddings.nbytes
        shared = sum(2 * fast.nbytes for fast in self._fast_models.values())
        own = self._everyone.nbytes + kept + shared + self.predictions.nbytes
        return own + (first or sum(model_bytes(model) for model in self.base.models))

    def path(self, settings: Settings) -> GradientPath:
        """A gradient path from the frozen weights; its first gradient serves every step size and number of steps."""
        key = replace(settings, step_size=None, n_steps=1, guard=True)
        first = self._first_gradients.setdefault(key, FirstGradient())
        if self.is_searched and first.orthogonal is None:
            first.orthogonal = {}
        fast = self._fast_models.get(settings.fast_weights)
        if fast is None:
            fast = FastModel(self.base.models, settings.fast_weights)
            if self.is_searched:
                self._fast_models[settings.fast_weights] = fast
        return GradientPath(
            fast, self.demonstrations, self.labels, self.split, settings, first, self.known_rows(fast.models)
        )

    def known_rows(self, models: Sequence[nn.Module]) -> adapter.RowEmbeddings | None:
        """Kept row embeddings, if they are what these networks (private copies) would embed."""
        kept = self.row_embeddings
        return kept if kept is not None and kept.serve(models) else None

    def frozen_losses(self, members: Sequence[int] | None = None) -> NDArray[np.float64]:
        """Log loss of each held-back row under the frozen model; computed once per set of adapting members."""
        key = None if members is None else tuple(members)
        if key not in self._frozen_losses:
            self._frozen_losses[key] = self.held_back_losses(self.frozen, members)
        return self._frozen_losses[key]

    def standing_losses(self) -> NDArray[np.float64]:
        """Log loss of each held-back row under what predicts if nothing is accepted: the frozen model, all members."""
        if len(self.members) == self._everyone.n_members:
            return self.frozen_losses(list(range(len(self.members))))
        if self._standing_losses is None:
            known_rows = self.known_rows(self.frozen)
            own = self._held_back_logits(self.frozen, self.demonstrations, known_rows=known_rows)
            self._frozen_losses.setdefault(tuple(range(len(self.members))), self._losses(self.inner, own))
            logits = dict(zip(self.members, own, strict=True))
            others = sorted(set(range(self._everyone.n_members)) - set(self.members))
            found = self._held_back_logits(self.frozen, self._everyone.of_members(others), known_rows=None)
            logits |= dict(zip(others, found, strict=True))
            self._standing_losses = self._losses(self.whole, torch.stack([logits[member] for member in sorted(logits)]))
        return self._standing_losses

    def worth_of_other_members(self) -> float:
        """What members that do not adapt are worth to the frozen model: nats per held-back row, 0 at least."""
        if len(self.members) == self._everyone.n_members:
            return 0.0
        few = self.frozen_losses(list(range(len(self.members))))
        return max(0.0, float((few - self.standing_losses()).mean()))

    def held_back_losses(
        self, models: Sequence[nn.Module], members: Sequence[int] | None = None
    ) -> NDArray[np.float64]:
        """Log loss of each held-back row, as the adapting members (or some of them) would score it."""
        known_rows = self.known_rows(models)
        return self._losses(
            self.inner, self._held_back_logits(models, self.demonstrations, members, known_rows=known_rows)
        )

    def _held_back_logits(
        self,
        models: Sequence[nn.Module],
        demonstrations: adapter.Demonstrations,
        members: Sequence[int] | None = None,
        *,
        known_rows: adapter.RowEmbeddings | None,
    ) -> Tensor:
        device = demonstrations.labels.device
        context = torch.as_tensor(self.split.guard_context, device=device)
        held_back = torch.as_tensor(self.split.held_back, device=device)
        with torch.no_grad():
            logits = adapter.member_logits(models, demonstrations, context, held_back, members, known_rows=known_rows)
        assert isinstance(logits, Tensor)
        return logits

    def _losses(self, fitted: TabPFNClassifier, logits: Tensor) -> NDArray[np.float64]:
        return row_losses(adapter.probabilities(fitted, logits), self.labels[self.split.held_back])


def model_bytes(model: nn.Module) -> int:
    """Size of a network's parameters in bytes."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def predicting_models(base: adapter.Base, tensors: Mapping[str, Tensor]) -> list[nn.Module]:
    """Networks that predict with fast weights.

    Parameters
    ----------
    base : Base
        The base; shared, never written to.
    tensors : dict of str to Tensor
        Fast weights of all networks, each name led by its network's position and a colon; a memory's are passed over.

    Returns
    -------
    list of Module
        They use the given tensors themselves and require no gradients.
    """
    fast: list[dict[str, Tensor]] = [{} for _ in base.models]
    for name, value in tensors.items():
        position, _, parameter = name.partition(":")
        if position.isdigit():  # else it is a memory's, which sits on the networks' embeddings
            fast[int(position)][parameter] = value
    return adapter.private_copies(base.models, fast, trainable=False)


def adapted_by_gradient(tensors: Mapping[str, Tensor]) -> bool:
    """Whether there are fast weights of a network among an adaptation's tensors, not just a memory's.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        As `predicting_models` takes them.

    Returns
    -------
    bool
    """
    return any(name.partition(":")[0].isdigit() for name in tensors)
