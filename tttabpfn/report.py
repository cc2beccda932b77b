"""What an adaptation did, as plain values that print, compare and serialise."""

from __future__ import annotations

import html
from dataclasses import asdict, dataclass, field
from typing import Any

FROZEN = "plain TabPFN, in float32 (alone it would use bfloat16 on a CPU, which moves probabilities by up to .01)"


@dataclass(frozen=True)
class PartReport:
    """What one part of an adaptation brought on rows that it had not seen.

    Parameters
    ----------
    name : {"memory", "gradient steps"}
        The part.
    accepted : bool
        Whether it predicts.
    reason : str
        Why, in words.
    n_rows : int
        Held-back rows that it was judged on.
    loss_before, loss_after : float or None
        Log loss of these rows without it and with it, in nats per row; None if it was not tried on any.
    standard_error : float or None
        Standard error of the paired difference.

    Examples
    --------
    >>> print(PartReport("memory", True, "counts 98% of what predicts", 567, 0.1065, 0.0758, 0.0091).describe())
    memory: kept; log loss 0.1065 to 0.0758 on 567 held-back rows, a gain of 0.0307 +- 0.0091
    """

    name: str
    accepted: bool
    reason: str
    n_rows: int = 0
    loss_before: float | None = None
    loss_after: float | None = None
    standard_error: float | None = None

    @property
    def figures(self) -> str:
        """What it brought, in words; empty if it was not tried."""
        if self.loss_before is None or self.loss_after is None or not self.n_rows:
            return ""
        gain = self.loss_before - self.loss_after
        what = "a gain" if gain > 0 else "a loss" if gain < 0 else "a gain"
        error = "" if self.standard_error is None else f" +- {self.standard_error:.4f}"
        losses = f"log loss {self.loss_before:.4f} to {self.loss_after:.4f} on {self.n_rows:,} held-back rows"
        return f"{losses}, {what} of {abs(gain):.4f}{error}"

    @property
    def why(self) -> str:
        """The reason without the figures, which are said apart."""
        return self.reason.partition(": log loss")[0]

    def describe(self) -> str:
        """Return name, verdict and figures as one line; the reason where it was refused or there are no figures.

        Returns
        -------
        str
        """
        verdict = "kept" if self.accepted else f"not kept: {self.why}"
        if self.accepted and not self.figures:
            verdict = f"kept: {self.why}"
        return f"{self.name}: {verdict}" + (f"; {self.figures}" if self.figures else "")


@dataclass(frozen=True)
class AdaptationReport:
    """What test-time training did to one set of demonstrations.

    Losses are mean cross-entropies in nats per row.

    Parameters
    ----------
    adaptation : {"gradient", "memory", "both", "none"}
        What was adapted; ``"none"`` if zero steps or a zero step size was asked for.
    accepted : bool
        Whether the adapted model predicts. ``False`` means that the frozen one does.
    reason : str
        Why it was accepted or refused, in words.
    update_rule : str
        The update rule of the fast weights.
    step_size : float
        The step size used, chosen or given.
    n_steps : int
        Updates in the weights that predict (0 if refused).
    context_size : int
        Rows kept as context at predict.
    n_demonstrations : int
        Rows given to ``fit``.
    n_members : int
        Ensemble members that were adapted, and predict if the adaptation was accepted.
    n_held_back : int
        Demonstrations on which frozen and adapted model were compared.
    loss_frozen : float or None
        Loss of the frozen model on the held-back rows; None if none were held back.
    loss_adapted : float or None
        Loss of the adapted model on the same rows.
    gain_standard_error : float or None
        Standard error of the paired difference ``loss_frozen - loss_adapted``.
    step_losses : tuple of float
        Loss of each step's queries, before that step's update.
    held_back_steps : tuple of int
        Numbers of updates after which the held-back rows were scored, starting with 0.
    held_back_losses : tuple of float
        Their losses, in the same order; the first one is the frozen model's.
    step_sizes_tried : dict of float to float
        Held-back loss of each candidate step size at the end of its trial.
    shares : dict of str to float
        What predicts and with which share of the mixture, in words; empty if one model predicts alone.
    seconds : float
        Wall-clock time of the adaptation (of the first one, on a cache hit).
    fast_weight_bytes : int
        Size of the fast weights.
    cache_hit : bool
        Whether the fast weights came from the cache.
    notes : tuple of str
        Anything unusual: a micro-batch halved for want of memory, a guard without rows.
    parts : tuple of PartReport
        What each part brought; empty if nothing was to be adapted.

    Examples
    --------
    >>> from tttabpfn import AdaptationReport
    >>> report = AdaptationReport(adaptation="none", accepted=False, reason="n_steps is 0")
    >>> report.accepted, report.n_steps
    (False, 0)
    >>> AdaptationReport.from_dict(report.to_dict()) == report
    True
    """

    adaptation: str
    accepted: bool
    reason: str
    update_rule: str = ""
    step_size: float = 0.0
    n_steps: int = 0
    context_size: int = 0
    n_demonstrations: int = 0
    n_members: int = 0
    n_held_back: int = 0
    loss_frozen: float | None = None
    loss_adapted: float | None = None
    gain_standard_error: float | None = None
    step_losses: tuple[float, ...] = ()
    held_back_steps: tuple[int, ...] = ()
    held_back_losses: tuple[float, ...] = ()
    step_sizes_tried: dict[float, float] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    fast_weight_bytes: int = 0
    cache_hit: bool = False
    notes: tuple[str, ...] = ()
    parts: tuple[PartReport, ...] = ()

    def __str__(self) -> str:
        """The summary for a person: what was tried, what it gained, what predicts now."""
        if self.adaptation == "none":
            return f"Nothing was adapted ({self.reason}), with {self.context_size:,} rows as context."
        cached = ", from the cache" if self.cache_hit else ""
        lines = [
            f"Adapted to {self.n_demonstrations:,} rows, {self.context_size:,} of them context at predict "
            f"({self.seconds:.1f} s{cached}):"
        ]
        lines += [f"  {part.describe()}" for part in self._parts()]
        lines += [f"  note: {note}" for note in self.notes]
        if not self.accepted:
            lines.append(f"What predicts now: {FROZEN}")
        elif not self.shares:
            lines.append(f"What predicts now: TabPFN, adapted by {self.n_steps} gradient steps")
        else:
            lines.append("What predicts now:")
            lines += [f"  {share:4.0%}  {name}" for name, share in self.shares.items()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """The same as a small table, for notebooks."""
        cells = [("part", "kept", "held-back rows", "log loss before", "after", "gain")]
        for part in self._parts():
            before, after = part.loss_before, part.loss_after
            shown = ("", "", "")
            if before is not None and after is not None:
                error = "" if part.standard_error is None else f" &plusmn; {part.standard_error:.4f}"
                shown = (f"{before:.4f}", f"{after:.4f}", f"{before - after:.4f}{error}")
            kept = "yes" if part.accepted else f"no: {html.escape(part.why)}"
            cells.append((html.escape(part.name), kept, f"{part.n_rows:,}", *shown))
        head, *body = (
            "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in row) + "</tr>"
            for tag, row in zip(["th"] + ["td"] * len(cells), cells, strict=False)
        )
        predicts = ", ".join(f"{share:.0%} {html.escape(name)}" for name, share in self.shares.items())
        if not self.accepted:
            predicts = FROZEN
        caption = f"<caption>What predicts now: {predicts or 'TabPFN, adapted by gradient steps'}</caption>"
        return f"<table>{caption}<thead>{head}</thead><tbody>{''.join(body)}</tbody></table>"

    def _parts(self) -> tuple[PartReport, ...]:
        """The parts; one of the report's own figures where it came without."""
        if self.parts or self.adaptation == "none":
            return self.parts
        name = "memory" if self.adaptation == "memory" else "gradient steps"
        judged = (self.n_held_back, self.loss_frozen, self.loss_adapted, self.gain_standard_error)
        return (PartReport(name, self.accepted, self.reason, *judged),)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values.

        Returns
        -------
        dict
            Field names to numbers, strings, lists and dicts with string keys.
        """
        values = asdict(self)
        values["step_sizes_tried"] = {repr(size): loss for size, loss in self.step_sizes_tried.items()}
        for name in ("step_losses", "held_back_steps", "held_back_losses", "notes"):
            values[name] = list(values[name])
        values["parts"] = [asdict(part) for part in self.parts]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> AdaptationReport:
        """Rebuild a report from what `to_dict` returned.

        Parameters
        ----------
        values : dict
            As `to_dict` returns it, possibly after a round trip through JSON.

        Returns
        -------
        AdaptationReport
            An equal report.
        """
        values = dict(values)
        values["step_sizes_tried"] = {float(size): loss for size, loss in values["step_sizes_tried"].items()}
        for name in ("step_losses", "held_back_steps", "held_back_losses", "notes"):
            values[name] = tuple(values[name])
        values["parts"] = tuple(PartReport(**part) for part in values.get("parts", ()))
        return cls(**values)
