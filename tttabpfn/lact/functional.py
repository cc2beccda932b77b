"""LaCT's SwiGLU operation as a function: the shared chunk loop with SwiGLU leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tttabpfn.fast_weights import update_rules
from tttabpfn.fast_weights.chunked import Chunk, plan_chunks, run_chunks
from tttabpfn.lact.checks import check_group, check_operation
from tttabpfn.lact.chunk_rule import NORM_EPS, Carried, Rule, Tokens, Weights, Writer, chunk_gradient, update_chunk
from tttabpfn.lact.packing import run_packed

__all__ = ["NORM_EPS", "lact_swiglu"]


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
    lengths: Sequence[int] | None = None,
    momentum: Tensor | None = None,
    muon: bool = False,
    newton_schulz: str = "schedule",
    newton_schulz_steps: int = 5,
    newton_schulz_dtype: str = "float32",
    updated: str = "all",
    weight_norm: bool = True,
    group: Any = None,
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
    lengths : sequence of int, optional
        Lengths of the sequences that lie one behind the other along l, zero or more each, together l. Every sequence
        starts from w0, w1, w2 and has chunks of its own; nothing passes from one to the next. Windows in `operators`
        are positions along l and must not cross from one sequence to the next.
    momentum : Tensor of shape [b, l, 1], optional
        The chunk's mean is the factor on the running gradient. None: no momentum.
    muon : bool, default=False
        Whether each weight's gradient is orthogonalised, alone.
    newton_schulz : {"schedule", "fixed"}, default="schedule"
    newton_schulz_steps : int, default=5
    newton_schulz_dtype : {"float32", "bfloat16"}, default="float32"
        See `tttabpfn.fast_weights.reference.newton_schulz`. 0 steps only divide by the Frobenius norm.
    updated : {"all", "last"}, default="all"
        "last": w1 alone is updated, lr0 and lr2 are not looked at; about 2.5 times less work.
    weight_norm : bool, default=True
        Whether rows get back their norm. Without it, without `momentum` and `muon`, and with ``updated="last"``, the
        update is a sum over tokens: see `SumState`.
    group : torch.distributed.ProcessGroup, optional
        Processes that share every chunk: each passes the same weights and an equal share of each chunk's tokens (so
        `chunk_size` and `operators` count its own), and gets the outputs of its own; see `tttabpfn.lact.parallel`.
    backend : {"auto", "torch", "triton"}, default="auto"
        Who runs the leaf operations; "triton" runs or raises.

    Returns
    -------
    o : Tensor of shape [b, l, dv]
        Outputs of applied windows, concatenated in order, in the dtype of q; for "operators" as long as the applied
        windows together.
    weights : tuple of Tensor
        ``(w0, w1, w2)`` after the last update; for "causal-prenorm" the un-normalised ones. With `lengths` they have
        one more axis in front: one entry per sequence.

    Raises
    ------
    ValueError
        If a shape, dtype, order, chunk size, operator or length is not as above.
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
    tokens = Tokens(q, k, v, lr0, lr1, lr2, momentum)
    weights = {"w0": w0, "w1": w1, "w2": w2}
    check_operation(weights, tokens._asdict(), order, chunk_size, operators, lengths, updated)
    if group is not None:
        check_group(group, lengths, q.shape[1], len(operators or []), q.device)

    def run(tokens: Tokens, weights: Weights, operators: Sequence[Any] | None) -> tuple[Tensor, Weights]:
        rule = Rule.of(
            weights,
            tokens,
            order=order,
            muon=muon,
            newton_schulz=newton_schulz,
            newton_schulz_steps=newton_schulz_steps,
            newton_schulz_dtype=newton_schulz_dtype,
            updated=updated,
            weight_norm=weight_norm,
            backend=backend,
            group=group,
        )
        return _run(rule, _chunks(tokens.q.shape[1], chunk_size, operators), tokens, weights)

    if lengths is None:
        o, last = run(tokens, weights, operators)
    else:
        o, last = run_packed(run, tokens, weights, list(lengths), chunk_size, operators)
    return o, (last["w0"], last["w1"], last["w2"])


def _chunks(length: int, chunk_size: int | None, operators: Sequence[Any] | None) -> list[Chunk]:
    if operators is not None:
        return [Chunk(start, end, bool(update), bool(apply)) for start, end, update, apply in operators]
    return plan_chunks(length, chunk_size or 0, update_last=False) if length else []


def _run(rule: Rule, chunks: list[Chunk], tokens: Tokens, weights: Weights) -> tuple[Tensor, Weights]:
    """All chunks of one stack of sequences; the weights returned are those that updates add up in."""
    writer = Writer(chunks, tokens, weights, rule.backend)
    moving = {name: weights[name] for name in rule.updated}
    done = run_chunks(
        chunks,
        weights,
        Carried(update_rules.init_state(rule.name, moving), weights, {}),
        gradient=lambda chunk, current: chunk_gradient(rule, tokens, chunk, current),
        update=lambda chunk, current, gradients, carried: update_chunk(
            rule, tokens, chunk, current, gradients, carried
        ),
        apply=writer.apply,
        order="update_then_apply" if rule.order == "operators" else "apply_then_update",
    )
    return writer.result(done.outputs), done.state.weights
