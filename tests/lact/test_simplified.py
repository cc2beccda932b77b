"""The simplified forms: last layer only, no norm, and the state that is a sum."""

from __future__ import annotations

import pytest
import torch

from tests.fast_weights.tolerances import RTOL_EXACT, assert_close, relative_max
from tests.lact.test_lact_operation import draw
from tttabpfn.lact import LaCTSwiGLU, SumState, chunk_rule, lact_swiglu

F64 = RTOL_EXACT[torch.float64]
SUM = {"updated": "last", "weight_norm": False, "muon": False}


@pytest.mark.parametrize("order", ["causal", "causal-prenorm"])
@pytest.mark.parametrize("muon", [False, True])
@pytest.mark.parametrize("weight_norm", [False, True])
def test_last_layer_only_is_all_layers_with_rates_of_zero_below(order, muon, weight_norm):
    inputs, momentum = draw()
    how = {"order": order, "chunk_size": 4, "muon": muon, "weight_norm": weight_norm, "momentum": momentum}
    o, weights = lact_swiglu(*inputs, updated="last", **how)
    below = [torch.zeros_like(inputs[6]), inputs[7], torch.zeros_like(inputs[8])]
    wanted_o, wanted = lact_swiglu(*inputs[:6], *below, **how)
    assert relative_max(o, wanted_o) < F64
    assert relative_max(weights[1], wanted[1]) < F64
    assert torch.equal(weights[0], inputs[0])
    assert torch.equal(weights[2], inputs[2])


def test_last_layer_only_has_the_derivative_of_finite_differences():
    inputs, _ = draw(1, 5, 2, 3, 2)

    def call(*tensors):
        return lact_swiglu(*tensors[:6], inputs[6], tensors[6], inputs[8], chunk_size=2, updated="last", muon=True)[0]

    used = [value.clone().requires_grad_() for value in (*inputs[:6], inputs[7])]
    assert torch.autograd.gradcheck(call, used)


def test_blocks_of_features_change_nothing(monkeypatch):
    inputs, _ = draw()
    whole, _ = lact_swiglu(*inputs, chunk_size=5, updated="last")
    monkeypatch.setattr(chunk_rule, "FEATURE_BLOCK", 1)
    assert relative_max(lact_swiglu(*inputs, chunk_size=5, updated="last")[0], whole) < F64


@pytest.mark.parametrize("muon", [False, True])
def test_without_the_norm_an_update_is_the_bare_step(muon):
    inputs, _ = draw()
    operators = [(0, 11, True, True)]
    _, weights = lact_swiglu(*inputs, order="operators", operators=operators, weight_norm=False, muon=muon)
    _, normed = lact_swiglu(*inputs, order="operators", operators=operators, muon=muon)
    for bare, wanted, start in zip(weights, normed, inputs[:3], strict=True):
        rows = bare.norm(dim=-1, keepdim=True)
        assert relative_max(bare * start.norm(dim=-1, keepdim=True) / (rows + 1e-5), wanted) < F64
        assert relative_max(rows, start.norm(dim=-1, keepdim=True)) > 1e-3
    _, other = lact_swiglu(*inputs, order="causal-prenorm", chunk_size=4, weight_norm=False, muon=muon)
    _, same = lact_swiglu(*inputs, order="causal", chunk_size=4, weight_norm=False, muon=muon)
    assert all(torch.equal(left, right) for left, right in zip(other, same, strict=True))


def state(inputs, window):
    w0, _, w2 = inputs[:3]
    return SumState.of(w0, w2, *(inputs[i][:, window] for i in (4, 5, 7)))


@pytest.mark.parametrize("size", [1, 3, 11])
def test_the_sum_is_the_operations_weight_whatever_the_chunks(size):
    inputs, _ = draw()
    operators = [(start, min(start + size, 11), True, False) for start in range(0, 11, size)][::-1]
    o, weights = lact_swiglu(*inputs, order="operators", operators=[*operators, (0, 11, False, True)], **SUM)
    found = state(inputs, slice(0, 11))
    assert relative_max(found.weight(inputs[1]), weights[1]) < F64
    assert relative_max(found.read(*inputs[:3], inputs[3]), o) < F64


def test_sums_add_subtract_and_merge():
    inputs, _ = draw(dtype=torch.float64)
    parts = [state(inputs, window) for window in (slice(0, 3), slice(3, 4), slice(4, 11))]
    whole = state(inputs, slice(0, 11))
    assert_close((parts[2] + parts[0] + parts[1]).total, whole.total, rtol=1e-10, atol=1e-14)
    forgotten = whole - parts[1]
    assert_close(forgotten.total, (parts[0] + parts[2]).total, rtol=1e-10, atol=1e-14)
    assert relative_max(forgotten.total, whole.total) > 1e-3
    assert_close((whole - whole).read(*inputs[:3], inputs[3]), SumState(0 * whole.total).read(*inputs[:3], inputs[3]))


def test_muon_may_be_done_when_the_sum_is_read():
    inputs, _ = draw()
    operators = [(0, 11, True, True)]
    how = {"order": "operators", "operators": operators, "updated": "last", "weight_norm": False, "muon": True}
    o, _ = lact_swiglu(*inputs, **how)
    parts = state(inputs, slice(0, 6)) + state(inputs, slice(6, 11))
    assert relative_max(parts.read(*inputs[:3], inputs[3], muon=True), o) < F64


@pytest.mark.parametrize("mode", ["set", "operators"])
def test_a_layer_writes_and_reads_its_sum(mode):
    net = LaCTSwiGLU(6, n_heads=2, generator=torch.Generator().manual_seed(0), mode=mode, **SUM).double()
    x = torch.randn(2, 9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    whole = LaCTSwiGLU(6, n_heads=2, generator=torch.Generator().manual_seed(0), mode="operators", **SUM).double()
    wanted = whole(x, operators=[(0, 6, True, False), (6, 9, False, True)])
    found = net.write(x[:, :2]) + net.write(x[:, 2:6])
    assert relative_max(net.read(x[:, 6:], found), wanted) < F64


def test_a_layer_of_another_form_has_no_sum():
    for options in ({}, SUM | {"muon": True}, SUM | {"updated": "all"}, SUM | {"momentum": True}):
        with pytest.raises(ValueError, match="a state that is a sum needs"):
            LaCTSwiGLU(6, **options).write(torch.zeros(1, 2, 6))
    with pytest.raises(ValueError, match=r"updated must be one of \['all', 'last'\], got 'first'"):
        LaCTSwiGLU(6, updated="first")
    with pytest.raises(ValueError, match=r"updated must be one of \['all', 'last'\], got 'first'"):
        lact_swiglu(*draw()[0], chunk_size=2, updated="first")
