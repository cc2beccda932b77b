"""The LaCT operation against its definition, and what it guarantees."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from tests.fast_weights.tolerances import KERNEL_RMS, RTOL_EXACT, assert_close, relative_max, relative_rms
from tttabpfn.fast_weights import blocked
from tttabpfn.fast_weights.reference import newton_schulz
from tttabpfn.lact import lact_swiglu

pytestmark = pytest.mark.filterwarnings("ignore:Importing from 'tabpfn:DeprecationWarning")

F64 = RTOL_EXACT[torch.float64]
NAMES = ("w0", "w1", "w2", "q", "k", "v", "lr0", "lr1", "lr2")


def draw(batch=2, length=11, keys=3, hidden=5, values=4, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, dtype=dtype, generator=generator) / shape[-1] ** 0.5

    inputs = [normal(batch, hidden, keys), normal(batch, values, hidden), normal(batch, hidden, keys)]
    inputs += [normal(batch, length, keys), normal(batch, length, keys), normal(batch, length, values)]
    rates = [torch.rand(batch, length, 1, dtype=dtype, generator=generator) for _ in range(4)]
    return [*inputs, *(0.1 * rate for rate in rates[:3])], rates[3]


def by_definition(inputs, entries, *, prenorm=False, momentum=None, muon=None, steps=5):
    """README's operation spelled out: gradients by autograd, `entries` are ("apply" | "update", start, end)."""
    weights, (q, k, v), rates = inputs[:3], inputs[3:6], inputs[6:]
    norms = [weight.norm(dim=-1, keepdim=True) for weight in weights]
    main, used, running, outputs = list(weights), list(weights), [0.0] * 3, []

    def f(w0, w1, w2, x):
        return torch.einsum(
            "bvh,blh->blv", w1, F.silu(torch.einsum("bhk,blk->blh", w0, x)) * torch.einsum("bhk,blk->blh", w2, x)
        )

    for what, start, end in entries:
        window = slice(start, end)
        if what == "apply":
            outputs.append(f(*used, q[:, window]))
            continue
        for index in range(3):
            leaves = [weight.clone().requires_grad_() for weight in used]
            loss = -(rates[index][:, window] * v[:, window] * f(*leaves, k[:, window])).sum()
            direction = -torch.autograd.grad(loss, leaves[index])[0]
            if momentum is not None:
                direction = direction + running[index] * momentum[:, window].mean(dim=1, keepdim=True)
                running[index] = direction
            if muon is not None:
                direction = newton_schulz(direction, muon, steps)
            main[index] = main[index] + direction
        scaled = [w / (w.norm(dim=-1, keepdim=True) + 1e-5) * n for w, n in zip(main, norms, strict=True)]
        used = scaled
        main = main if prenorm else list(scaled)
    return torch.cat(outputs, dim=1), main


def causal(length, size):
    edges = [(start, min(start + size, length)) for start in range(0, length, size)]
    steps = [[("apply", *edge), ("update", *edge)] for edge in edges]
    return list(itertools.chain(*steps))[:-1]


@pytest.mark.parametrize("order", ["causal", "causal-prenorm"])
@pytest.mark.parametrize("with_momentum", [False, True], ids=["plain", "momentum"])
@pytest.mark.parametrize("muon", [None, "schedule", "fixed"])
@pytest.mark.parametrize("size", [1, 4, 11, 12, 100])
def test_causal_orders_are_the_definition(order, with_momentum, muon, size):
    inputs, momentum = draw()
    momentum = momentum if with_momentum else None
    prenorm = order == "causal-prenorm"
    wanted_o, wanted = by_definition(inputs, causal(11, size), prenorm=prenorm, momentum=momentum, muon=muon)
    options = {"muon": muon is not None, "newton_schulz": muon or "schedule"}
    o, weights = lact_swiglu(*inputs, order=order, chunk_size=size, momentum=momentum, **options)
    assert relative_max(o, wanted_o) < F64
    for left, right in zip(weights, wanted, strict=True):
        assert relative_max(left, right) < F64


OPERATORS = {
    "set": [(0, 11, True, True)],
    "update, then apply elsewhere": [(0, 7, True, False), (7, 11, False, True)],
    "overlapping, with gaps, backwards": [
        (5, 9, True, True),
        (0, 7, True, True),
        (8, 9, False, True),
        (2, 6, True, False),
    ],
    "apply before any update": [(3, 4, False, True), (0, 11, True, False), (0, 11, False, True)],
    "neither": [(0, 3, False, False), (0, 11, True, True)],
}


@pytest.mark.parametrize("with_momentum", [False, True], ids=["plain", "momentum"])
@pytest.mark.parametrize(("muon", "steps"), [(None, 5), ("fixed", 5), ("fixed", 0), ("schedule", 3)])
@pytest.mark.parametrize("operators", OPERATORS.values(), ids=OPERATORS)
def test_operator_lists_are_the_definition(operators, muon, steps, with_momentum):
    inputs, momentum = draw()
    momentum = momentum if with_momentum else None
    entries = []
    for start, end, update, apply in operators:
        entries += [("update", start, end)] * update + [("apply", start, end)] * apply
    wanted_o, wanted = by_definition(inputs, entries, momentum=momentum, muon=muon, steps=steps)
    options = {"muon": muon is not None, "newton_schulz": muon or "schedule", "newton_schulz_steps": steps}
    o, weights = lact_swiglu(*inputs, order="operators", operators=operators, momentum=momentum, **options)
    assert relative_max(o, wanted_o) < F64
    for left, right in zip(weights, wanted, strict=True):
        assert relative_max(left, right) < F64


def test_updates_without_any_apply_give_an_empty_output():
    inputs, _ = draw()
    o, weights = lact_swiglu(*inputs, order="operators", operators=[(0, 11, True, False)])
    assert o.shape == (2, 0, 4)
    assert not torch.equal(weights[0], inputs[0])
    inputs[0].requires_grad_()
    o, _ = lact_swiglu(*inputs, order="operators", operators=[(0, 11, True, False)])
    assert o.shape == (2, 0, 4)


@pytest.mark.parametrize("order", ["causal", "causal-prenorm"])
@pytest.mark.parametrize("muon", [False, True])
@pytest.mark.parametrize("needs_grad", [False, True])
def test_rate_zero_keeps_every_bit(order, muon, needs_grad):
    inputs, momentum = draw(dtype=torch.float32)
    inputs[6:] = [torch.zeros_like(rate) for rate in inputs[6:]]
    inputs[0].requires_grad_(needs_grad)
    o, weights = lact_swiglu(*inputs, order=order, chunk_size=4, muon=muon, momentum=momentum)
    assert all(torch.equal(left, right) for left, right in zip(weights, inputs[:3], strict=True))
    untrained, _ = lact_swiglu(*inputs, order="operators", operators=[(0, 11, False, True)])
    assert relative_max(o.detach(), untrained.detach()) < RTOL_EXACT[torch.float32]


def test_one_entrys_rates_leave_the_others_bits():
    inputs, _ = draw(dtype=torch.float32)
    for rate in inputs[6:]:
        rate[1] = 0.0
    _, weights = lact_swiglu(*inputs, chunk_size=4, muon=True)
    for after, before in zip(weights, inputs[:3], strict=True):
        assert torch.equal(after[1], before[1])
        assert not torch.equal(after[0], before[0])


def test_inputs_are_never_written():
    inputs, momentum = draw()
    before = [value.clone() for value in (*inputs, momentum)]
    o, weights = lact_swiglu(*inputs, chunk_size=3, muon=True, momentum=momentum)
    o.zero_()
    for weight in weights:
        weight.zero_()
    assert all(torch.equal(left, right) for left, right in zip((*inputs, momentum), before, strict=True))


@pytest.mark.parametrize("order", ["causal", "causal-prenorm", "operators"])
@pytest.mark.parametrize("muon", [False, True])
def test_every_input_has_the_derivative_of_finite_differences(order, muon):
    inputs, momentum = draw(1, 5, 2, 3, 2)
    inputs[6:] = [10 * rate for rate in inputs[6:]]
    options = {"order": order, "muon": muon}
    options |= {"operators": [(0, 3, True, True), (2, 5, True, True)]} if order == "operators" else {"chunk_size": 2}

    def call(*tensors):
        o, weights = lact_swiglu(*tensors[:-1], momentum=tensors[-1], **options)
        return (o, *weights)

    assert torch.autograd.gradcheck(call, [value.clone().requires_grad_() for value in (*inputs, momentum)])


def test_rates_at_zero_still_receive_gradients():
    inputs, _ = draw()
    inputs[6:] = [torch.zeros_like(rate).requires_grad_() for rate in inputs[6:]]
    o, _ = lact_swiglu(*inputs, chunk_size=4)
    for gradient in torch.autograd.grad(o.square().sum(), inputs[6:]):
        assert gradient[:, :8].abs().max() > 0


def test_blocks_change_nothing(monkeypatch):
    inputs, _ = draw(2, 700, 3, 4, 3)
    whole = lact_swiglu(*inputs, chunk_size=600, muon=True)
    monkeypatch.setattr(blocked, "CPU_BLOCK_ELEMENTS", 1)
    monkeypatch.setattr(blocked, "GRAD_BLOCK_ELEMENTS", 1)
    for needs_grad in (False, True):
        inputs[0].requires_grad_(needs_grad)
        parts = lact_swiglu(*inputs, chunk_size=600, muon=True)
        assert relative_max(parts[0].detach(), whole[0]) < F64


def test_a_chunk_of_a_million_tokens():
    inputs, _ = draw(1, 1_000_000, 4, 4, 4, dtype=torch.float32)
    inputs[6:] = [rate * 1e-5 for rate in inputs[6:]]
    o, weights = lact_swiglu(*inputs, order="operators", operators=[(0, 1_000_000, True, True)])
    exact = [value.double() for value in inputs]
    wanted_o, wanted = lact_swiglu(*exact, order="operators", operators=[(0, 1_000_000, True, True)])
    assert relative_max(o, wanted_o) < 10 * RTOL_EXACT[torch.float32]
    for left, right in zip(weights, wanted, strict=True):
        assert relative_max(left, right) < 10 * RTOL_EXACT[torch.float32]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"order": "bidirectional"}, ValueError, "order must be one of"),
        ({"chunk_size": None}, ValueError, "chunk_size must be an integer of 1 or more, got None"),
        ({"chunk_size": 0}, ValueError, "chunk_size must be an integer of 1 or more, got 0"),
        ({"chunk_size": 2.0}, ValueError, "chunk_size must be an integer of 1 or more, got 2.0"),
        ({"operators": [(0, 1, True, True)]}, ValueError, 'operators must be None with order="causal"'),
        ({"order": "operators"}, ValueError, 'chunk_size must be None with order="operators"'),
        ({"order": "operators", "chunk_size": None}, ValueError, "operators must be a non-empty list"),
        (
            {"order": "operators", "chunk_size": None, "operators": [(0, 12, True, True)]},
            ValueError,
            r"operators\[0\] must have 0 <= start < end <= 11 \(the tokens\), got start=0, end=12",
        ),
        (
            {"order": "operators", "chunk_size": None, "operators": [(0, 5, True)]},
            ValueError,
            r"operators\[0\] must be \(start, end, update, apply\)",
        ),
        (
            {"order": "operators", "chunk_size": None, "operators": [(0, 5.0, True, True)]},
            ValueError,
            r"operators\[0\] must have integer start and end",
        ),
        (
            {"w1": torch.ones(2, 5, 4, dtype=torch.float64)},
            ValueError,
            r"w2 must|w1 must have shape \(2, 5, 5\)|v must have shape",
        ),
        ({"q": torch.ones(2, 11, 4, dtype=torch.float64)}, ValueError, r"q must have shape \(2, 11, 3\)"),
        ({"v": torch.ones(2, 10, 4, dtype=torch.float64)}, ValueError, r"v must have shape \(2, 11, 4\)"),
        ({"lr1": torch.ones(2, 11, dtype=torch.float64)}, ValueError, r"lr1 must have three axes, got shape \(2, 11\)"),
        ({"momentum": torch.ones(2, 1, 1, dtype=torch.float64)}, ValueError, r"momentum must have shape \(2, 11, 1\)"),
        ({"k": torch.ones(2, 11, 3)}, ValueError, r"k must have the dtype of q \(torch.float64\), got torch.float32"),
        ({"w2": torch.ones(2, 5, 3)}, ValueError, r"w2 must have the dtype of w0 \(torch.float64\), got torch.float32"),
        ({"lr0": torch.ones(2, 11, 1, dtype=torch.int64)}, ValueError, "lr0 must be floating point, got torch.int64"),
        ({"w0": [[1.0]]}, TypeError, "w0 must be a torch.Tensor, got list"),
        ({"muon": True, "newton_schulz": "cubic"}, ValueError, "newton_schulz must be one of"),
        ({"backend": "jax"}, ValueError, "backend must be one of"),
    ],
)
def test_bad_arguments_are_refused(change, error, message):
    arguments = dict(zip(NAMES, draw()[0], strict=True)) | {"chunk_size": 4} | change
    with pytest.raises(error, match=message):
        lact_swiglu(**arguments)


@pytest.mark.parametrize("needs_grad", [False, True])
def test_tokens_may_be_narrower_than_weights(needs_grad):
    inputs, momentum = draw(dtype=torch.float32)
    low = [*inputs[:3], *(value.bfloat16() for value in inputs[3:6]), *inputs[6:]]
    exact = [*inputs[:3], *(value.bfloat16().float() for value in inputs[3:6]), *inputs[6:]]
    low[0].requires_grad_(needs_grad)
    o, weights = lact_swiglu(*low, chunk_size=4, momentum=momentum)
    wanted_o, wanted = lact_swiglu(*exact, chunk_size=4, momentum=momentum)
    assert o.dtype == torch.bfloat16
    assert relative_rms(o, wanted_o) < 2 * KERNEL_RMS[torch.bfloat16]
    for left, right in zip(weights, wanted, strict=True):
        assert left.dtype == torch.float32
        assert relative_rms(left, right) < KERNEL_RMS[torch.bfloat16]


def test_row_norms_are_those_of_the_start():
    inputs, _ = draw()
    _, weights = lact_swiglu(*inputs, chunk_size=2, muon=True)
    for after, before in zip(weights, inputs[:3], strict=True):
        assert_close(after.norm(dim=-1), before.norm(dim=-1), rtol=1e-3)
        assert relative_max(after, before) > 0.1
