"""SwiGLU operations through oneDNN: against the reference, and when they are taken."""

import pytest
import torch

from tttabpfn.fast_weights import blocked, onednn
from tttabpfn.fast_weights.reference import swiglu

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


def transposed(tensor):
    return tensor.mT.contiguous().mT


def with_gaps(tensor):
    wide = tensor.new_full((*tensor.shape[:-1], 2 * tensor.shape[-1] + 1), torch.nan)
    wide[..., 1::2] = tensor
    return wide[..., 1::2]


def expanded(tensor):
    return tensor[:1].expand(tensor.shape)


@pytest.mark.parametrize("stride", [transposed, with_gaps, expanded])
def test_takes_strided_inputs_and_leaves_them_alone(small_blocks, stride):
    given = [stride(tensor) for tensor in arguments(*ODD)]
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


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes_are_not(monkeypatch, dtype):
    assert not taken(monkeypatch, [tensor.to(dtype) for tensor in arguments(1, 256, 128, 128, 128)])


@pytest.mark.parametrize("position", range(8))
def test_what_autograd_follows_is_not(monkeypatch, position):
    given = arguments(1, 256, 128, 128, 128)
    given[position].requires_grad_()
    calls = []
    monkeypatch.setattr(onednn, "swiglu_gradients", lambda *args: calls.append(args))
    monkeypatch.setattr(onednn, "swiglu_apply", lambda *args: calls.append(args))
    assert any(found.requires_grad for found in blocked.swiglu_gradients(*given))
    if position < 4:
        assert blocked.swiglu_apply(*given[:4]).requires_grad
    assert calls == []


def test_a_user_who_switched_onednn_off_gets_torch(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert not taken(monkeypatch, arguments(1, 256, 128, 128, 128))


# PyTorch itself uses what it has deprecated, when forward derivatives are first taken.
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_forward_derivatives_are_the_reference_s():
    *weights, x = arguments(1, 256, 128, 128, 128)[:4]

    def derivative(module):
        return torch.func.jvp(lambda tokens: module.swiglu_apply(*weights, tokens), (x,), (torch.ones_like(x),))[1]

    wanted = derivative(swiglu)
    assert wanted.abs().max() > 0.1
    assert torch.allclose(derivative(blocked), wanted, rtol=1e-5, atol=1e-5)


class Missing:
    """oneDNN's operators, in a build of PyTorch that has none of them."""


class Failing:
    """oneDNN's operators, with another signature than the one known here."""

    def _linear_pointwise(self, left):
        return left


class Refusing:
    """oneDNN's operators, on a processor that they have no code for."""

    def _linear_pointwise(self, *_):
        raise RuntimeError("could not create a primitive")


class PlainProduct:
    """A product without the function or operation asked for."""

    def __call__(self, left, right, *_):
        return left @ right.mT

    def binary(self, left, other, right, *_):
        return left @ right.mT


class Wrong:
    """oneDNN's operators, with another meaning than the one known here."""

    _linear_pointwise = PlainProduct()


@pytest.mark.parametrize("operators", [Missing, Failing, Refusing, Wrong])
def test_without_a_working_operator_torch_is_used(monkeypatch, operators):
    monkeypatch.setattr(torch.ops, "mkldnn", operators())
    given = arguments(1, 256, 129, 131, 137)
    assert not taken(monkeypatch, given)
    wide = [tensor.double() for tensor in given]
    for got, wanted in zip(blocked.swiglu_gradients(*given), swiglu.swiglu_gradients(*wide), strict=True):
        assert_close(got, wanted)
    assert_close(blocked.swiglu_apply(*given[:4]), swiglu.swiglu_apply(*wide[:4]))
