"""The LaCT layer: modes, order, causality, training."""

from __future__ import annotations

import pytest
import torch

from tests.fast_weights.tolerances import RTOL_EXACT, relative_max
from tttabpfn.lact import LaCTSwiGLU

F64 = RTOL_EXACT[torch.float64]


def layer(dim=6, seed=0, **options):
    return LaCTSwiGLU(dim, generator=torch.Generator().manual_seed(seed), **options).double()


def tokens(batch=2, length=13, dim=6, seed=1):
    return torch.randn(batch, length, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("options", [{}, {"muon": False}, {"n_heads": 3}, {"momentum": True}], ids=str)
def test_a_set_has_no_order(options):
    net, x = layer(**options), tokens()
    order = torch.randperm(13, generator=torch.Generator().manual_seed(2))
    if options.get("momentum"):
        assert net.to_momentum is not None
    assert relative_max(net(x[:, order]), net(x)[:, order]) < 1e-8


@pytest.mark.parametrize("mode", ["causal", "causal-prenorm"])
@pytest.mark.parametrize("window_size", [None, 5])
def test_a_causal_layer_does_not_see_later_chunks_nor_later_tokens(mode, window_size):
    net, x = layer(mode=mode, chunk_size=4, window_size=window_size, n_heads=2, momentum=True), tokens()
    y = net(x)
    changed = x.clone()
    changed[:, 6:] += 1.0
    assert torch.equal(net(changed)[:, :6], y[:, :6])
    assert relative_max(net(changed)[:, 6:], y[:, 6:]) > 1e-3
    earlier = x.clone()
    earlier[:, :4] += 1.0
    assert relative_max(net(earlier)[:, 4:], y[:, 4:]) > 1e-6


def test_operators_choose_what_is_written_and_read():
    net, x = layer(mode="operators"), tokens()
    y = net(x, operators=[(0, 9, True, False), (9, 13, False, True)])
    assert y.shape == (2, 4, 6)
    whole = layer(mode="set")(x)
    assert relative_max(net(x, operators=[(0, 13, True, True)]), whole) < F64


def test_a_set_in_chunks_updates_chunk_by_chunk_and_applies_to_all():
    x = tokens()
    operators = [(0, 5, True, False), (5, 10, True, False), (10, 13, True, False), (0, 13, False, True)]
    assert relative_max(layer(chunk_size=5)(x), layer(mode="operators")(x, operators=operators)) < F64


@pytest.mark.parametrize(
    "options", [{"n_heads": 2}, {"momentum": True, "mode": "causal", "chunk_size": 2, "window_size": 3}]
)
def test_every_slow_weight_has_the_derivative_of_finite_differences(options):
    net, x = layer(4, hidden_ratio=1.0, **options), tokens(1, 5, 4)
    names = [name for name, _ in net.named_parameters()]

    def call(*parameters):
        return torch.func.functional_call(net, dict(zip(names, parameters, strict=True)), (x,))

    parameters = [value.detach().clone().requires_grad_() for value in net.parameters()]
    assert torch.autograd.gradcheck(call, parameters)
    loss = call(*parameters).square().sum()
    for name, gradient in zip(names, torch.autograd.grad(loss, parameters), strict=True):
        assert gradient.abs().max() > 0, name


def test_training_lowers_the_loss():
    net, x = layer(), tokens()
    target = x.roll(1, dims=-1)
    losses = []
    for _ in range(30):
        loss = (net(x) - target).square().mean()
        gradients = torch.autograd.grad(loss, list(net.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(net.parameters(), gradients, strict=True):
                parameter -= 0.05 * gradient
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_without_grad_the_fast_path_gives_the_same():
    net, x = layer(n_heads=2, momentum=True), tokens()
    with torch.no_grad():
        fast = net(x)
    assert relative_max(fast, net(x).detach()) < F64


def test_initialisation_uses_the_given_generator_alone():
    state = torch.get_rng_state()
    first, second, other = layer(), layer(), layer(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(left, right) for left, right in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.w0, other.w0)


def test_rates_start_at_the_base_rate():
    net = layer(base_rate=0.02)
    rates = torch.nn.functional.softplus(net.to_rates(tokens()))
    assert relative_max(rates, torch.full_like(rates, 0.02)) < 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_heads": 4}, "dim must be a positive multiple of n_heads, got dim=6, n_heads=4"),
        ({"mode": "bidirectional"}, "mode must be one of"),
        ({"hidden_ratio": 0}, "hidden_ratio must be above 0"),
        ({"chunk_size": 0}, "chunk_size must be an integer of 1 or more"),
        ({"mode": "operators", "chunk_size": 4}, 'chunk_size must be None with mode="operators"'),
        ({"window_size": 4}, "window_size must be None, or 1 or more in a causal mode"),
        ({"mode": "causal", "window_size": 0}, "window_size must be None, or 1 or more in a causal mode"),
        ({"base_rate": 0.0}, "base_rate must be above 0"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LaCTSwiGLU(6, **options)


def test_bad_calls_are_refused():
    with pytest.raises(ValueError, match=r"x must have shape \[n, l, 6\], got \(2, 13, 5\)"):
        layer()(tokens(dim=5))
    with pytest.raises(ValueError, match='operators must be given with mode="operators"'):
        layer(mode="operators")(tokens())
    with pytest.raises(ValueError, match='operators must be None with mode="set"'):
        layer()(tokens(), operators=[(0, 13, True, True)])


def test_its_settings_are_shown():
    assert "mode='causal', chunk_size=2048" in repr(layer(mode="causal"))
