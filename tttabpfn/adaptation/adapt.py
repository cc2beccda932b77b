"""One adaptation from start to report: gradient steps, a memory, or both."""

from __future__ import annotations

import time
from dataclasses import replace

from tttabpfn.adaptation.fast_model import predicting_models
from tttabpfn.adaptation.gradient import GradientAdaptation
from tttabpfn.adaptation.memory import MemoryWriter
from tttabpfn.adaptation.outcome import Adaptation, Progress, WrittenMemory, has_memory, memory_tensors
from tttabpfn.adaptation.session import Session
from tttabpfn.adaptation.settings import Settings
from tttabpfn.report import AdaptationReport


def adapt(session: Session, settings: Settings, progress: Progress | None = None) -> Adaptation:
    """Adapt to a session's demonstrations.

    Parameters
    ----------
    session : Session
        Demonstrations, split, base; other adaptations of it wait meanwhile.
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
    with session.lock:
        session.n_adaptations += 1
        adaptation = _adapt(session, settings, progress)
    return replace(adaptation, report=replace(adaptation.report, seconds=time.perf_counter() - started))


def _adapt(session: Session, settings: Settings, progress: Progress | None) -> Adaptation:
    if settings.adaptation == "memory":
        return _memory_alone(session, settings)
    gradient = GradientAdaptation(session, settings, progress)
    outcome = gradient.run()
    if settings.adaptation == "gradient":
        return gradient.train_on_held_back(outcome)
    both = _memory_on_top(session, settings, outcome.adaptation)
    # A memory is written with the held-back rows too; without one, gradient steps have to take them in.
    return both if has_memory(both.tensors) else gradient.train_on_held_back(replace(outcome, adaptation=both))


def _memory_alone(session: Session, settings: Settings) -> Adaptation:
    """Write a memory on the frozen model's embeddings."""
    written = MemoryWriter(session, session.frozen, settings).run()
    choice = written.choice
    report = AdaptationReport(
        adaptation="memory",
        update_rule=settings.update_rule,
        # The linear memory's preconditioned steps have size 1.
        step_size=choice.value if choice.kind == "swiglu" else 1.0,
        context_size=len(session.split.context),
        n_demonstrations=len(session.labels),
        n_members=session.demonstrations.n_members,
        step_sizes_tried={value: loss for (kind, value), loss in choice.tried.items() if kind == "swiglu"},
        **written.as_report_fields(),
    )
    return Adaptation({} if written.memory is None else memory_tensors(written.memory), report)


def _memory_on_top(session: Session, settings: Settings, gradient: Adaptation) -> Adaptation:
    """Write a memory on the embeddings of a model that gradient steps adapted, or of the frozen one if they failed.

    The adapted model has not seen the session's held-back rows.
    """
    tensors, report = gradient.tensors, gradient.report
    if tensors:
        models = predicting_models(session.base, tensors)
        written = MemoryWriter(session, models, settings, cross_validated=False).run()
    else:
        written = _frozen_memory(session, settings)
    outcome = "accepted" if written.verdict.accepted else "refused"
    reason = f"gradient: {report.reason}; then memory, {outcome}: {written.verdict.reason}"
    notes = (*report.notes, *written.notes)
    if written.memory is None:
        return Adaptation(tensors, replace(report, reason=reason, notes=notes))
    kept = {**tensors, **memory_tensors(written.memory)}
    first = max(report.held_back_steps, default=0)
    later = {first + step: loss for step, loss in written.choice.curve.items() if step}
    fields = written.as_report_fields() | {
        "reason": reason,
        "n_steps": report.n_steps + written.choice.steps,
        "step_losses": report.step_losses + written.step_losses,
        "held_back_steps": report.held_back_steps + tuple(later),
        "held_back_losses": report.held_back_losses + tuple(later.values()),
        "fast_weight_bytes": sum(value.nbytes for value in kept.values()),
        "notes": notes,
    }
    if tensors:
        fields["loss_frozen"] = report.loss_frozen
    return Adaptation(kept, replace(report, **fields))


def _frozen_memory(session: Session, settings: Settings) -> WrittenMemory:
    """A memory on the frozen model: one for every step size, which is the gradient steps' alone."""
    key = replace(settings, step_size=None)
    if key not in session.frozen_memories:
        session.frozen_memories[key] = MemoryWriter(session, session.frozen, settings).run()
    return session.frozen_memories[key]
