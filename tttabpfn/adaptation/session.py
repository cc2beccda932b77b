"""One set of demonstrations on one base: what every adaptation of them shares, and the adaptation itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tabpfn import TabPFNClassifier
from torch import Tensor, nn

from tttabpfn import tabpfn_adapter as adapter
from tttabpfn.adaptation.episodes import Rows, Split, seeded, split_demonstrations, stratified_rows
from tttabpfn.adaptation.guard import Verdict, judge, row_losses
from tttabpfn.adaptation.memory_reader import any_memory
from tttabpfn.adaptation.memory_session import memory_alone, memory_on_top
from tttabpfn.adaptation.path import FastModel, GradientPath, PathPoint
from tttabpfn.adaptation.settings import Settings
from tttabpfn.report import AdaptationReport

HELD_BACK_BRANCH, ABSORB_BRANCH = 2, 3
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Adaptation:
    """What an adaptation leaves behind.

    Parameters
    ----------
    tensors : dict of str to Tensor
        Fast weights by name; empty if the frozen model predicts.
    report : AdaptationReport
        What happened.
    """

    tensors: dict[str, Tensor]
    report: AdaptationReport


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
    ) -> None:
        self.labels = labels
        self.base = adapter.load_base(estimator)
        rng = seeded(seed, HELD_BACK_BRANCH)
        self.split = split_demonstrations(labels, context, share=share, most=most, rng=rng)
        self.inner = adapter.fit_tabpfn(
            estimator, self.base, take(X, context), take(y, context), fit_mode="fit_preprocessors"
        )
        self.demonstrations = adapter.prepare_demonstrations(self.inner, self.base, X, labels)
        self.lock = threading.RLock()
        self._frozen_losses: NDArray[np.float64] | None = None
        self._paths: dict[Settings, GradientPath] = {}

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
            found = self._adapt(settings, progress)
        report = replace(found.report, seconds=time.perf_counter() - started)
        return Adaptation(found.tensors, report)

    def _adapt(self, settings: Settings, progress: Progress | None) -> Adaptation:
        if settings.adaptation == "memory":
            return Adaptation(*memory_alone(self, settings))
        gradient = _GradientAdaptation(self, settings, progress)
        found = gradient.run()
        if settings.adaptation == "gradient":
            return gradient.absorbed(found)
        models = predicting_models(self.base, found.tensors)
        both = Adaptation(*memory_on_top(self, settings, models, found.tensors, found.report))
        # A memory is written with the held-back rows too; without one, gradient steps have to take them in.
        return both if any_memory(both.tensors) else gradient.absorbed(both)

    def path(self, settings: Settings) -> GradientPath:
        """The gradient path of some settings; its first gradient serves every step size and number of steps."""
        key = replace(settings, step_size=None, n_steps=1, guard=True)
        if key not in self._paths:
            fast = FastModel(self.base.models, settings.fast_weights)
            self._paths[key] = GradientPath(fast, self.demonstrations, self.labels, self.split, settings)
        path = self._paths[key]
        path.settings = settings
        return path

    def frozen_losses(self) -> NDArray[np.float64]:
        """Log loss of each held-back row under the frozen model; computed once."""
        if self._frozen_losses is None:
            self._frozen_losses = self.held_back_losses(self.base.models)
        return self._frozen_losses

    def held_back_losses(self, models: Any) -> NDArray[np.float64]:
        """Log loss of each held-back row, as the predicting configuration would score it."""
        held_back = self.split.held_back
        device = self.demonstrations.labels.device
        with torch.no_grad():
            logits = adapter.member_logits(
                models,
                self.demonstrations,
                torch.as_tensor(self.split.guard_context, device=device),
                torch.as_tensor(held_back, device=device),
            )
            assert isinstance(logits, Tensor)
            probabilities = self.inner.logits_to_probabilities(logits).cpu().numpy()
        return row_losses(probabilities, self.labels[held_back])


class _GradientAdaptation:
    """One run of the algorithm: race of step sizes, path with checkpoints, verdict, held-back rows absorbed."""

    def __init__(self, session: Session, settings: Settings, progress: Progress | None) -> None:
        self.session = session
        self.settings = settings
        self.recipe = settings.recipe
        self.progress = progress
        self.path = session.path(settings)
        self.scores: dict[int, NDArray[np.float64]] = {}
        self._accepted: tuple[PathPoint, float] | None = None

    def run(self) -> Adaptation:
        """Run it all."""
        split = self.session.split
        notes: list[str] = []
        if len(split.held_back) == 0:
            return self._unguarded("too few demonstrations to hold any back, so nothing could be compared")
        if not self.settings.guard and self.settings.step_size is not None:
            return self._unguarded("guard=False and a given step size: nothing was held back from the decision")
        frozen = self.session.frozen_losses()
        step_size, tried, best = self._race()
        point, curve = self._best_point(best, step_size)
        adapted = self.scores[point.step] if point.step else frozen
        verdict = judge(frozen, adapted, evidence=self.recipe.evidence)
        if not self.settings.guard:
            verdict = Verdict(True, f"guard=False; {verdict.reason}", verdict.gain, verdict.standard_error)
        report = self._report(
            accepted=verdict.accepted,
            reason=verdict.reason,
            step_size=step_size,
            n_steps=point.step if verdict.accepted else 0,
            loss_frozen=float(frozen.mean()),
            loss_adapted=float(adapted.mean()),
            gain_standard_error=verdict.standard_error,
            step_losses=self._final.losses,
            held_back_steps=tuple(curve),
            held_back_losses=tuple(curve.values()),
            step_sizes_tried=tried,
            notes=(*notes, *self._final.notes),
        )
        if not verdict.accepted:
            return Adaptation({}, report)
        self._accepted = point, step_size
        return Adaptation(self._tensors(point), report)

    def absorbed(self, found: Adaptation) -> Adaptation:
        """The same adaptation, with the held-back rows taken in after the decision."""
        if self._accepted is None or not self.recipe.absorb or not self._accepted[0].step:
            return found
        return Adaptation(self._tensors(self._absorb(*self._accepted)), found.report)

    def _race(self) -> tuple[float, dict[float, float], PathPoint]:
        """Give every candidate step size a short trial and keep the best; its trial is the start of the path."""
        candidates = self.settings.candidate_step_sizes
        start = self.path.start()
        if len(candidates) == 1:
            return candidates[0], {}, start
        trial = max(1, round(self.recipe.trial_share * self.settings.n_steps))
        tried: dict[float, float] = {}
        points: dict[float, PathPoint] = {}
        for size in candidates:
            points[size] = self.path.walk(start, trial, size, observer=self._tell(f"step size {size:g}"))
            tried[size] = float(self._score(points[size]).mean())
        best = min(tried, key=lambda size: (not np.isfinite(tried[size]), tried[size]))
        return best, tried, points[best]

    def _best_point(self, point: PathPoint, step_size: float) -> tuple[PathPoint, dict[int, float]]:
        """Walk to the end of the path, score checkpoints on the way, and return the best one with the curve."""
        n_steps = self.settings.n_steps
        marks = {
            max(1, round(n_steps * k / self.recipe.n_checkpoints)) for k in range(1, self.recipe.n_checkpoints + 1)
        }
        curve = {0: float(self.session.frozen_losses().mean())}
        best, best_loss = self.path.start(), curve[0]
        if point.step:
            best_score = self._score(point)
            curve[point.step] = float(best_score.mean())
            self.scores[point.step] = best_score
            if curve[point.step] < best_loss:
                best, best_loss = point, curve[point.step]
        for mark in sorted(mark for mark in marks if mark > point.step):
            point = self.path.walk(point, mark, step_size, observer=self._tell("adapting"))
            self.scores[mark] = self._score(point)
            curve[mark] = float(self.scores[mark].mean())
            if curve[mark] < best_loss:
                best, best_loss = point, curve[mark]
            if not np.isfinite(curve[mark]):
                break
        self._final = point
        return best, curve

    def _absorb(self, point: PathPoint, step_size: float) -> PathPoint:
        """A few more steps whose queries are the held-back rows, as many as their share of the data is worth."""
        session = self.session
        split, settings = session.split, self.settings
        extra = max(1, round(point.step * len(split.held_back) / len(session.labels)))
        everything = np.arange(len(session.labels))
        rng = seeded(settings.seed, ABSORB_BRANCH)
        size = min(len(split.context), len(everything) - len(split.held_back))

        def episode(step: int) -> tuple[Rows, Rows]:
            query = np.sort(rng.permutation(split.held_back)[: settings.chunk_size])
            return stratified_rows(session.labels, np.setdiff1d(everything, split.held_back), size, rng), query

        level = self.path.schedule(point.step)
        return self.path.walk(point, point.step + extra, step_size, episode=episode, schedule=lambda step: level)

    def _unguarded(self, why: str) -> Adaptation:
        """All rows train, all steps are taken; only when there is no decision to make."""
        settings = self.settings
        path = self.path
        if len(self.session.split.held_back):
            labels = self.session.labels
            context = self.session.split.context
            whole = Split(context, np.arange(len(labels)), np.empty(0, dtype=np.int64), context)
            path = GradientPath(path.fast, path.demonstrations, labels, whole, settings)
        if settings.guard or settings.step_size is None:
            # Nothing can be compared, and without evidence the frozen weights stay.
            return Adaptation({}, self._report(accepted=False, reason=why))
        self._final = path.walk(path.start(), settings.n_steps, settings.step_size, observer=self._tell("adapting"))
        report = self._report(
            accepted=True,
            reason=why,
            step_size=settings.step_size,
            n_steps=settings.n_steps,
            step_losses=self._final.losses,
            notes=self._final.notes,
        )
        return Adaptation(self._tensors(self._final), report)

    def _score(self, point: PathPoint) -> NDArray[np.float64]:
        self.path.fast.load(point.weights)
        return self.session.held_back_losses(self.path.fast.models)

    def _tensors(self, point: PathPoint) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.path.fast.named(point.weights).items()}

    def _report(self, **found: Any) -> AdaptationReport:
        split = self.session.split
        return AdaptationReport(
            adaptation=self.settings.adaptation,
            update_rule=self.settings.update_rule,
            context_size=len(split.context),
            n_demonstrations=len(self.session.labels),
            n_held_back=len(split.held_back),
            fast_weight_bytes=self.path.fast.nbytes,
            **found,
        )

    def _tell(self, what: str) -> Callable[[PathPoint], None] | None:
        progress, total = self.progress, self.settings.n_steps
        if progress is None:
            return None
        return lambda point: progress(what, point.step, total)


def predicting_models(base: adapter.Base, tensors: dict[str, Tensor]) -> list[nn.Module]:
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
        Private copies that require no gradients.
    """
    fast: list[dict[str, Tensor]] = [{} for _ in base.models]
    for name, value in tensors.items():
        position, _, parameter = name.partition(":")
        if not position.isdigit():
            continue  # a memory's, which sits on the networks' embeddings
        fast[int(position)][parameter] = value
    copies = adapter.private_copies(base.models, fast)
    for model in copies:
        model.requires_grad_(False)
    return copies
