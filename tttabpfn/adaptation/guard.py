"""Never worse: frozen and adapted model scored and compared row by row on demonstrations that no step has seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tabpfn import TabPFNClassifier
from torch import Tensor, nn

from tttabpfn import tabpfn_adapter as adapter
from tttabpfn.adaptation.episodes import RowIndices, Split
from tttabpfn.memory.mixture import trust


@dataclass(frozen=True)
class Verdict:
    """What the held-back rows say.

    Parameters
    ----------
    accepted : bool
        Whether the adapted model may predict.
    reason : str
        Why, in words.
    gain : float
        Mean of ``frozen - adapted`` log loss, nats per row.
    standard_error : float
        Of the gain.
    """

    accepted: bool
    reason: str
    gain: float
    standard_error: float

    @property
    def figures(self) -> str:
        """The figures in `reason`, without its first words."""
        return self.reason.rpartition(": ")[2]


def mean_loss(losses: NDArray[np.float64], weights: NDArray[np.float64] | None = None) -> float:
    """Mean of row-wise losses, in which a row of weight 2 counts as two rows."""
    return float(losses.mean()) if weights is None else float(np.average(losses, weights=weights))


def _standard_error(difference: NDArray[np.float64], mean: float, weights: NDArray[np.float64] | None = None) -> float:
    """Standard error of a mean; infinite if there is but one row."""
    if weights is None:
        return float(difference.std(ddof=1) / math.sqrt(len(difference))) if len(difference) > 1 else math.inf
    total = float(weights.sum())
    if len(difference) < 2 or total <= 1.0:
        return math.inf
    return math.sqrt(float(weights @ (difference - mean) ** 2) / (total - 1.0) / total)


def judge(
    frozen: NDArray[np.float64],
    adapted: NDArray[np.float64],
    *,
    evidence: float,
    weights: NDArray[np.float64] | None = None,
) -> Verdict:
    r"""Accept the adapted model if its paired gain in log loss stands out from its own noise.

    The gain is the mean of the row-wise differences :math:`d_i` of log loss, its standard error
    :math:`s/\sqrt{n}` with the sample deviation :math:`s` of the :math:`d_i`. Pairing removes what makes a row easy
    or hard for both models. The adapted model is accepted if ``gain > evidence * standard_error``: under no true
    gain, a one-sided z-test at ``evidence=1`` errs in 16 % of the cases, and then by less than one standard error
    more often than not.

    Parameters
    ----------
    frozen, adapted : ndarray of shape (H,)
        Log loss of each held-back row, in nats.
    evidence : float
        Standard errors that the gain must exceed.
    weights : ndarray of shape (H,), optional
        Of the rows: one of weight 2 counts as two rows.

    Returns
    -------
    Verdict
        With the reason in words.

    Examples
    --------
    >>> frozen = np.array([0.7, 0.9, 0.5, 0.8])
    >>> judge(frozen, frozen - np.array([0.2, 0.3, 0.1, 0.2]), evidence=1.0).accepted
    True
    >>> judge(frozen, frozen, evidence=1.0).reason
    'no gain on the held-back rows: log loss 0.7250 frozen, 0.7250 adapted (gain 0.0000 +- 0.0000 on 4 rows)'
    """
    difference = frozen - adapted
    gain = mean_loss(difference, weights)
    error = _standard_error(difference, gain, weights)
    figures = (
        f"log loss {mean_loss(frozen, weights):.4f} frozen, {mean_loss(adapted, weights):.4f} adapted "
        f"(gain {gain:.4f} +- {error:.4f} on {len(difference)} rows)"
    )
    if not np.isfinite(adapted).all():
        return Verdict(False, f"the adapted model's predictions are not finite: {figures}", gain, error)
    if gain <= 0:
        return Verdict(False, f"no gain on the held-back rows: {figures}", gain, error)
    if gain <= evidence * error:
        return Verdict(False, f"the gain does not stand out from its noise: {figures}", gain, error)
    return Verdict(True, f"better on the held-back rows: {figures}", gain, error)


def weigh(
    frozen: NDArray[np.float64],
    mixed: NDArray[np.float64],
    *,
    min_trust: float,
    weights: NDArray[np.float64] | None = None,
) -> tuple[Verdict, float]:
    """Judge a mixture that the frozen model is part of, and say how far it shall count.

    A mixture cannot go far astray, so it needs no proof to be used: it counts by the probability that its gain is
    above zero, and the frozen model for the rest. Below `min_trust` the frozen model predicts alone.

    Parameters
    ----------
    frozen, mixed : ndarray of shape (H,)
        Log loss of each held-back row, in nats.
    min_trust : float
        Probability below which the mixture is refused.
    weights : ndarray of shape (H,), optional
        Of the rows, as `judge` takes them.

    Returns
    -------
    verdict : Verdict
        With the reason in words.
    share : float
        Of the mixture beside the frozen model, in [0, 1].

    Examples
    --------
    >>> frozen = np.array([0.7, 0.9, 0.5, 0.8])
    >>> verdict, share = weigh(frozen, frozen - np.array([0.2, 0.3, -0.1, 0.2]), min_trust=0.2)
    >>> verdict.accepted, round(share, 2)
    (True, 0.96)
    >>> weigh(frozen, frozen + np.array([0.2, 0.3, 0.1, 0.2]), min_trust=0.2)[0].accepted
    False
    """
    judged = judge(frozen, mixed, evidence=0.0, weights=weights)
    share = trust(judged.gain, judged.standard_error) if np.isfinite(mixed).all() else 0.0
    if share < min_trust:
        return Verdict(False, judged.reason, judged.gain, judged.standard_error), 0.0
    reason = f"counts {share:.0%} of what predicts: {judged.figures}"
    return Verdict(True, reason, judged.gain, judged.standard_error), share


def row_losses(probabilities: NDArray[np.floating], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Log loss of each row in nats, given probabilities (Q, K) and class codes (Q,).

    Probabilities are clipped at the resolution of float32, as scikit-learn's log loss does.
    """
    chosen = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return -np.log(np.clip(chosen, np.finfo(np.float32).eps, 1.0))


class HeldBackScores:
    """Log losses of held-back rows, from exactly what predicts: ensembling, temperature and thresholds included.

    Parameters
    ----------
    split : Split
        Its held-back rows are scored with its guard context.
    labels : ndarray of shape (N,), int
        Class codes of all demonstrations.
    frozen : sequence of Module
        The base's networks.
    all_members, adapting_members : TabPFNClassifier
        Fitted on the predicting context, with every ensemble member and with those that adapt.
    all_demonstrations : Demonstrations
        Rows as every member sees them.
    members : sequence of int
        Positions of the adapting members among all.
    row_embeddings : RowEmbeddings or None
        Those of the adapting members.
    weights : ndarray of shape (N,), optional
        Of all demonstrations.
    """

    def __init__(
        self,
        split: Split,
        labels: NDArray[np.int64],
        frozen: Sequence[nn.Module],
        all_members: TabPFNClassifier,
        adapting_members: TabPFNClassifier,
        all_demonstrations: adapter.Demonstrations,
        members: Sequence[int],
        row_embeddings: adapter.RowEmbeddings | None,
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        self.weights = None if weights is None else weights[split.held_back]
        self.split = split
        self.labels = labels
        self.frozen = frozen
        self.all_members = all_members
        self.adapting_members = adapting_members
        self.members = tuple(members)
        self.everyone = tuple(range(len(members)))
        self._all_demonstrations = all_demonstrations
        self._demonstrations = all_demonstrations.of_members(members)
        self._row_embeddings = row_embeddings
        self._frozen_losses: dict[tuple[int, ...], NDArray[np.float64]] = {}
        self._baseline_losses: NDArray[np.float64] | None = None

    def losses(self, models: Sequence[nn.Module], members: Sequence[int] | None = None) -> NDArray[np.float64]:
        """Log loss of each held-back row, as the adapting members (or some of them, by position) would score it."""
        return self.of_rows(self._logits(models, members), self.split.held_back)

    def mean(self, losses: NDArray[np.float64]) -> float:
        """Mean of the held-back rows' losses, by their weights."""
        return mean_loss(losses, self.weights)

    def of_rows(self, logits: Tensor, rows: RowIndices) -> NDArray[np.float64]:
        """Log loss of any demonstrations, from raw logits (M, Q, K) of the adapting members."""
        return row_losses(adapter.probabilities(self.adapting_members, logits), self.labels[rows])

    def averaged(self, logits: Tensor) -> NDArray[np.float32]:
        """Probabilities of any rows from raw logits (M, Q, K), ensembled as at predict: what may be mixed."""
        return adapter.averaged(self.adapting_members, logits)

    def finished(self, mixed: NDArray[np.floating]) -> NDArray[np.float32]:
        """What predicts, from a mixture of `averaged` ones."""
        return adapter.finished(self.adapting_members, mixed)

    def frozen_losses(self, members: Sequence[int]) -> NDArray[np.float64]:
        """Log loss of each held-back row under the frozen model; computed once per set of adapting members."""
        key = tuple(members)
        if key not in self._frozen_losses:
            self._frozen_losses[key] = self.losses(self.frozen, key)
        return self._frozen_losses[key]

    def baseline_losses(self) -> NDArray[np.float64]:
        """Log loss of each held-back row under what predicts if nothing is accepted: the frozen model, all members."""
        if self._all_adapt:
            return self.frozen_losses(self.everyone)
        if self._baseline_losses is None:
            # The adapting members run once, for both scores; their row embeddings are kept, the others' are not.
            own = self._logits(self.frozen, None)
            self._frozen_losses.setdefault(self.everyone, self.of_rows(own, self.split.held_back))
            others = sorted(set(range(self._all_demonstrations.n_members)) - set(self.members))
            rest = self._run(self.frozen, self._all_demonstrations.of_members(others), None, None)
            logits = dict(zip([*self.members, *others], [*own, *rest], strict=True))
            everyone = torch.stack([logits[member] for member in sorted(logits)])
            probabilities = adapter.probabilities(self.all_members, everyone)
            self._baseline_losses = row_losses(probabilities, self.labels[self.split.held_back])
        return self._baseline_losses

    def worth_of_other_members(self) -> float:
        """What members that do not adapt are worth to the frozen model: nats per held-back row, 0 at least."""
        if self._all_adapt:
            return 0.0
        return max(0.0, self.mean(self.frozen_losses(self.everyone) - self.baseline_losses()))

    @property
    def _all_adapt(self) -> bool:
        return len(self.members) == self._all_demonstrations.n_members

    def _logits(self, models: Sequence[nn.Module], members: Sequence[int] | None) -> Tensor:
        known_rows = adapter.matching_row_embeddings(self._row_embeddings, models)
        return self._run(models, self._demonstrations, members, known_rows)

    def _run(
        self,
        models: Sequence[nn.Module],
        demonstrations: adapter.Demonstrations,
        members: Sequence[int] | None,
        known_rows: adapter.RowEmbeddings | None,
    ) -> Tensor:
        device = demonstrations.labels.device
        context = torch.as_tensor(self.split.guard_context, device=device)
        held_back = torch.as_tensor(self.split.held_back, device=device)
        with torch.no_grad():
            return adapter.member_logits(
                models, demonstrations, context, held_back, members, known_rows=known_rows
            ).logits
