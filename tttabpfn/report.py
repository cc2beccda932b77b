"""What an adaptation did, as plain values that print, compare and serialise."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


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
        return cls(**values)
