"""What happens on one chunk: its gradient, the update made of it, and its output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tttabpfn.fast_weights import operations, update_rules
from tttabpfn.fast_weights.chunked import Chunk
from tttabpfn.fast_weights.dispatch import differentiated
from tttabpfn.fast_weights.reference.step import restore_row_norms, row_norms
from tttabpfn.lact.collectives import sum_over

__all__ = ["NORM_EPS", "UPDATED", "Carried", "Rule", "Tokens", "Weights", "Writer", "cast", "chunk_gradient", "move"]

NORM_EPS = 1e-5
"""Added to a row's norm before the division, as published."""

UPDATED = {"all": ("w0", "w1", "w2"), "last": ("w1",)}
"""Which fast weights each value of `updated` moves."""

FEATURE_BLOCK = 1 << 22
"""Elements of one block of features when nothing is differentiated: 16 MiB in float32."""

Weights = dict[str, Tensor]


class Tokens(NamedTuple):
    """Everything that has a token axis: [b, l, width], rates and momentum [b, l, 1]."""

    q: Tensor
    k: Tensor
    v: Tensor
    lr0: Tensor
    lr1: Tensor
    lr2: Tensor
    momentum: Tensor | None

    def rates(self, names: tuple[str, ...]) -> dict[str, Tensor]:
        """Rate per token of each weight named."""
        every = {"w0": self.lr0, "w1": self.lr1, "w2": self.lr2}
        return {name: every[name] for name in names}


class Rule(NamedTuple):
    """How a chunk's gradient becomes an update."""

    name: str
    options: dict[str, Any]
    norms: Weights | None
    """Row norms to give back; None: rows keep the norm that the update leaves."""
    order: str
    updated: tuple[str, ...]
    may_be_still: bool
    """Whether a rate can be zero, so that chunks have to be looked at."""
    backend: str
    group: Any = None
    """Processes that share every chunk's tokens."""

    @classmethod
    def of(
        cls,
        weights: Weights,
        tokens: Tokens,
        *,
        order: str,
        muon: bool,
        newton_schulz: str,
        newton_schulz_steps: int,
        newton_schulz_dtype: str,
        updated: str,
        weight_norm: bool,
        backend: str,
        group: Any = None,
    ) -> Rule:
        """Read the rule off the options of `lact_swiglu`."""
        options: dict[str, Any] = {"backend": backend}
        if muon:
            options |= {
                "newton_schulz": newton_schulz,
                "newton_schulz_steps": newton_schulz_steps,
                "newton_schulz_dtype": newton_schulz_dtype,
            }
        names = UPDATED[updated]
        name = "muon" if muon else "sgd" if tokens.momentum is None else "momentum"
        norms = {key: row_norms(weights[key]) for key in names} if weight_norm else None
        # Rates of other processes are unknown here, and a GPU is not asked, to keep it busy.
        ask = group is None and tokens.q.device.type == "cpu"
        still = not ask or any(bool((rate == 0).any()) for rate in tokens.rates(names).values())
        return cls(name, options, norms, order, names, still, backend, group)


class Carried(NamedTuple):
    """State between chunks: the rule's own, and the weights that updates add up in (un-normalised for pre-norm).

    `still` says, per weight, which entries [b] have had rates of zero only for as long as gradients are remembered.
    """

    rule: update_rules.State
    weights: Weights
    still: dict[str, Tensor]


def chunk_gradient(rule: Rule, tokens: Tokens, chunk: Chunk, weights: Weights) -> Weights:
    """Gradients of the chunk's loss with respect to the weights that are updated, summed over all processes."""
    window = slice(chunk.start, chunk.end)
    used = cast(weights, tokens.k)
    k, v, lr0, lr1, lr2 = (part[:, window] for part in (tokens.k, tokens.v, tokens.lr0, tokens.lr1, tokens.lr2))
    if rule.updated == ("w1",):
        gradients: tuple[Tensor, ...] = (_last_gradient(*used, k, v, lr1),)
    else:
        gradients = operations.swiglu_gradients(*used, k, v, lr0, lr1, lr2, backend=rule.backend)
    if weights["w0"].dtype != tokens.k.dtype:
        gradients = tuple(gradient.to(weights["w0"].dtype) for gradient in gradients)
    if rule.group is not None:
        gradients = sum_over(gradients, rule.group)
    return dict(zip(rule.updated, gradients, strict=True))


def _last_gradient(w0: Tensor, w1: Tensor, w2: Tensor, k: Tensor, v: Tensor, lr1: Tensor) -> Tensor:
    """``-sum_t lr1_t v_t phi(k_t)^T``, with phi(k) = silu(w0 k) * (w2 k); block by block without autograd."""
    size = k.shape[1] if differentiated([w0, w2, k, v, lr1]) else max(1, FEATURE_BLOCK // (w0.shape[0] * w0.shape[1]))
    total = w1.new_zeros(w1.shape)
    for start in range(0, k.shape[1], size):
        k_block, v_block, rate = (part[:, start : start + size] for part in (k, v, lr1))
        features = F.silu(k_block @ w0.mT) * (k_block @ w2.mT)
        total = total - (v_block * rate).to(v.dtype).mT @ features
    return total


def cast(weights: Weights, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """w0, w1, w2 in the dtype of the tokens."""
    if weights["w0"].dtype == tokens.dtype:
        return weights["w0"], weights["w1"], weights["w2"]
    return weights["w0"].to(tokens.dtype), weights["w1"].to(tokens.dtype), weights["w2"].to(tokens.dtype)


def still_rates(rule: Rule, tokens: Tokens, chunk: Chunk) -> dict[str, Tensor]:
    """Entries [b] whose rates are all zero in the chunk, per updated weight."""
    rates = tokens.rates(rule.updated)
    still = {key: (rate[:, chunk.start : chunk.end] == 0).flatten(1).all(dim=1) for key, rate in rates.items()}
    if rule.group is not None:
        (moved,) = sum_over((torch.stack([(~one).float() for one in still.values()]),), rule.group)
        still = {key: row == 0 for key, row in zip(still, moved, strict=True)}
    return still


def mean_momentum(rule: Rule, tokens: Tokens, chunk: Chunk) -> Tensor | None:
    """The chunk's mean factor per entry [b]; None without momentum."""
    if tokens.momentum is None:
        return None
    mean = tokens.momentum[:, chunk.start : chunk.end].mean(dim=(1, 2))
    if rule.group is not None:
        (mean,) = sum_over((mean / rule.group.size(),), rule.group)
    return mean


def update_chunk(
    rule: Rule, tokens: Tokens, chunk: Chunk, current: Weights, gradients: Weights, carried: Carried
) -> tuple[Weights, Carried]:
    """Move the weights by one chunk that is all here."""
    still = still_rates(rule, tokens, chunk) if rule.may_be_still else {}
    return move(rule, current, gradients, mean_momentum(rule, tokens, chunk), still, carried)


def move(
    rule: Rule,
    current: Weights,
    gradients: Weights,
    momentum: Tensor | None,
    still: Mapping[str, Tensor],
    carried: Carried,
) -> tuple[Weights, Carried]:
    """One update at step size 1: the rates are in the gradient already.

    `still` tells, per weight, which entries [b] had rates of zero only in this chunk: they keep their bits unless a
    gradient is remembered.
    """
    moved, state = update_rules.update(
        rule.name,
        carried.weights,
        gradients,
        carried.rule,
        1.0,
        momentum=0.0 if momentum is None else momentum,
        restore_norms=rule.norms is not None and rule.order != "causal-prenorm",
        initial_norms=rule.norms,
        norm_eps=NORM_EPS,
        **rule.options,
    )
    if momentum is not None:
        still = {key: one & carried.still[key] if key in carried.still else one for key, one in still.items()}
    kept = dict(still)
    moved = _keep_bits(kept, carried.weights, moved)
    after = Carried(state, moved, kept)
    if rule.order != "causal-prenorm" or rule.norms is None:
        return moved, after
    used = dict(moved)
    for key, norms in rule.norms.items():
        used[key] = restore_row_norms(moved[key], norms, NORM_EPS)
    return _keep_bits(kept, current, used), after


def _keep_bits(still: dict[str, Tensor], before: Weights, after: Weights) -> Weights:
    """Where an entry is still, the value before; the derivative is that of `after` either way."""
    kept = dict(after)
    for key, entries in still.items():
        old = before[key]
        if differentiated([after[key]]):
            old = old.detach() + (after[key] - after[key].detach())
        kept[key] = torch.where(entries.reshape(-1, 1, 1), old, after[key])
    return kept


class Writer:
    """Collects outputs: into one buffer without autograd, by concatenation with it."""

    def __init__(self, chunks: list[Chunk], tokens: Tokens, weights: Weights, backend: str) -> None:
        self._q, self._backend = tokens.q, backend
        used = [tensor for tensor in (*tokens, *weights.values()) if tensor is not None]
        self._shape = (tokens.q.shape[0], sum(c.end - c.start for c in chunks if c.apply), weights["w1"].shape[1])
        self._buffer = None if differentiated(used) else tokens.q.new_empty(self._shape)
        self._written = 0

    def apply(self, chunk: Chunk, weights: Weights) -> Tensor:
        """Output of one chunk, kept in its place."""
        stop = self._written + chunk.end - chunk.start
        out = None if self._buffer is None else self._buffer[:, self._written : stop]
        self._written = stop
        tokens = self._q[:, chunk.start : chunk.end]
        return operations.swiglu_apply(*cast(weights, tokens), tokens, out, backend=self._backend)

    def result(self, outputs: list[Tensor]) -> Tensor:
        """All outputs in order."""
        if self._buffer is not None:
            return self._buffer
        return torch.cat(outputs, dim=1) if outputs else self._q.new_empty(self._shape)
