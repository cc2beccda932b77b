"""One adaptation from start to report: a memory, gradient steps, or both."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from tttabpfn.adaptation.deadline import Deadline
from tttabpfn.adaptation.gradient import BesideMemory, GradientAdaptation, GradientOutcome
from tttabpfn.adaptation.guard import mean_loss, row_losses
from tttabpfn.adaptation.memory import MemoryWriter
from tttabpfn.adaptation.outcome import (
    Adaptation,
    Progress,
    WrittenMemory,
    memory_tensors,
    share_tensors,
    shares_in_words,
)
from tttabpfn.adaptation.session import Session
from tttabpfn.adaptation.settings import Settings
from tttabpfn.report import AdaptationReport, PartReport


def adapt(session: Session, settings: Settings, progress: Progress | None = None) -> Adaptation:
    """Adapt to a session's demonstrations.

    Parameters
    ----------
    session : Session
        Demonstrations, split, base; other adaptations of it wait meanwhile.
    settings : Settings
        What to do; `settings.is_frozen` must be False.
    progress : callable, optional
        Called as ``progress(what, done, total)``; with a total of 0 where nothing more will be told of it.

    Returns
    -------
    Adaptation
        Fast weights and report.
    """
    started = time.perf_counter()
    deadline = Deadline(settings.time_limit)
    with session.adapting():
        adaptation = _adapt(session, settings, progress, deadline)
    return replace(adaptation, report=replace(adaptation.report, seconds=time.perf_counter() - started))


def _adapt(session: Session, settings: Settings, progress: Progress | None, deadline: Deadline) -> Adaptation:
    if settings.adaptation == "gradient":
        gradient = GradientAdaptation(session, settings, progress, deadline)
        return gradient.train_on_held_back(gradient.run())
    if progress is not None:
        progress("memory", 0, 0)
    written = _frozen_memory(session, settings, deadline, progress)
    if settings.adaptation == "memory":
        return _memory_alone(session, settings, written)
    held_back, beside = session.split.held_back, None
    if written.memory is not None:
        losses = np.empty(0)
        if len(held_back):
            given = session.scores.finished(written.probabilities_of(held_back))
            losses = row_losses(given, session.labels[held_back])
        beside = BesideMemory(losses, float(written.memory.shares[0]))
    gradient = GradientAdaptation(session, settings, progress, deadline, beside)
    outcome = gradient.run()
    return _both(session, settings, written, outcome, gradient.train_on_held_back(outcome))


def _memory_alone(session: Session, settings: Settings, written: WrittenMemory) -> Adaptation:
    report = AdaptationReport(
        adaptation="memory",
        update_rule=settings.update_rule,
        step_size=0.0 if settings.step_size is None else settings.step_size,
        n_steps=0 if written.memory is None else settings.n_steps,
        context_size=len(session.split.context),
        n_demonstrations=session.n_demonstrations,
        n_members=session.demonstrations.n_members,
        **written.as_report_fields(),
    )
    return Adaptation({} if written.memory is None else memory_tensors(written.memory), report)


def _both(
    session: Session, settings: Settings, written: WrittenMemory, outcome: GradientOutcome, gradient: Adaptation
) -> Adaptation:
    """Put memory and adapted network together, each of them accepted or refused by itself."""
    report, memory = gradient.report, written.memory
    fields = written.as_report_fields()
    parts = (
        _part("memory", memory is not None, written.verdict.reason, fields),
        _part("gradient steps", report.accepted, report.reason, asdict(report)),
    )
    verdicts = [
        f"{what} {'accepted' if accepted else 'refused'}: {reason}"
        for what, accepted, reason in (
            ("memory", memory is not None, written.verdict.reason),
            ("gradient steps", report.accepted, report.reason),
        )
    ]
    notes = (*written.notes, *report.notes)
    if memory is None:
        return Adaptation(gradient.tensors, replace(report, reason="; then ".join(verdicts), notes=notes, parts=parts))
    tensors = memory_tensors(memory)
    fields = written.as_report_fields()
    if gradient.tensors:
        tensors |= gradient.tensors | share_tensors(outcome.share)
        if report.n_held_back:
            # The held-back rows alone have been scored by all that predicts.
            held_back = np.isin(written.rows, session.split.held_back)
            frozen = written.before[held_back]
            fields |= {
                "loss_frozen": mean_loss(frozen, None if written.weights is None else written.weights[held_back]),
                "loss_adapted": report.loss_adapted,
                "gain_standard_error": report.gain_standard_error,
                "n_held_back": report.n_held_back,
            }
    fields |= {
        "accepted": True,
        "n_steps": settings.n_steps + report.n_steps,
        "reason": "; then ".join(verdicts),
        "shares": shares_in_words(memory, outcome.share if gradient.tensors else None),
        "fast_weight_bytes": sum(value.nbytes for value in tensors.values()),
        "notes": notes,
        "parts": parts,
    }
    return Adaptation(tensors, replace(report, **fields))


def _part(name: str, accepted: bool, reason: str, fields: dict[str, Any]) -> PartReport:
    """What one part brought, given the fields of its own report."""
    before, after = fields["loss_frozen"], fields["loss_adapted"]
    known = before is not None and after is not None
    judged = (before, after, fields["gain_standard_error"]) if known else (None, None, None)
    return PartReport(name, accepted, reason, fields["n_held_back"] if known else 0, *judged)


def _frozen_memory(
    session: Session, settings: Settings, deadline: Deadline, progress: Progress | None
) -> WrittenMemory:
    """A memory on the frozen model: one for every step size, where that is the gradient steps' alone."""
    key = settings if settings.adaptation == "memory" else replace(settings, step_size=None)
    if key not in session.frozen_memories:
        session.frozen_memories[key] = MemoryWriter(session, settings, deadline, progress).run()
    return session.frozen_memories[key]
