"""Gradient TTT: a race of step sizes, a path with checkpoints, a verdict, and the held-back rows taken in at last."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from tttabpfn.adaptation.episodes import Rows, seeded, split_demonstrations
from tttabpfn.adaptation.guard import Verdict, judge
from tttabpfn.adaptation.outcome import Adaptation, Progress
from tttabpfn.adaptation.path import GradientPath, PathPoint
from tttabpfn.adaptation.settings import Settings
from tttabpfn.report import AdaptationReport

if TYPE_CHECKING:
    from tttabpfn.adaptation.session import Session

ABSORB_BRANCH, FOLD_BRANCH = 3, 4


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
    """

    def __init__(self, session: Session, settings: Settings, progress: Progress | None) -> None:
        self.session = session
        self.settings = settings
        self.recipe = settings.recipe
        self.progress = progress
        self.path = session.path(settings)
        self.marks = self._checkpoints()
        self.scorers = self._scorers(session.demonstrations.n_members)
        self._accepted: tuple[PathPoint, float] | None = None

    def run(self) -> Adaptation:
        """Race, walk, judge.

        Returns
        -------
        Adaptation
            Without tensors if the frozen weights stay.
        """
        session, settings = self.session, self.settings
        if len(session.split.held_back) == 0:
            return self._without_evidence("too few demonstrations to hold any back, so nothing could be compared")
        if not settings.guard and settings.step_size is not None:
            return self._without_evidence("guard=False and a given step size: no row was held back")
        step_size, tried, point = self._race()
        best, last, curve = self._best_point(point, step_size)
        verdict, frozen, adapted = self._verdict(best)
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
            notes=last.notes,
        )
        if not verdict.accepted:
            return Adaptation({}, report)
        self._accepted = best, step_size
        return Adaptation(self._tensors(best), report)

    def absorbed(self, found: Adaptation) -> Adaptation:
        """The same adaptation, with the held-back rows taken in after the decision.

        Parameters
        ----------
        found : Adaptation
            What `run` returned.

        Returns
        -------
        Adaptation
            With the weights that predict.
        """
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
            tried[size] = self._score(points[size])
        best = min(tried, key=lambda size: (not np.isfinite(tried[size]), tried[size]))
        return best, tried, points[best]

    def _checkpoints(self) -> list[int]:
        n_steps, n_checkpoints = self.settings.n_steps, self.recipe.n_checkpoints
        return sorted({max(1, round(n_steps * k / n_checkpoints)) for k in range(1, n_checkpoints + 1)})

    def _scorers(self, n_members: int) -> list[int]:
        """Members that score points of the path: a few to compare many points, all where there is but one point."""
        size = self.recipe.members_per_score
        if len(self.marks) == 1 and len(self.settings.candidate_step_sizes) == 1:
            size = n_members
        stride = max(1, n_members // size)
        return list(range(0, n_members, stride))[:size]

    def _best_point(self, point: PathPoint, step_size: float) -> tuple[PathPoint, PathPoint, dict[int, float]]:
        """Walk to the end of the path; return its best checkpoint, its end and the curve of held-back losses."""
        curve = {0: float(self.session.frozen_losses(self.scorers).mean())}
        best = self.path.start()
        for mark in [point.step, *(mark for mark in self.marks if mark > point.step)]:
            if mark == 0:
                continue
            point = self.path.walk(point, mark, step_size, observer=self._tell("adapting"))
            curve[mark] = self._score(point)
            if curve[mark] < curve[best.step]:
                best = point
            if not np.isfinite(curve[mark]):
                break
        return best, point, curve

    def _verdict(self, best: PathPoint) -> tuple[Verdict, float, float]:
        """Compare the two models that could predict: all their members, same context."""
        everyone = list(range(self.session.demonstrations.n_members))
        frozen = adapted = self.session.standing_losses()
        if best.step and self.scorers == everyone and best.step == self._last_scored[0]:
            adapted = self._last_scored[1]
        elif best.step:
            self.path.fast.load(best.weights)
            adapted = self.session.held_back_losses(self.path.fast.models, everyone)
        evidence = self.recipe.evidence * self.recipe.evidence_factor(self.session.split.crossed)
        verdict = judge(frozen, adapted, evidence=evidence)
        if not self.settings.guard:
            verdict = Verdict(True, f"guard=False; {verdict.reason}", verdict.gain, verdict.standard_error)
        return verdict, float(frozen.mean()), float(adapted.mean())

    def _absorb(self, point: PathPoint, step_size: float) -> PathPoint:
        """A few more steps whose queries are the held-back rows, as many as their share of the data is worth."""
        split, settings = self.session.split, self.settings
        extra = max(1, round(point.step * len(split.held_back) / len(self.session.labels)))
        rng = seeded(settings.seed, ABSORB_BRANCH)
        level = self.path.schedule(point.step)

        def episode(step: int) -> tuple[Rows, Rows]:
            return split.guard_context, np.sort(rng.permutation(split.held_back)[: settings.chunk_size])

        return self.path.walk(point, point.step + extra, step_size, episode=episode, schedule=lambda step: level)

    def _without_evidence(self, why: str) -> Adaptation:
        """Nothing can be compared: the frozen weights stay, unless the user took the decision."""
        settings, path = self.settings, self.path
        if settings.guard or settings.step_size is None:
            return Adaptation({}, self._report(accepted=False, reason=why))
        labels, context = self.session.labels, self.session.split.context
        whole = split_demonstrations(labels, context, share=0, most=0, rng=seeded(settings.seed, FOLD_BRANCH))
        known = self.session.known_rows(path.fast.models)
        path = GradientPath(path.fast, path.demonstrations, labels, whole, settings, known_rows=known)
        end = path.walk(path.start(), settings.n_steps, settings.step_size, observer=self._tell("adapting"))
        report = self._report(
            accepted=True,
            reason=why,
            step_size=settings.step_size,
            n_steps=settings.n_steps,
            n_held_back=0,
            step_losses=end.losses,
            notes=end.notes,
        )
        return Adaptation(self._tensors(end), report)

    def _score(self, point: PathPoint) -> float:
        self.path.fast.load(point.weights)
        losses = self.session.held_back_losses(self.path.fast.models, self.scorers)
        self._last_scored = point.step, losses
        return float(losses.mean())

    def _tensors(self, point: PathPoint) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.path.fast.named(point.weights).items()}

    def _report(self, **found: Any) -> AdaptationReport:
        split = self.session.split
        known = {
            "adaptation": self.settings.adaptation,
            "update_rule": self.settings.update_rule,
            "context_size": len(split.context),
            "n_demonstrations": len(self.session.labels),
            "n_members": self.session.demonstrations.n_members,
            "n_held_back": len(split.held_back),
            "fast_weight_bytes": self.path.fast.nbytes,
        }
        return AdaptationReport(**{**known, **found})

    def _tell(self, what: str) -> Callable[[PathPoint], None] | None:
        progress, total = self.progress, self.settings.n_steps
        if progress is None:
            return None
        return lambda point: progress(what, point.step, total)
