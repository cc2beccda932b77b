"""Gradient TTT: a race of step sizes, a path with checkpoints, a verdict, and the held-back rows taken in at last."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tttabpfn.adaptation.deadline import Deadline
from tttabpfn.adaptation.episodes import RowIndices, seeded, split_demonstrations
from tttabpfn.adaptation.guard import Verdict, judge
from tttabpfn.adaptation.outcome import Adaptation, Progress
from tttabpfn.adaptation.path import GradientPath, PathPoint
from tttabpfn.adaptation.session import Session
from tttabpfn.adaptation.settings import Settings, checkpoints
from tttabpfn.memory.mixture import mixture_shares
from tttabpfn.report import AdaptationReport

LAST_STEPS_BRANCH, FOLD_BRANCH = 3, 4


@dataclass(frozen=True)
class GradientOutcome:
    """What the gradient steps led to.

    Parameters
    ----------
    adaptation : Adaptation
        Without tensors if the frozen weights stay.
    point : PathPoint or None
        Where the accepted weights stand on the path, if held-back rows are left to train on.
    step_size : float
        That path's.
    share : float
        Of the adapted network's probabilities, beside a memory's.
    """

    adaptation: Adaptation
    point: PathPoint | None = None
    step_size: float = 0.0
    share: float = 1.0


@dataclass(frozen=True)
class BesideMemory:
    """What a memory has left to gain.

    Parameters
    ----------
    losses : ndarray of shape (H,)
        Log losses of the session's held-back rows under the memory's mixture.
    model_share : float
        Share of the frozen model in that mixture.
    """

    losses: NDArray[np.float64]
    model_share: float


class GradientAdaptation:
    """One run of the algorithm on a session's demonstrations.

    Parameters
    ----------
    session : Session
        Demonstrations, split and frozen scores.
    settings : Settings
        What to do.
    progress : callable, optional
        Called as ``progress(what, done, total)``.
    deadline : Deadline
        Once it has passed, no further step is taken.
    beside : BesideMemory, optional
        The memory that the adapted network is to join.
    """

    def __init__(
        self,
        session: Session,
        settings: Settings,
        progress: Progress | None,
        deadline: Deadline,
        beside: BesideMemory | None = None,
    ) -> None:
        self.deadline = deadline
        self.beside = beside
        self.session = session
        self.settings = settings
        self.recipe = settings.recipe
        self.progress = progress
        self.path = session.path(settings)
        self.marks = checkpoints(settings.n_steps, self.recipe.n_checkpoints)
        self.scorers = self._scorers(session.demonstrations.n_members)
        self.path_notes: tuple[str, ...] = ()

    def run(self) -> GradientOutcome:
        """Race, walk, judge.

        Returns
        -------
        GradientOutcome
            Its weights have seen no held-back row, unless nobody asked for a comparison.
        """
        session, settings = self.session, self.settings
        why_not = self._why_not()
        if why_not:
            notes = (why_not,) if self.deadline.has_passed() else ()
            return GradientOutcome(Adaptation({}, self._report(accepted=False, reason=why_not, notes=notes)))
        if len(session.split.held_back) == 0:
            return self._without_evidence("too few demonstrations to hold any back, so nothing could be compared")
        if not settings.guard and settings.step_size is not None:
            return self._without_evidence("guard=False and a given step size: no row was held back")
        step_size, tried, point, losses = self._race()
        if point.step and not self._pays(losses):
            return self._given_up(step_size, tried, point, losses)
        best, losses, last, curve = self._best_point(point, step_size)
        verdict, frozen, adapted, share = self._verdict(best, losses)
        report = self._report(
            accepted=verdict.accepted,
            reason=verdict.reason,
            step_size=step_size,
            n_steps=best.step if verdict.accepted else 0,
            loss_frozen=frozen,
            loss_adapted=adapted,
            gain_standard_error=verdict.standard_error,
            step_losses=last.losses,
            held_back_steps=tuple(curve),
            held_back_losses=tuple(curve.values()),
            step_sizes_tried=tried,
            notes=(*last.notes, *self.path_notes),
        )
        if not verdict.accepted:
            return GradientOutcome(Adaptation({}, report))
        return GradientOutcome(Adaptation(self._tensors(best), report), best, step_size, share)

    def _why_not(self) -> str:
        """Why gradient steps are not even tried; empty if they are."""
        if self.deadline.has_passed():
            return "the time limit left no time for gradient steps"
        if self.beside is None or not self.settings.guard:
            return ""
        if len(self.beside.losses) < self.recipe.min_held_back:
            return f"{len(self.beside.losses)} held-back rows are too few to tell what they add to the memory"
        if self.beside.model_share < self.recipe.min_model_share:
            return f"TabPFN's own prediction is {self.beside.model_share:.0%} of what predicts: they could not add much"
        return ""

    def train_on_held_back(self, outcome: GradientOutcome) -> Adaptation:
        """Take the held-back rows in after the decision: a few more steps, as many as their share of the data is worth.

        Parameters
        ----------
        outcome : GradientOutcome
            What `run` returned; its report may have been replaced since.

        Returns
        -------
        Adaptation
            With the weights that predict.
        """
        point, split, settings = outcome.point, self.session.split, self.settings
        if point is None or not point.step or not self.recipe.train_on_held_back:
            return outcome.adaptation
        extra = max(1, round(point.step * len(split.held_back) / len(self.session.labels)))
        rng = seeded(settings.seed, LAST_STEPS_BRANCH)
        level = self.path.schedule(point.step)

        def episode(step: int) -> tuple[RowIndices, RowIndices]:
            return split.guard_context, np.sort(rng.permutation(split.held_back)[: settings.chunk_size])

        end = self.path.walk(point, point.step + extra, outcome.step_size, episode=episode, schedule=lambda step: level)
        return Adaptation(self._tensors(end), outcome.adaptation.report)

    def _race(self) -> tuple[float, dict[float, float], PathPoint, NDArray[np.float64]]:
        """Give every candidate step size a short trial and keep the best; its trial is the start of the path.

        The largest goes first: if that one does not pay beside a memory, the others are not tried.
        """
        candidates = sorted(self.settings.candidate_step_sizes, reverse=True)
        start = self.path.start()
        if len(candidates) == 1 and self.beside is None:
            return candidates[0], {}, start, np.empty(0)
        trial = max(1, round(self.recipe.trial_share * self.settings.n_steps))
        tried: dict[float, float] = {}
        points: dict[float, tuple[PathPoint, NDArray[np.float64]]] = {}
        for size in candidates:
            point = self.path.walk(start, trial, size, observer=self._tell(f"step size {size:g}"))
            losses = self._score(point)
            points[size], tried[size] = (point, losses), self.session.scores.mean(losses)
            if not self._pays(losses):
                return size, tried, point, losses
        best = min(tried, key=lambda size: (not np.isfinite(tried[size]), tried[size]))
        return best, tried, *points[best]

    def _pays(self, losses: NDArray[np.float64]) -> bool:
        """Whether a trial with these losses gains enough beside the memory to go on; alone it always does."""
        if self.beside is None or not self.settings.guard:
            return True
        mixed, _ = self._beside_memory(losses)
        return self._judged(self.beside.losses, mixed, self.recipe.trial_evidence).accepted

    def _given_up(
        self, step_size: float, tried: dict[float, float], trial: PathPoint, losses: NDArray[np.float64]
    ) -> GradientOutcome:
        assert self.beside is not None
        mixed, _ = self._beside_memory(losses)
        verdict = self._judged(self.beside.losses, mixed, self.recipe.trial_evidence)
        report = self._report(
            accepted=False,
            reason=f"given up after a trial of {trial.step} steps, which beside the memory brought {verdict.figures}",
            step_size=step_size,
            step_losses=trial.losses,
            step_sizes_tried=tried,
            loss_frozen=self.session.scores.mean(self.beside.losses),
            loss_adapted=self.session.scores.mean(mixed),
            gain_standard_error=verdict.standard_error,
            notes=trial.notes,
        )
        return GradientOutcome(Adaptation({}, report))

    def _beside_memory(self, losses: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
        """Losses of the mixture of a memory and a network with these losses, and the network's share in it."""
        assert self.beside is not None
        chosen = np.exp(-np.stack([self.beside.losses, losses]))
        prior = np.array([self.recipe.memory_share, 1.0 - self.recipe.memory_share])
        shares = mixture_shares(chosen, prior, self.recipe.share_prior_rows, self.session.scores.weights)
        return -np.log(shares @ chosen), float(shares[1])

    def _judged(self, before: NDArray[np.float64], after: NDArray[np.float64], evidence: float) -> Verdict:
        return judge(before, after, evidence=evidence, weights=self.session.scores.weights)

    def _scorers(self, n_members: int) -> list[int]:
        """Members that score points of the path: a few to compare many points, all where there is but one point."""
        size = self.recipe.members_per_score
        if len(self.marks) == 1 and len(self.settings.candidate_step_sizes) == 1:
            size = n_members
        stride = max(1, n_members // size)
        return list(range(0, n_members, stride))[:size]

    def _best_point(
        self, point: PathPoint, step_size: float
    ) -> tuple[PathPoint, NDArray[np.float64], PathPoint, dict[int, float]]:
        """Walk to the end of the path; return its best checkpoint and that one's losses, its end, and the curve."""
        losses = self.session.scores.frozen_losses(self.scorers)
        curve = {0: self.session.scores.mean(losses)}
        best = self.path.start()
        for mark in [point.step, *(mark for mark in self.marks if mark > point.step)]:
            if mark == 0:
                continue
            if self.deadline.has_passed():
                self.path_notes = (f"time limit reached: stopped after {point.step} of {self.settings.n_steps} steps",)
                break
            point = self.path.walk(point, mark, step_size, observer=self._tell("adapting"))
            scored = self._score(point)
            curve[mark] = self.session.scores.mean(scored)
            if curve[mark] < curve[best.step]:
                best, losses = point, scored
            if not np.isfinite(curve[mark]):
                break
        return best, losses, point, curve

    def _verdict(self, best: PathPoint, losses: NDArray[np.float64]) -> tuple[Verdict, float, float, float]:
        """Compare what could predict, with all its members: without the adapted network, and with it.

        Returns the verdict, both mean losses, and the network's share beside a memory.
        """
        scores, share = self.session.scores, 1.0
        before = scores.baseline_losses() if self.beside is None else self.beside.losses
        after = before
        if best.step:
            if tuple(self.scorers) != scores.everyone:
                self.path.fast.load(best.weights)
                losses = scores.losses(self.path.fast.models, scores.everyone)
            after = losses
            if self.beside is not None:
                after, share = self._beside_memory(losses)
        evidence = self.recipe.evidence * self.recipe.evidence_factor(self.session.split.held_back_in_context)
        verdict = self._judged(before, after, evidence)
        if not self.settings.guard:
            verdict = replace(verdict, accepted=True, reason=f"guard=False; {verdict.reason}")
        return verdict, scores.mean(before), scores.mean(after), share

    def _without_evidence(self, why: str) -> GradientOutcome:
        """Nothing can be compared: the frozen weights stay, unless the user took the decision."""
        settings, path = self.settings, self.path
        if settings.guard or settings.step_size is None:
            return GradientOutcome(Adaptation({}, self._report(accepted=False, reason=why)))
        labels, context = self.session.labels, self.session.split.context
        rng = seeded(settings.seed, FOLD_BRANCH)
        everything = split_demonstrations(labels, context, share=0, max_held_back=0, rng=rng)
        # Not the shared first gradient: that one's episode leaves the held-back rows out.
        path = GradientPath(path.fast, path.demonstrations, everything, settings, known_rows=path.known_rows)
        end = path.walk(path.start(), settings.n_steps, settings.step_size, observer=self._tell("adapting"))
        _warn_if_astray(end, settings.step_size, self.session.demonstrations.n_classes)
        report = self._report(
            accepted=True,
            reason=why,
            step_size=settings.step_size,
            n_steps=settings.n_steps,
            n_held_back=0,
            step_losses=end.losses,
            notes=end.notes,
        )
        share = 1.0 if self.beside is None else 1.0 - self.recipe.memory_share
        return GradientOutcome(Adaptation(self._tensors(end), report), share=share)

    def _score(self, point: PathPoint) -> NDArray[np.float64]:
        self.path.fast.load(point.weights)
        return self.session.scores.losses(self.path.fast.models, self.scorers)

    def _tensors(self, point: PathPoint) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.path.fast.named(point.weights).items()}

    def _report(self, **fields: Any) -> AdaptationReport:
        split = self.session.split
        known = {
            "adaptation": self.settings.adaptation,
            "update_rule": self.settings.update_rule,
            "context_size": len(split.context),
            "n_demonstrations": self.session.n_demonstrations,
            "n_members": self.session.demonstrations.n_members,
            "n_held_back": len(split.held_back),
            "fast_weight_bytes": self.path.fast.nbytes,
        }
        return AdaptationReport(**{**known, **fields})

    def _tell(self, what: str) -> Callable[[PathPoint], None] | None:
        progress, total = self.progress, self.settings.n_steps
        if progress is None:
            return None
        return lambda point: progress(what, point.step, total)


def _warn_if_astray(end: PathPoint, step_size: float, n_classes: int) -> None:
    """Warn where nothing was compared, nobody refuses, and training has lost what the frozen model knew."""
    if len(end.losses) < 2:
        return
    first, last = end.losses[0], end.losses[-1]
    no_better_than_guessing = last > 0.95 * math.log(n_classes) and last > first + 0.1
    if not np.isfinite(last) or no_better_than_guessing:
        warnings.warn(
            f"step_size={step_size:g} is too large here: the loss of the queries rose from {first:.3g} to "
            f"{last:.3g}, and with guard=False this predicts. Set a smaller one, or guard=True.",
            UserWarning,
            stacklevel=2,
        )
