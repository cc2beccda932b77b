"""The gradient path: chunked updates of TabPFN's own weights on episodes of the demonstrations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tttabpfn import tabpfn_adapter as adapter
from tttabpfn.adaptation.episodes import RowIndices, Split, draw_episode, seeded
from tttabpfn.adaptation.fast_model import FastModel, Stacks
from tttabpfn.adaptation.settings import Settings
from tttabpfn.fast_weights import update_rules
from tttabpfn.fast_weights.chunked import Chunk, accumulate, run_chunks
from tttabpfn.fast_weights.reference.step import row_norms
from tttabpfn.fast_weights.rules import RULES

EPISODE_BRANCH = 1
_BYTES_PER_ROW_AND_COLUMN = 24_000
"""Of a gradient, per row, prepared column and member: a round estimate, how it was found is not recorded. Where it is
too low for a network, micro-batches run out of memory once and are halved."""
_MICRO_BATCH_BYTES = 4 * 1024**3
_MICRO_BATCH_SHARE = 0.5
_MIN_MICRO_BATCH = 32
"""Chosen, not measured: bytes on a CPU, share of a GPU's memory, and query rows that a micro-batch has at least."""


@dataclass(frozen=True)
class PathPoint:
    """Where a path stands after some updates; a value, from which the path can go on.

    Parameters
    ----------
    step : int
        Updates done.
    weights : dict of Tensor
        Stacked fast weights.
    state : State
        The update rule's state.
    losses : tuple of float
        Each step's query loss before its update.
    notes : tuple of str
        Halved micro-batches.
    """

    step: int
    weights: Stacks
    state: update_rules.State
    losses: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass
class FirstGradient:
    """The gradient at the frozen weights, which every path with the same first episode starts with.

    Parameters
    ----------
    computed : tuple or None
        Gradients by parameter name, loss and notes, once a path has computed them.
    keeps_factors : bool
        Whether paths of other step sizes will want Muon's orthogonal factors too.
    orthogonal : dict of Tensor or None
        These factors, once a path has computed them.
    """

    computed: tuple[dict[str, Tensor], float, tuple[str, ...]] | None = None
    keeps_factors: bool = False
    orthogonal: dict[str, Tensor] | None = None

    @property
    def nbytes(self) -> int:
        """Size of the gradients in bytes."""
        gradients = {} if self.computed is None else self.computed[0]
        return sum(tensor.nbytes for tensor in (*gradients.values(), *(self.orthogonal or {}).values()))


class GradientPath:
    """Walks along gradient steps on episodes; the same episodes for every candidate step size.

    Parameters
    ----------
    fast : FastModel
        The weights to adapt.
    demonstrations : Demonstrations
        RowIndices of all ensemble members.
    split : Split
        Which rows may be used.
    settings : Settings
        Number of steps, chunk size, update rule and recipe.
    first : FirstGradient, optional
        Shared with other paths that start with the same episode.
    known_rows : RowEmbeddings, optional
        Where row embeddings are kept that the fast weights leave as they are.
    """

    def __init__(
        self,
        fast: FastModel,
        demonstrations: adapter.Demonstrations,
        split: Split,
        settings: Settings,
        first: FirstGradient | None = None,
        known_rows: adapter.RowEmbeddings | None = None,
    ) -> None:
        self.fast = fast
        self.demonstrations = demonstrations
        self.split = split
        self.settings = settings
        self.micro_batch = settings.chunk_size
        self._first = FirstGradient() if first is None else first
        self.known_rows = known_rows

    def start(self) -> PathPoint:
        """The frozen weights, before any update."""
        return PathPoint(0, self.fast.initial, update_rules.init_state(self.settings.update_rule, self.fast.initial))

    def walk(
        self,
        point: PathPoint,
        until: int,
        step_size: float,
        *,
        observer: Callable[[PathPoint], None] | None = None,
        episode: Callable[[int], tuple[RowIndices, RowIndices]] | None = None,
        schedule: Callable[[int], float] | None = None,
    ) -> PathPoint:
        """Take updates from a point of the path on.

        Parameters
        ----------
        point : PathPoint
            Where to start.
        until : int
            Number of updates to have done at the end.
        step_size : float
            Per update, before the schedule.
        observer : callable, optional
            Called with the point reached after every update.
        episode : callable, optional
            Context and queries of a step, by default drawn from the split's pool.
        schedule : callable, optional
            Factor on the step size by step, by default warm-up and cosine.

        Returns
        -------
        PathPoint
            After `until` updates.
        """
        settings, recipe = self.settings, self.settings.recipe
        draw = self.episode if episode is None else episode
        factor = self.schedule if schedule is None else schedule
        losses, notes = list(point.losses), list(point.notes)
        norms = {key: row_norms(stack) for key, stack in self.fast.initial.items() if stack.ndim == 3}

        def is_shared(step: int) -> bool:
            # All paths draw the same first episode and take its gradient at the same, frozen, weights: the first one
            # to get there computes it, and its orthogonal factors, for all. Episodes of the caller's own are not those.
            return step == 0 and episode is None

        def gradient(chunk: Chunk, weights: Stacks) -> Stacks:
            step = chunk.start
            if is_shared(step) and self._first.computed is not None:
                named, loss, said = self._first.computed
            else:
                named, loss, said = self._gradient(step, weights, *draw(step))
                if is_shared(step):
                    self._first.computed = (named, loss, said)
            losses.append(loss)
            notes.extend(said)
            return self.fast.layout.stack(named)

        def update(
            chunk: Chunk, weights: Stacks, gradients: Stacks, state: update_rules.State
        ) -> tuple[Stacks, update_rules.State]:
            step, orthogonal = chunk.start, None
            if is_shared(step) and self._first.keeps_factors and RULES[settings.update_rule].is_orthogonal:
                if self._first.orthogonal is None:
                    made = update_rules.orthogonal_factors(gradients, state, backend=settings.backend)
                    self._first.orthogonal = made
                orthogonal = self._first.orthogonal
            return update_rules.update(
                settings.update_rule,
                weights,
                gradients,
                state,
                step_size * factor(step),
                scale=recipe.scale,
                restore_norms=recipe.restore_norms and RULES[settings.update_rule].is_orthogonal,
                initial_norms=norms,
                backend=settings.backend,
                orthogonal=orthogonal,
            )

        def observe(chunk: Chunk, weights: Stacks, state: update_rules.State) -> None:
            if observer is not None:
                observer(PathPoint(chunk.end, weights, state, tuple(losses), tuple(notes)))

        # A chunk is a step here: its queries are drawn, not cut from a sequence.
        chunks = [Chunk(step, step + 1, apply=False) for step in range(point.step, until)]
        run = run_chunks(chunks, point.weights, point.state, gradient=gradient, update=update, observer=observe)
        return PathPoint(until, run.weights, run.state, tuple(losses), tuple(notes))

    def schedule(self, step: int) -> float:
        """Factor on the step size at a step: linear warm-up, then a cosine down to the final share."""
        recipe, n_steps = self.settings.recipe, self.settings.n_steps
        warm_up = round(recipe.warm_up_share * n_steps)
        if step < warm_up:
            return (step + 1) / (warm_up + 1)
        progress = (step - warm_up) / max(1, n_steps - warm_up)
        return recipe.final_share + (1 - recipe.final_share) * 0.5 * (1 + math.cos(math.pi * progress))

    def episode(self, step: int) -> tuple[RowIndices, RowIndices]:
        """Context and queries of a step, from the seed tree."""
        rng = seeded(self.settings.seed, EPISODE_BRANCH, step)
        return draw_episode(self.split, step=step, chunk_size=self.settings.chunk_size, rng=rng)

    def _gradient(
        self, step: int, weights: Stacks, context: RowIndices, query: RowIndices
    ) -> tuple[dict[str, Tensor], float, tuple[str, ...]]:
        """Gradient of the mean query loss, accumulated over micro-batches of queries."""
        self.fast.load(weights)
        device = self.demonstrations.labels.device
        rows = torch.as_tensor(context, device=device)
        queries = torch.as_tensor(query, device=device)
        members = self._members(step)
        all_weights = self.demonstrations.weights

        def gradient_of_slice(start: int, end: int) -> dict[str, Tensor]:
            part = queries[start:end]
            logits = adapter.member_logits(
                self.fast.models, self.demonstrations, rows, part, members, known_rows=self.known_rows
            ).logits
            weights = None if all_weights is None else all_weights[part]
            loss = query_loss(logits, self.demonstrations.labels[part], self.demonstrations.temperature, weights)
            if weights is None or all_weights is None:
                loss = loss * (len(part) / len(queries))
            else:
                loss = loss * (weights.sum() / all_weights[queries].sum())
            return {**self.fast.gradients(loss), "": loss.detach()}

        micro_batch = max(1, min(self.micro_batch, self._affordable(len(rows), len(members))))
        done = accumulate(gradient_of_slice, 0, len(queries), micro_batch)
        if done.halvings:
            self.micro_batch = done.micro_batch
        total = dict(done.total)
        return total, float(total.pop("")), done.notes

    def _members(self, step: int) -> list[int]:
        n_members = self.demonstrations.n_members
        size = min(self.settings.recipe.members_per_step, n_members)
        return [(step * size + position) % n_members for position in range(size)]

    def _affordable(self, n_context: int, n_members: int) -> int:
        """Query rows per micro-batch within the device's fixed budget: the same bits whatever memory is free."""
        per_row = _BYTES_PER_ROW_AND_COLUMN * self.demonstrations.columns * n_members
        return max(micro_batch_bytes(self.demonstrations.labels.device) // per_row - n_context, _MIN_MICRO_BATCH)


def query_loss(logits: Tensor, labels: Tensor, temperature: float, weights: Tensor | None = None) -> Tensor:
    """Mean cross-entropy over members and rows, in nats per row, of raw logits (M, Q, K) given class codes (Q,).

    With weights (Q,) a row of weight 2 counts as two rows.
    """
    n_members, n_queries, n_classes = logits.shape
    flat = (logits / temperature).reshape(n_members * n_queries, n_classes)
    if weights is None:
        return nn.functional.cross_entropy(flat, labels.repeat(n_members))
    losses = nn.functional.cross_entropy(flat, labels.repeat(n_members), reduction="none")
    share = (weights / weights.sum()).to(losses.dtype)
    return (losses.reshape(n_members, n_queries) * share).sum(dim=1).mean()


def micro_batch_bytes(device: torch.device) -> int:
    """Memory that a micro-batch of queries, with its context, may take by estimate.

    It depends on what the device is, never on how much of it is free, so that the sums of a gradient are taken in the
    same order in every run. Where it turns out too much, micro-batches are halved, and the report says so.
    """
    if device.type == "cuda":
        return int(_MICRO_BATCH_SHARE * torch.cuda.get_device_properties(device).total_memory)
    return _MICRO_BATCH_BYTES
