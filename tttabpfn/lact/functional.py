"""LaCT's SwiGLU operation as a function: the shared chunk loop with SwiGLU leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tttabpfn.fast_weights import operations, update_rules
from tttabpfn.fast_weights.chunked import Chunk, plan_chunks, run_chunks
from tttabpfn.fast_weights.dispatch import differentiated
from tttabpfn.fast_weights.reference.step import restore_row_norms, row_norms
from tttabpfn.lact.checks import check_operation

__all__ = ["NORM_EPS", "lact_swiglu"]

NORM_EPS = 1e-5
"""Added to a row's norm before the division, as published."""

Weights = dict[str, Tensor]


class _Inputs(NamedTuple):
    """Everything that has a token axis."""

    q: Tensor
    k: Tensor
    v: Tensor
    lr0: Tensor
    lr1: Tensor
    lr2: Tensor
    momentum: Tensor | None


class _Rule(NamedTuple):
    """How a chunk's gradient becomes an update."""

    name: str
    options: dict[str, object]
    norms: Weights
    prenorm: bool
    may_be_still: bool


class _Carried(NamedTuple):
    """State between chunks: the rule's own, and the weights that updates add up in (un-normalised for pre-norm).

    `still` says, per weight, which entries [b] have had rates of zero only for as long as gradients are remembered.
    """

    rule: update_rules.State
    weights: Weights
    still: dict[str, Tensor]


def lact_swiglu(
    w0: Tensor,
    w1: Tensor,
    w2: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr0: Tensor,
    lr1: Tensor,
    lr2: Tensor,
    *,
    order: str = "causal",
    chunk_size: int | None = None,
    operators: Sequence[tuple[int, int, bool, bool]] | None = None,
    momentum: Tensor | None = None,
    muon: bool = False,
    newton_schulz: str = "schedule",
    newton_schulz_steps: int = 5,
    newton_schulz_dtype: str = "float32",
    backend: str = "auto",
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    r"""Update SwiGLU fast weights chunk by chunk on keys and values, and apply them to queries.

    The fast weight is :math:`f(x) = w_1 (\mathrm{silu}(w_0 x) \odot w_2 x)`, a token's loss :math:`-f(k)^T v`, weighted
    by its own rate for each weight. One update per chunk: the gradient summed over the chunk, plus `momentum` times the
    running gradient, orthogonalised if `muon`, is subtracted; then each row gets back the L2 norm it had at the start
    (1e-5 is added to the norm that is divided by).

    Guaranteed: inputs are not written; a chunk whose rates are all zero (with momentum: those before it as well) keeps
    the weights' bits; the chunk size changes the maths, but memory beyond inputs and outputs does not grow with it;
    differentiable in every tensor with the torch backend.

    Letters: b batch (heads included), l tokens, dk key width, dv value width, dh hidden width.

    Parameters
    ----------
    w0, w2 : Tensor of shape [b, dh, dk]
    w1 : Tensor of shape [b, dv, dh]
        Starting fast weights, all of one dtype: float32 or float64 (in bfloat16 small updates round away).
    q, k : Tensor of shape [b, l, dk]
    v : Tensor of shape [b, l, dv]
        All of one dtype. If it is not the weights', matrix products run in the tokens' dtype (bfloat16 on a GPU, say)
        while weights, updates and norms keep their own.
    lr0, lr1, lr2 : Tensor of shape [b, l, 1]
        Rate per token, for w0, w1 and w2, any floating-point dtype. Without `muon` an update is rate times gradient;
        with `muon` only the rates' ratios within the chunk matter, for each weight alone.
    order : {"causal", "causal-prenorm", "operators"}, default="causal"
        "causal": per chunk apply, then update; the last chunk is only applied. "causal-prenorm": the same, but
        un-normalised weights are carried on and a normalised copy is used. "operators": see `operators`.
    chunk_size : int
        Tokens per chunk in the causal orders, 1 or more; the last chunk may be shorter.
    operators : list of (start, end, update, apply)
        For ``order="operators"``: per entry update on ``[start, end)`` if `update`, then apply if `apply`. Windows
        may overlap, leave gaps and come in any order. ``[(0, l, True, True)]`` treats the tokens as a set.
    momentum : Tensor of shape [b, l, 1], optional
        The chunk's mean is the factor on the running gradient. None: no momentum.
    muon : bool, default=False
        Whether each weight's gradient is orthogonalised, alone.
    newton_schulz : {"schedule", "fixed"}, default="schedule"
    newton_schulz_steps : int, default=5
    newton_schulz_dtype : {"float32", "bfloat16"}, default="float32"
        See `tttabpfn.fast_weights.reference.newton_schulz`. 0 steps only divide by the Frobenius norm.
    backend : {"auto", "torch", "triton"}, default="auto"
        Who runs the leaf operations; "triton" runs or raises.

    Returns
    -------
    o : Tensor of shape [b, l, dv]
        Outputs of applied windows, concatenated in order, in the dtype of q; for "operators" as long as the applied
        windows together.
    weights : tuple of Tensor
        ``(w0, w1, w2)`` after the last update; for "causal-prenorm" the un-normalised ones.

    Raises
    ------
    ValueError
        If a shape, dtype, order, chunk size or operator is not as above.
    RuntimeError
        If ``backend="triton"`` cannot run here.

    Notes
    -----
    Zhang et al. 2025, "Test-Time Training Done Right" (arXiv 2505.23884).

    Examples
    --------
    >>> import torch
    >>> draw = torch.Generator().manual_seed(0)
    >>> w0, w2, w1 = (torch.randn(2, 8, 8, generator=draw) / 8**0.5 for _ in range(3))
    >>> q, k, v = (torch.randn(2, 10, 8, generator=draw) for _ in range(3))
    >>> rate = torch.full((2, 10, 1), 0.01)
    >>> o, (w0_new, _, _) = lact_swiglu(w0, w1, w2, q, k, v, rate, rate, rate, chunk_size=4, muon=True)
    >>> o.shape, bool(torch.allclose(w0_new.norm(dim=-1), w0.norm(dim=-1), rtol=1e-4))
    (torch.Size([2, 10, 8]), True)
    >>> operators = [(0, 8, True, False), (8, 10, False, True)]
    >>> o, _ = lact_swiglu(w0, w1, w2, q, k, v, rate, rate, rate, order="operators", operators=operators)
    >>> o.shape
    torch.Size([2, 2, 8])
    """
    inputs = _Inputs(q, k, v, lr0, lr1, lr2, momentum)
    weights = {"w0": w0, "w1": w1, "w2": w2}
    check_operation(weights, inputs._asdict(), order, chunk_size, operators)
    if order == "operators":
        chunks = [Chunk(start, end, bool(update), bool(apply)) for start, end, update, apply in operators or ()]
    else:
        chunks = plan_chunks(q.shape[1], chunk_size or 0, update_last=False)
    name = "muon" if muon else "sgd" if momentum is None else "momentum"
    options: dict[str, object] = {"backend": backend}
    if muon:
        options |= {
            "newton_schulz": newton_schulz,
            "newton_schulz_steps": newton_schulz_steps,
            "newton_schulz_dtype": newton_schulz_dtype,
        }
    norms = {key: row_norms(weight) for key, weight in weights.items()}
    rule = _Rule(name, options, norms, order == "causal-prenorm", _may_be_still(inputs))
    writer = _Writer(chunks, inputs, weights, backend)
    run = run_chunks(
        chunks,
        weights,
        _Carried(update_rules.init_state(name, weights), weights, {}),
        gradient=lambda chunk, current: _gradient(inputs, chunk, current, backend),
        update=lambda chunk, current, gradients, carried: _update(rule, inputs, chunk, current, gradients, carried),
        apply=writer.apply,
        order="update_then_apply" if order == "operators" else "apply_then_update",
    )
    last = run.state.weights
    return writer.result(run.outputs), (last["w0"], last["w1"], last["w2"])


def _gradient(inputs: _Inputs, chunk: Chunk, weights: Weights, backend: str) -> Weights:
    window = slice(chunk.start, chunk.end)
    tokens = (tensor[:, window] for tensor in (inputs.k, inputs.v, inputs.lr0, inputs.lr1, inputs.lr2))
    gradients: tuple[Tensor, ...] = operations.swiglu_gradients(*_cast(weights, inputs.k), *tokens, backend=backend)
    if weights["w0"].dtype != inputs.k.dtype:
        gradients = tuple(gradient.to(weights["w0"].dtype) for gradient in gradients)
    return dict(zip(weights, gradients, strict=True))


def _cast(weights: Weights, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """w0, w1, w2 in the dtype of the tokens."""
    if weights["w0"].dtype == tokens.dtype:
        return weights["w0"], weights["w1"], weights["w2"]
    return weights["w0"].to(tokens.dtype), weights["w1"].to(tokens.dtype), weights["w2"].to(tokens.dtype)


def _update(
    rule: _Rule, inputs: _Inputs, chunk: Chunk, current: Weights, gradients: Weights, carried: _Carried
) -> tuple[Weights, _Carried]:
    """One update at step size 1: the rates are in the gradient already."""
    factor: float | Tensor = 0.0
    if inputs.momentum is not None:
        factor = inputs.momentum[:, chunk.start : chunk.end].mean(dim=(1, 2))
    moved, state = update_rules.update(
        rule.name,
        carried.weights,
        gradients,
        carried.rule,
        1.0,
        momentum=factor,
        restore_norms=not rule.prenorm,
        initial_norms=rule.norms,
        norm_eps=NORM_EPS,
        **rule.options,  # type: ignore[arg-type]
    )
    still = _still(inputs, chunk, carried) if rule.may_be_still else {}
    moved = _keep_bits(still, carried.weights, moved)
    if not rule.prenorm:
        return moved, _Carried(state, moved, still)
    used = {key: restore_row_norms(moved[key], rule.norms[key], NORM_EPS) for key in moved}
    return _keep_bits(still, current, used), _Carried(state, moved, still)


def _may_be_still(inputs: _Inputs) -> bool:
    """False if no rate is zero, so that no chunk has to be looked at; a GPU is not asked, to keep it busy."""
    rates = (inputs.lr0, inputs.lr1, inputs.lr2)
    return inputs.q.device.type != "cpu" or any(bool((rate == 0).any()) for rate in rates)


def _still(inputs: _Inputs, chunk: Chunk, carried: _Carried) -> dict[str, Tensor]:
    """Entries [b] whose update is zero: all rates of the chunk are, and so were all before it that momentum keeps."""
    still = {}
    for key, rate in zip(carried.weights, (inputs.lr0, inputs.lr1, inputs.lr2), strict=True):
        still[key] = (rate[:, chunk.start : chunk.end] == 0).flatten(1).all(dim=1)
        if inputs.momentum is not None and key in carried.still:
            still[key] = still[key] & carried.still[key]
    return still


def _keep_bits(still: dict[str, Tensor], before: Weights, after: Weights) -> Weights:
    """Where an entry is still, the value before; the derivative is that of `after` either way."""
    kept = dict(after)
    for key, entries in still.items():
        old = before[key]
        if differentiated([after[key]]):
            old = old.detach() + (after[key] - after[key].detach())
        kept[key] = torch.where(entries.reshape(-1, 1, 1), old, after[key])
    return kept


class _Writer:
    """Collects outputs: into one buffer without autograd, by concatenation with it."""

    def __init__(self, chunks: list[Chunk], inputs: _Inputs, weights: Weights, backend: str) -> None:
        self._q, self._backend = inputs.q, backend
        used = [tensor for tensor in (*inputs, *weights.values()) if tensor is not None]
        self._shape = (inputs.q.shape[0], sum(c.end - c.start for c in chunks if c.apply), weights["w1"].shape[1])
        self._buffer = None if differentiated(used) else inputs.q.new_empty(self._shape)
        self._written = 0

    def apply(self, chunk: Chunk, weights: Weights) -> Tensor:
        stop = self._written + chunk.end - chunk.start
        out = None if self._buffer is None else self._buffer[:, self._written : stop]
        self._written = stop
        tokens = self._q[:, chunk.start : chunk.end]
        return operations.swiglu_apply(*_cast(weights, tokens), tokens, out, backend=self._backend)

    def result(self, outputs: list[Tensor]) -> Tensor:
        if self._buffer is not None:
            return self._buffer
        return torch.cat(outputs, dim=1) if outputs else self._q.new_empty(self._shape)
