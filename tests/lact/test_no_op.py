"""What must change nothing: no tokens, one token, long chunks, chunks whose tokens are all masked by rates of zero."""

from __future__ import annotations

import pytest
import torch

from tests.fast_weights.tolerances import RTOL_EXACT, relative_max
from tests.lact.test_lact_operation import draw
from tttabpfn.lact import LaCTSwiGLU, lact_swiglu

F64 = RTOL_EXACT[torch.float64]
RULES = [{}, {"muon": True}, {"updated": "last"}, {"weight_norm": False, "muon": True}]


@pytest.mark.parametrize("order", ["causal", "causal-prenorm", "operators"])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_no_tokens_give_no_output_and_leave_the_weights(order, rule):
    inputs, momentum = draw(length=0)
    how = {"operators": []} if order == "operators" else {"chunk_size": 4}
    o, weights = lact_swiglu(*inputs, order=order, momentum=momentum, **how, **rule)
    assert o.shape == (2, 0, 4)
    assert all(torch.equal(left, right) for left, right in zip(weights, inputs[:3], strict=True))


@pytest.mark.parametrize("options", [{}, {"mode": "causal", "window_size": 3}, {"mode": "causal-prenorm"}], ids=str)
def test_a_layer_takes_no_tokens(options):
    assert LaCTSwiGLU(6, n_heads=2, **options)(torch.zeros(2, 0, 6)).shape == (2, 0, 6)


@pytest.mark.parametrize("order", ["causal", "causal-prenorm"])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_one_token_is_applied_and_not_learned_from(order, rule):
    inputs, _ = draw(length=1)
    o, weights = lact_swiglu(*inputs, order=order, chunk_size=1, **rule)
    untrained, _ = lact_swiglu(*inputs, order="operators", operators=[(0, 1, False, True)])
    assert torch.equal(o, untrained)
    assert all(torch.equal(left, right) for left, right in zip(weights, inputs[:3], strict=True))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_chunk_longer_than_the_sequence_is_the_sequence(rule):
    inputs, _ = draw()
    o, weights = lact_swiglu(*inputs, chunk_size=1000, **rule)
    untrained, _ = lact_swiglu(*inputs, order="operators", operators=[(0, 11, False, True)])
    assert torch.equal(o, untrained)
    assert all(torch.equal(left, right) for left, right in zip(weights, inputs[:3], strict=True))


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("order", ["causal", "causal-prenorm"])
def test_an_all_masked_chunk_is_as_if_absent(order, rule):
    inputs, _ = draw(length=12, dtype=torch.float32)
    for rate in inputs[6:]:
        rate[:, 4:8] = 0.0
    o, weights = lact_swiglu(*inputs, order=order, chunk_size=4, **rule)
    kept = [torch.cat([value[:, :4], value[:, 8:]], dim=1) for value in inputs[3:]]
    wanted_o, wanted = lact_swiglu(*inputs[:3], *kept, order=order, chunk_size=4, **rule)
    assert torch.equal(o[:, 8:], wanted_o[:, 4:])
    assert all(torch.equal(left, right) for left, right in zip(weights, wanted, strict=True))


def test_masked_tokens_inside_a_chunk_teach_nothing():
    inputs, _ = draw()
    for rate in inputs[6:]:
        rate[:, 2:5] = 0.0
    changed = [value.clone() for value in inputs]
    changed[4][:, 2:5] = 9.0
    changed[5][:, 2:5] = -9.0
    _, weights = lact_swiglu(*inputs, order="operators", operators=[(0, 11, True, True)])
    _, same = lact_swiglu(*changed, order="operators", operators=[(0, 11, True, True)])
    assert all(relative_max(left, right) < F64 for left, right in zip(weights, same, strict=True))
