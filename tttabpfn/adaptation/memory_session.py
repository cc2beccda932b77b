"""Memory and gradient steps put together: what `adaptation="memory"` and `"both"` leave behind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from tttabpfn.adaptation.memory import MemoryWriter, WrittenMemory
from tttabpfn.adaptation.outcome import Adaptation
from tttabpfn.adaptation.settings import Settings
from tttabpfn.report import AdaptationReport

if TYPE_CHECKING:
    from tttabpfn.adaptation.session import Session


def memory_alone(session: Session, settings: Settings) -> Adaptation:
    """Write a memory on the frozen model's embeddings.

    Parameters
    ----------
    session : Session
        Demonstrations, split, base.
    settings : Settings
        With ``adaptation="memory"``.

    Returns
    -------
    Adaptation
        The memory, if it was accepted; its report lacks the seconds.
    """
    written = MemoryWriter(session, session.frozen, settings).run()
    tensors = {} if written.memory is None else written.memory.tensors()
    report = AdaptationReport(
        adaptation="memory",
        accepted=written.verdict.accepted,
        reason=written.verdict.reason,
        update_rule=settings.update_rule,
        step_size=_step_size(written),
        n_steps=written.choice.steps if written.verdict.accepted else 0,
        context_size=len(session.split.context),
        n_demonstrations=len(session.labels),
        n_members=session.demonstrations.n_members,
        n_held_back=written.n_held_back,
        loss_frozen=_known(written.loss_frozen),
        loss_adapted=_known(_mean(written)),
        gain_standard_error=_known(written.verdict.standard_error),
        step_losses=written.step_losses,
        held_back_steps=tuple(written.choice.curve),
        held_back_losses=tuple(written.choice.curve.values()),
        step_sizes_tried={value: loss for (kind, value), loss in written.choice.tried.items() if kind == "swiglu"},
        fast_weight_bytes=0 if written.memory is None else written.memory.nbytes,
        notes=written.notes,
    )
    return Adaptation(tensors, report)


def memory_on_top(
    session: Session,
    settings: Settings,
    models: Sequence[nn.Module],
    gradient: Adaptation,
    frozen: dict[Settings, WrittenMemory],
) -> Adaptation:
    """Write a memory on the embeddings of a model that gradient steps adapted, or of the frozen one if they failed.

    Parameters
    ----------
    session : Session
        Demonstrations, split, base.
    settings : Settings
        With ``adaptation="both"``.
    models : sequence of Module
        The model that predicts so far; it has not seen the session's held-back rows.
    gradient : Adaptation
        What the gradient steps led to; without tensors if they were refused.
    frozen : dict
        Memories on the frozen model by settings without a step size, which is the gradient steps' alone; added to.

    Returns
    -------
    Adaptation
        Fast weights and, if it was accepted, the memory; the report of both lacks the seconds.
    """
    tensors, report = gradient.tensors, gradient.report
    key = replace(settings, step_size=None)
    written = None if tensors else frozen.get(key)
    if written is None:
        written = MemoryWriter(session, models, settings, refolded=not tensors).run()
    if not tensors:
        frozen[key] = written
    outcome = "accepted" if written.verdict.accepted else "refused"
    reason = f"gradient: {report.reason}; then memory, {outcome}: {written.verdict.reason}"
    if written.memory is None:
        return Adaptation(tensors, replace(report, reason=reason, notes=(*report.notes, *written.notes)))
    first = max(report.held_back_steps, default=0)
    later = {first + step: loss for step, loss in written.choice.curve.items() if step}
    kept = {**tensors, **written.memory.tensors()}
    both = replace(
        report,
        accepted=True,
        reason=reason,
        n_steps=report.n_steps + written.choice.steps,
        loss_frozen=report.loss_frozen if tensors else _known(written.loss_frozen),
        loss_adapted=_known(_mean(written)),
        gain_standard_error=_known(written.verdict.standard_error),
        n_held_back=written.n_held_back,
        step_losses=report.step_losses + written.step_losses,
        held_back_steps=report.held_back_steps + tuple(later),
        held_back_losses=report.held_back_losses + tuple(later.values()),
        fast_weight_bytes=sum(value.numel() * value.element_size() for value in kept.values()),
        notes=(*report.notes, *written.notes),
    )
    return Adaptation(kept, both)


def _step_size(written: WrittenMemory) -> float:
    """The SwiGLU memory's step size; the linear memory's preconditioned steps have size 1."""
    return written.choice.value if written.choice.kind == "swiglu" else 1.0


def _mean(written: WrittenMemory) -> float:
    return float(written.choice.losses.mean()) if len(written.choice.losses) else math.nan


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
