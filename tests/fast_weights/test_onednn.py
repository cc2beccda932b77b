"""SwiGLU operations through oneDNN: against the reference, and when they are taken."""

import pytest
import torch

from tttabpfn.fast_weights import blocked, onednn, swiglu

ODD = (2, 601, 131, 129, 137)
"""Entries of the stack, tokens, and widths of keys, values and hidden rows."""


def arguments(batch, length, keys, values, hidden, *, seed=0):
    draw = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=draw)

    weights = [random(batch, hidden, keys), random(batch, values, hidden), random(batch, hidden, keys)]
    rates = [torch.rand(batch, length, 1, generator=draw) for _ in range(3)]
    return [weight / 11 for weight in weights] + [random(batch, length, keys), random(batch, length, values), *rates]


def assert_close(got, wanted):
    """Float32 against float64: an entry may be off by a millionth of the largest one, times the root of the sum."""
    assert (got.double() - wanted).abs().max() < 2e-6 * wanted.abs().max()


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(onednn, "BLOCK_ELEMENTS", 1)


def test_equals_the_reference_at_odd_sizes_over_several_blocks(small_blocks):
    given = arguments(*ODD)
    wide = [tensor.double() for tensor in given]
    for got, wanted in zip(onednn.swiglu_gradients(*given), swiglu.swiglu_gradients(*wide), strict=True):
        assert_close(got, wanted)
    w0, w1, w2, x = given[:4]
    out = torch.full((2, 601, 129), torch.nan)
    assert_close(onednn.swiglu_apply(w0, w1, w2, x, out), swiglu.swiglu_apply(*wide[:4]))


def test_takes_strided_inputs_and_leaves_them_alone(small_blocks):
    given = [tensor.mT.contiguous().mT for tensor in arguments(*ODD)]
    before = [tensor.clone() for tensor in given]
    wide = [tensor.double() for tensor in given]
    for got, wanted in zip(onednn.swiglu_gradients(*given), swiglu.swiglu_gradients(*wide), strict=True):
        assert_close(got, wanted)
    out = torch.empty(2, 129, 601).mT
    assert_close(onednn.swiglu_apply(*given[:4], out), swiglu.swiglu_apply(*wide[:4]))
    assert all(torch.equal(left, right) for left, right in zip(given, before, strict=True))


def taken(monkeypatch, given):
    """Whether `blocked` hands both operations on."""
    calls = []
    for name in ("swiglu_apply", "swiglu_gradients"):
        inner = getattr(onednn, name)
        monkeypatch.setattr(onednn, name, lambda *args, name=name, inner=inner: calls.append(name) or inner(*args))
    blocked.swiglu_gradients(*given)
    blocked.swiglu_apply(*given[:4])
    assert calls in ([], ["swiglu_gradients", "swiglu_apply"])
    return bool(calls)


def test_large_float32_products_are_handed_on(monkeypatch):
    assert taken(monkeypatch, arguments(1, 256, 128, 128, 128))


@pytest.mark.parametrize("size", [(1, 255, 128, 128, 128), (1, 256, 127, 128, 128), (1, 256, 128, 128, 127)])
def test_small_ones_are_not(monkeypatch, size):
    assert not taken(monkeypatch, arguments(*size))


def test_other_dtypes_are_not(monkeypatch):
    assert not taken(monkeypatch, [tensor.double() for tensor in arguments(1, 256, 128, 128, 128)])


def test_a_user_who_switched_onednn_off_gets_torch(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert not taken(monkeypatch, arguments(1, 256, 128, 128, 128))


def test_without_the_operator_torch_is_used(monkeypatch):
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert not taken(monkeypatch, arguments(1, 256, 128, 128, 128))
