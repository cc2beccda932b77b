"""A stream: what stands still (context, networks, encoders), and sums and a reservoir that rows are added to."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tabpfn import TabPFNClassifier
from torch import Tensor

from tttabpfn import tabpfn_adapter as adapter
from tttabpfn.adaptation.guard import Verdict, row_losses, weigh
from tttabpfn.inputs.data import take_rows
from tttabpfn.memory.columns import ColumnEncoder
from tttabpfn.memory.inputs import MemoryInputs
from tttabpfn.memory.memory import Memory
from tttabpfn.memory.mixture import cross_fitted_mixture, mixture_shares, prior_shares
from tttabpfn.memory.parts import Part
from tttabpfn.memory.rows import KeyScale
from tttabpfn.memory.sums import Sums
from tttabpfn.prediction.streaming.reservoir import Reservoir, folds_of, row_hashes

ROWS_PER_PASS = 4096


@dataclass(frozen=True)
class StreamRecipe:
    """Choices of the sum-state memory.

    Parameters
    ----------
    blocks : tuple of (str, str)
        Keys and start of each family of parts, as `Family` names them.
    penalties : tuple of float
        One part each; they are chosen among where the sums are read, not where they are made.
    folds : int
        Parts of the rows, dealt by their hash, each of which is scored by the sums of the others.
    reservoir : int
        Rows kept to find the parts' shares on, at most.
    model_share, prior_rows, min_share, min_trust : float
        As in `MemoryRecipe`.
    """

    blocks: tuple[tuple[str, str], ...] = (("both", "model"), ("embedding", "model"), ("columns", "shares"))
    penalties: tuple[float, ...] = (1e-3, 1e-2, 1e-1)
    folds: int = 4
    reservoir: int = 2000
    model_share: float = 0.5
    prior_rows: float = 1.0
    min_share: float = 0.02
    min_trust: float = 0.5


@dataclass(frozen=True)
class Ground:
    """What stands still while rows come and go.

    Parameters
    ----------
    inner : TabPFNClassifier
        Fitted on the context rows.
    columns : ColumnEncoder
        Fitted on them.
    scale : KeyScale
        Of their embeddings, each made without itself in the context.
    log_shares : Tensor of shape (K,)
        Logarithms of their class shares.
    averages_logits : bool
        Whether members are ensembled by the mean of their logits.
    known : Reservoir
        The context's rows as the model sees them without themselves in the context; one of each class is left out.
    recipe : StreamRecipe
    sums : tuple of Sums
        Over these rows.
    """

    inner: TabPFNClassifier
    columns: ColumnEncoder
    scale: KeyScale
    log_shares: Tensor
    averages_logits: bool
    known: Reservoir
    recipe: StreamRecipe = field(default_factory=StreamRecipe)
    sums: tuple[Sums, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sums", self.sums_of(self.known))

    def read(self, X: Any, labels: NDArray[np.int64], weights: NDArray[np.float64]) -> Reservoir:
        """Embed rows given the context; all of them, as a reservoir without a bound."""
        rows = adapter.predict_with_embeddings(self.inner, X)
        scaled = rows.logits / float(self.inner.softmax_temperature_)
        table = np.asarray(rows.table, dtype=np.float64)
        return Reservoir(
            row_hashes(table, labels), labels, weights, rows.embeddings.cpu().numpy(), scaled.cpu().numpy(), table
        )

    def inputs(self, rows: Reservoir) -> MemoryInputs:
        """What memories read of rows."""
        keys, cells = self.columns.transform(rows.table)
        embeddings, logits = torch.as_tensor(rows.embeddings), torch.as_tensor(rows.logits)
        return MemoryInputs(embeddings, logits, torch.as_tensor(keys), cells, self.averages_logits)

    def sums_of(self, rows: Reservoir) -> tuple[Sums, ...]:
        """Sums over rows, one for every block of keys."""
        inputs, n_folds = self.inputs(rows), self.recipe.folds
        labels, weights = torch.as_tensor(rows.labels), torch.as_tensor(rows.weights)
        folds = torch.as_tensor(folds_of(rows.hashes, n_folds))
        return tuple(
            Sums.of(
                inputs.keys(block, self.scale), inputs.start(start, self.log_shares), labels, folds, weights, n_folds
            )
            for block, start in self.recipe.blocks
        )

    def averaged(self, scaled: Tensor) -> NDArray[np.float64]:
        """Probabilities from scaled logits, ensembled as at predict."""
        temperature = float(self.inner.softmax_temperature_)
        return np.asarray(adapter.averaged(self.inner, scaled * temperature), dtype=np.float64)


@dataclass(frozen=True)
class Stream:
    """Rows so far, as sums and a reservoir; a value, which additions do not change.

    Parameters
    ----------
    sums : tuple of Sums
        One for every block of keys; the context's own rows are not among them.
    reservoir : Reservoir
    n_rows : int
        Rows added and not taken back.
    first : Stream or None
        The rows of `fit` alone: two streams that began with them count them once when they are merged.
    first_print : str
        Fingerprint of these rows.
    is_decayed : bool
        Whether former rows were made to weigh less at any time.
    token : str
        Tells this value from others.
    """

    sums: tuple[Sums, ...]
    reservoir: Reservoir
    n_rows: int
    first: Stream | None = None
    first_print: str = ""
    is_decayed: bool = False
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def empty(cls, ground: Ground) -> Stream:
        """No rows."""
        return cls(tuple(one.times(0.0) for one in ground.sums), ground.known.of(np.zeros(len(ground.known), bool)), 0)

    def added(
        self, ground: Ground, X: Any, labels: NDArray[np.int64], weights: NDArray[np.float64], decay: float = 1.0
    ) -> Stream:
        """With more rows; those so far weigh `decay` times as much from now on."""
        found = self if decay == 1.0 else self._decayed(decay)
        for rows in _read(ground, X, labels, weights):
            found = found._with(
                _plus(found.sums, ground.sums_of(rows)),
                found.reservoir.joined(rows, ground.recipe.reservoir),
                found.n_rows + len(rows),
            )
        return found

    def as_first(self, first_print: str) -> Stream:
        """The same, its rows being those of `fit`."""
        return replace(self, first=self, first_print=first_print)

    def _with(self, sums: tuple[Sums, ...], reservoir: Reservoir, n_rows: int) -> Stream:
        return replace(self, sums=sums, reservoir=reservoir, n_rows=n_rows, token=uuid.uuid4().hex)

    def without(self, ground: Ground, X: Any, labels: NDArray[np.int64], weights: NDArray[np.float64]) -> Stream:
        """Without rows that were added before, given the weights that they were added with.

        Raises
        ------
        ValueError
            If there are more of them than were added, or some that the reservoir would hold are not there.
        """
        if len(labels) > self.n_rows:
            raise ValueError(f"X holds {len(labels)} rows, but only {self.n_rows} outside the context were given.")
        found = self
        for rows in _read(ground, X, labels, weights):
            found = found._with(
                _plus(found.sums, ground.sums_of(rows), -1.0),
                found.reservoir.without(rows.hashes),
                found.n_rows - len(rows),
            )
        return found

    def merged(self, ground: Ground, other: Stream) -> Stream:
        """With the rows of another stream on the same ground; rows of the same `fit` count once.

        Raises
        ------
        ValueError
            If one of them has made former rows weigh less: what counts once would weigh two things.
        """
        if self.is_decayed or other.is_decayed:
            raise ValueError("decay must have been 1 in every call of partial_fit for merge.")
        sums, n_rows = _plus(self.sums, other.sums), self.n_rows + other.n_rows
        reservoir = self.reservoir.joined(other.reservoir, 2 * ground.recipe.reservoir)
        if self.first is not None and self.first_print == other.first_print:
            sums, n_rows = _plus(sums, self.first.sums, -1.0), n_rows - self.first.n_rows
            reservoir = reservoir.without(self.first.reservoir.hashes)
        return self._with(sums, reservoir.bounded(ground.recipe.reservoir), n_rows)

    def _decayed(self, factor: float) -> Stream:
        reservoir = replace(self.reservoir, weights=factor * self.reservoir.weights)
        found = self._with(tuple(one.times(factor) for one in self.sums), reservoir, self.n_rows)
        return replace(found, is_decayed=True)

    def written(self, ground: Ground) -> WrittenSums:
        """What predicts: the parts' shares are found on the reservoir, whose rows the sums of other folds score."""
        recipe = ground.recipe
        # Rows of the context count once, whatever came since; they were embedded without themselves in it.
        rows = self.reservoir.joined(ground.known, recipe.reservoir + len(ground.known))
        if len(rows) < 2 * recipe.folds:
            why = f"{len(rows)} rows are too few to tell a better mixture from a worse one"
            return WrittenSums(None, Verdict(False, why, 0.0, np.inf), len(rows))
        inputs, folds = ground.inputs(rows), folds_of(rows.hashes, recipe.folds)
        finished = [ground.averaged(inputs.logits)]
        parts: list[Part] = []
        for (block, start), sums in zip(recipe.blocks, _plus(self.sums, ground.sums), strict=True):
            keys, logits = inputs.keys(block, ground.scale), inputs.start(start, ground.log_shares)
            for penalty in recipe.penalties:
                read = logits.expand(keys.shape[0], -1, -1).clone()
                for fold in range(recipe.folds):
                    own = torch.as_tensor(np.flatnonzero(folds == fold))
                    read[:, own] += keys[:, own] @ sums.weights(penalty, without=fold).mT
                finished.append(ground.averaged(read))
                parts.append(Part("linear", block, start, penalty, {"w": sums.weights(penalty)}))
        prior = prior_shares(len(parts), recipe.model_share)
        stacked, labels, weights = np.stack(finished), rows.labels, rows.weights
        crossed = cross_fitted_mixture(stacked, labels, folds, prior, recipe.prior_rows, weights)
        before, after = (row_losses(adapter.finished(ground.inner, mixed), labels) for mixed in (stacked[0], crossed))
        verdict, share = weigh(before, after, min_trust=recipe.min_trust, weights=weights)
        if not verdict.accepted:
            return WrittenSums(None, verdict, len(rows), before, after)
        chosen = stacked[:, np.arange(len(labels)), labels]
        shares = share * mixture_shares(chosen, prior, recipe.prior_rows, weights)
        shares[0] += 1.0 - share
        memory = Memory.of_shares(ground.scale, ground.log_shares, parts, shares, recipe.min_share)
        return WrittenSums(memory, verdict, len(rows), before, after)


@dataclass(frozen=True)
class WrittenSums:
    """A memory read off sums, None if the model predicts alone; the verdict, and the losses behind it."""

    memory: Memory | None
    verdict: Verdict
    n_rows: int
    before: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    after: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))


def _read(ground: Ground, X: Any, labels: NDArray[np.int64], weights: NDArray[np.float64]) -> Iterator[Reservoir]:
    for start in range(0, len(labels), ROWS_PER_PASS):
        own = np.arange(start, min(start + ROWS_PER_PASS, len(labels)))
        yield ground.read(take_rows(X, own), labels[own], weights[own])


def _plus(sums: tuple[Sums, ...], others: tuple[Sums, ...], sign: float = 1.0) -> tuple[Sums, ...]:
    return tuple(one.plus(other, sign) for one, other in zip(sums, others, strict=True))
