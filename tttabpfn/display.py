"""A plot of what an adaptation did to the loss on held-back demonstrations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tttabpfn.report import AdaptationReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

_SMALL_SHARE = 0.03


class AdaptationDisplay:
    """What predicts, as shares of the mixture; or held-back loss after each update, where one model predicts alone.

    Make one with `from_estimator` or `from_report`. All parameters are kept as attributes.

    Parameters
    ----------
    steps : array-like of int, shape (n_points,)
        Numbers of updates after which the held-back demonstrations were scored.
    losses : array-like of float, shape (n_points,)
        Mean cross-entropy of the held-back demonstrations there, in nats per row.
    frozen_loss : float or None
        The same of the frozen model, with the ensemble members that `losses` were scored with.
    chosen_step : int or None
        Updates in the weights that predict; 0 stands for the frozen ones, None for weights that nobody compared.
    accepted : bool
        Whether the adapted model predicts.
    judged_losses : tuple of two floats, optional
        The losses of the frozen and of the adapted model that the guard compared, with all members; in the title. None:
        `frozen_loss` and the loss at the chosen step.
    reason : str, optional
        Why, in words; written into an empty plot.
    estimator_name : str, optional
        Name of the estimator in the legend.
    shares : dict of str to float, optional
        What predicts, in words, and its share; drawn in place of the losses if it is not empty.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where `plot` drew.
    figure_ : matplotlib Figure
        The figure of `ax_`.
    lines_ : list of matplotlib Line2D
        What was drawn: the adapted model's losses, the frozen model's, the chosen step; fewer if there is no such loss,
        none where shares are drawn.

    Examples
    --------
    >>> import matplotlib
    >>> from tttabpfn import AdaptationDisplay
    >>> matplotlib.use("Agg")
    >>> display = AdaptationDisplay(
    ...     steps=[0, 2, 4], losses=[0.7, 0.6, 0.5], frozen_loss=0.7, chosen_step=4, accepted=True
    ... ).plot()
    >>> display.ax_.get_title()
    'Adaptation accepted: 0.7000 to 0.5000'
    >>> display.figure_.clear()
    """

    def __init__(
        self,
        *,
        steps: Sequence[int] | np.ndarray,
        losses: Sequence[float] | np.ndarray,
        frozen_loss: float | None,
        chosen_step: int | None,
        accepted: bool,
        judged_losses: tuple[float, float] | None = None,
        reason: str | None = None,
        estimator_name: str | None = None,
        shares: dict[str, float] | None = None,
    ) -> None:
        self.steps = steps
        self.losses = losses
        self.frozen_loss = frozen_loss
        self.chosen_step = chosen_step
        self.accepted = accepted
        self.judged_losses = judged_losses
        self.reason = reason
        self.estimator_name = estimator_name
        self.shares = shares

    @classmethod
    def from_estimator(
        cls, estimator: Any, ax: Axes | None = None, *, name: str | None = None, **kwargs: Any
    ) -> AdaptationDisplay:
        """Draw the adaptation of a fitted estimator; adapts it if nothing has predicted yet.

        Parameters
        ----------
        estimator : TTTTabPFNClassifier
            Fitted.
        ax : matplotlib Axes, optional
            Where to draw; None: on a new figure.
        name : str, optional
            Name in the legend; None: that of the estimator's class.
        **kwargs : dict
            For the line of the adapted model's losses, as in ``ax.plot``.

        Returns
        -------
        AdaptationDisplay
            The display, drawn.
        """
        _pyplot()
        name = type(estimator).__name__ if name is None else name
        return cls.from_report(estimator.adaptation_report(), ax=ax, name=name, **kwargs)

    @classmethod
    def from_report(
        cls, report: AdaptationReport, ax: Axes | None = None, *, name: str | None = None, **kwargs: Any
    ) -> AdaptationDisplay:
        """Draw an adaptation report.

        Parameters
        ----------
        report : AdaptationReport
            As `TTTTabPFNClassifier.adaptation_report` returns it.
        ax : matplotlib Axes, optional
            Where to draw; None: on a new figure.
        name : str, optional
            Name in the legend.
        **kwargs : dict
            For the line of the adapted model's losses, as in ``ax.plot``.

        Returns
        -------
        AdaptationDisplay
            The display, drawn.
        """
        judged = None
        if report.loss_frozen is not None and report.loss_adapted is not None:
            judged = (report.loss_frozen, report.loss_adapted)
        display = cls(
            steps=np.asarray(report.held_back_steps, dtype=int),
            losses=np.asarray(report.held_back_losses, dtype=float),
            frozen_loss=report.held_back_losses[0] if report.held_back_losses else report.loss_frozen,
            chosen_step=report.n_steps if report.held_back_steps else None,
            accepted=report.accepted,
            judged_losses=judged,
            reason=report.reason,
            estimator_name=name,
            shares=report.shares,
        )
        return display.plot(ax=ax, **kwargs)

    def plot(self, ax: Axes | None = None, *, name: str | None = None, **kwargs: Any) -> AdaptationDisplay:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; None: on a new figure.
        name : str, optional
            Name in the legend; None: `estimator_name`.
        **kwargs : dict
            For the line of the adapted model's losses, as in ``ax.plot``.

        Returns
        -------
        AdaptationDisplay
            This display, with `ax_`, `figure_` and `lines_` set.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        if ax is None:
            _, ax = _pyplot().subplots()
        name = self.estimator_name if name is None else name
        if self.shares:
            return self._plot_shares(ax, self.shares)
        prefix = "" if name is None else f"{name}, "
        lines: list[Line2D] = []
        if len(self.steps):
            style = {"marker": ".", "color": "C0", "label": f"{prefix}adapted", **kwargs}
            lines += ax.plot(self.steps, self.losses, **style)
        if self.frozen_loss is not None:
            lines.append(ax.axhline(self.frozen_loss, color="C7", linestyle="--", label=f"{prefix}frozen"))
        chosen = self._chosen_loss()
        if chosen is not None and self.chosen_step is not None:
            style = {"marker": "o", "markersize": 10, "markerfacecolor": "none", "linestyle": "none", "color": "C3"}
            label = f"chosen: {self.chosen_step} {'update' if self.chosen_step == 1 else 'updates'}"
            lines += ax.plot([self.chosen_step], [chosen], label=label, **style)
        if lines:
            ax.legend(loc="best")
            ax.locator_params(axis="x", integer=True)
        else:
            text = self.reason or "no loss was measured"
            ax.text(0.5, 0.5, text, ha="center", va="center", wrap=True, transform=ax.transAxes)
        ax.set(xlabel="Updates", ylabel="Held-back log loss (nats per row)", title=self._title(chosen))
        self.ax_ = ax
        self.figure_ = ax.figure
        self.lines_ = lines
        return self

    def _plot_shares(self, ax: Axes, shares: dict[str, float]) -> AdaptationDisplay:
        """One bar for everything that predicts, the largest on top; small shares together."""
        large = {name: share for name, share in shares.items() if share >= _SMALL_SHARE}
        rest = sum(shares.values()) - sum(large.values())
        drawn = dict(sorted(large.items(), key=lambda item: -item[1])) | ({"others": rest} if rest > 0 else {})
        names = [name.replace(", on top of", ",\non top of").replace(" (", "\n(") for name in drawn]
        bars = ax.barh(names, [100 * share for share in drawn.values()], color="C0")
        ax.bar_label(bars, fmt="%.0f %%", padding=2)
        ax.invert_yaxis()
        ax.tick_params(axis="y", labelsize="small")
        ax.margins(x=0.12)
        ax.set(xlabel="Share of the mixture that predicts (%)", title=self._title(None))
        self.ax_, self.figure_, self.lines_ = ax, ax.figure, []
        return self

    def _chosen_loss(self) -> float | None:
        if self.chosen_step is None:
            return None
        matches = np.flatnonzero(np.asarray(self.steps) == self.chosen_step)
        return float(np.asarray(self.losses)[matches[-1]]) if matches.size else None

    def _title(self, chosen: float | None) -> str:
        if not self.accepted:
            return "Adaptation refused: the frozen model predicts" if len(self.steps) else "No adaptation"
        judged = self.judged_losses
        if judged is None and chosen is not None and self.frozen_loss is not None:
            judged = (self.frozen_loss, chosen)
        if judged is None:
            return "Adaptation accepted without held-back loss"
        few = "" if judged[0] == self.frozen_loss or self.shares else " with all members"
        return f"Adaptation accepted: {judged[0]:.4f} to {judged[1]:.4f}{few}"


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as pyplot
    except ImportError as error:
        raise ImportError("AdaptationDisplay needs matplotlib: pip install 'tttabpfn[plot]'") from error
    return pyplot
