"""State hand-over: any cut of a causal sequence against one pass, and the state as a file."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from tests.fast_weights.tolerances import RTOL_EXACT, relative_max
from tests.lact.test_lact_operation import draw
from tttabpfn.lact import LaCTState, LaCTSwiGLU, lact_swiglu, lact_swiglu_resume

F64 = RTOL_EXACT[torch.float64]
CUTS = [[13], [1] * 13, [5, 8], [4, 4, 5], [3, 0, 6, 4], [12, 1]]
OPTIONS = [
    {"mode": "causal", "window_size": 3, "momentum": True, "n_heads": 2},
    {"mode": "causal", "muon": False},
    {"mode": "causal-prenorm", "momentum": True},
    {"mode": "causal", "updated": "last", "weight_norm": False, "muon": False, "window_size": 6},
    {"mode": "causal-prenorm", "muon": False, "momentum": True, "updated": "last"},
]


def layer(**options):
    return LaCTSwiGLU(6, generator=torch.Generator().manual_seed(0), chunk_size=4, **options).double()


def tokens():
    return torch.randn(2, 13, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def flat_gradient(net, y):
    """All slow weights' derivatives as one vector: Muon all but cancels those of the rates, down to their rounding."""
    return torch.cat([one.flatten() for one in torch.autograd.grad(y.square().sum(), list(net.parameters()))])


def in_parts(net, x, cut):
    parts, state = [], None
    for part in x.split(cut, dim=1):
        y, state = net.prefill(part) if state is None else net.decode(part, state)
        parts.append(y)
    return torch.cat(parts, dim=1), state


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_any_cut_is_one_pass_forward_and_backward(options, cut):
    net, x = layer(**options), tokens()
    y, wanted = in_parts(net, x, cut)[0], net(x)
    assert relative_max(y, wanted) < F64
    assert relative_max(flat_gradient(net, y), flat_gradient(net, wanted)) < F64


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_saved_state_goes_on_and_is_as_large_after_many_tokens(options, tmp_path):
    net, x = layer(**options), tokens()
    with torch.no_grad():
        _, state = net.prefill(x[:, :6])
        state.save(tmp_path / "state.safetensors")
        loaded = LaCTState.load(tmp_path / "state.safetensors")
        wanted, after = net.decode(x[:, 6:], state)
        again, _ = net.decode(x[:, 6:], loaded)
    assert torch.equal(again, wanted)
    assert after.nbytes == state.nbytes > 0


def test_a_state_is_a_value_that_can_be_continued_twice():
    net, x = layer(**OPTIONS[0]), tokens()
    with torch.no_grad():
        _, state = net.prefill(x[:, :6])
        before = {name: tensor.clone() for name, tensor in state.tensors().items()}
        first, _ = net.decode(x[:, 6:], state)
        net.decode(x[:, 6:] + 1.0, state)
        again, _ = net.decode(x[:, 6:], state)
    assert torch.equal(first, again)
    assert all(torch.equal(before[name], tensor) for name, tensor in state.tensors().items())


@pytest.mark.parametrize("order", ["causal", "causal-prenorm"])
@pytest.mark.parametrize("momentum", [False, True])
def test_rates_of_zero_keep_every_bit_in_parts(order, momentum):
    inputs, factors = draw(dtype=torch.float32)
    inputs[6:] = [torch.zeros_like(rate) for rate in inputs[6:]]
    state = None
    for start, stop in ((0, 3), (3, 9), (9, 11)):
        given = [value[:, start:stop] for value in inputs[3:]]
        more = {"momentum": factors[:, start:stop]} if momentum else {}
        _, state = lact_swiglu_resume(*inputs[:3], *given, state=state, order=order, chunk_size=4, muon=True, **more)
    for name, wanted in zip(("w0", "w1", "w2"), inputs[:3], strict=True):
        assert torch.equal(state.weights[name], wanted)
        assert order == "causal" or torch.equal(state.used[name], wanted)


def test_a_full_last_chunk_is_learned_from_once_more_tokens_could_come():
    inputs, _ = draw(length=8)
    _, state = lact_swiglu_resume(*inputs, chunk_size=4)
    _, once = lact_swiglu(*inputs, chunk_size=4)
    operators = [(0, 4, True, False), (4, 8, True, False)]
    _, twice = lact_swiglu(*inputs, order="operators", operators=operators)
    assert relative_max(state.weights["w1"], twice[1]) < F64
    assert relative_max(state.weights["w1"], once[1]) > 1e-4
    assert state.seen == 0


def test_states_that_do_not_fit_are_refused(tmp_path):
    x = tokens()
    _, state = layer(mode="causal").prefill(x)
    with pytest.raises(ValueError, match=r"state.weights must have shapes"):
        layer(mode="causal").decode(x[:1], state)
    with pytest.raises(ValueError, match=r"state.used must have shapes"):
        layer(mode="causal-prenorm").decode(x, state)
    with pytest.raises(ValueError, match=r"state.running must have shapes"):
        layer(mode="causal", momentum=True).decode(x, state)
    with pytest.raises(ValueError, match="state must be a LaCTState from prefill or decode, got NoneType"):
        layer(mode="causal").decode(x, None)
    with pytest.raises(ValueError, match='mode must be "causal" or "causal-prenorm" for prefill'):
        LaCTSwiGLU(6).prefill(x)
    _, partial = layer(mode="causal").prefill(x[:, :3])
    with pytest.raises(ValueError, match="state must be one of chunk_size=2, got 3 tokens in its chunk"):
        LaCTSwiGLU(6, mode="causal", chunk_size=2).double().decode(x, partial)
    with pytest.raises(ValueError, match='order must be "causal" or "causal-prenorm" in parts'):
        lact_swiglu_resume(*draw()[0], order="operators", chunk_size=2)
    save_file({"weights.w1": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="path must be a file of"):
        LaCTState.load(tmp_path / "other.safetensors")
