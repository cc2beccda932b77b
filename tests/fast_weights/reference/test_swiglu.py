"""SwiGLU leaf operations: the reference against autograd, the blocked version against the reference."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tests.fast_weights.tolerances import KERNEL_RMS, RTOL_EXACT, relative_max, relative_rms
from tttabpfn.fast_weights import blocked
from tttabpfn.fast_weights.reference import swiglu

# Checkpointing makes torch import its compiler, which looks at every loaded module, and tabpfn warns when looked at.
pytestmark = pytest.mark.filterwarnings("ignore:Importing from 'tabpfn:DeprecationWarning")

F64 = RTOL_EXACT[torch.float64]
SIZES = {
    "one token": (1, 1, 3, 4, 5),
    "odd": (2, 63, 7, 9, 5),
    "block - 1": (1, 255, 4, 5, 3),
    "block": (1, 256, 4, 5, 3),
    "block + 1": (3, 257, 4, 5, 3),
    "several blocks": (3, 700, 6, 4, 6),
}


def draw(batch, tokens, keys, hidden, values, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, dtype=dtype, generator=generator) / shape[-1] ** 0.5

    weights = normal(batch, hidden, keys), normal(batch, values, hidden), normal(batch, hidden, keys)
    tokens_ = normal(batch, tokens, keys), normal(batch, tokens, values)
    rates = [torch.rand(batch, tokens, 1, dtype=dtype, generator=generator) for _ in range(3)]
    return (*weights, *tokens_, *rates)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 256 tokens, the least there is, so that a few hundred tokens cross their edges."""
    monkeypatch.setattr(blocked, "CPU_BLOCK_ELEMENTS", 1)
    monkeypatch.setattr(blocked, "GRAD_BLOCK_ELEMENTS", 1)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_reference_gradients_are_autograds(size):
    w0, w1, w2, k, v, *rates = draw(*size)
    for index, rate in enumerate(rates):
        weights = [weight.clone().requires_grad_() for weight in (w0, w1, w2)]
        loss = -(rate * v * swiglu.swiglu_apply(*weights, k)).sum()
        wanted = torch.autograd.grad(loss, weights[index])[0]
        got = swiglu.swiglu_gradients(w0, w1, w2, k, v, *rates)[index]
        assert relative_max(got, wanted) < F64


def test_forward_is_the_formula():
    w0, w1, w2, k, *_ = draw(2, 5, 3, 4, 6)
    wanted = torch.einsum(
        "bvh,blh->blv", w1, F.silu(torch.einsum("bhk,blk->blh", w0, k)) * torch.einsum("bhk,blk->blh", w2, k)
    )
    assert relative_max(swiglu.swiglu_apply(w0, w1, w2, k), wanted) < F64


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_blocked_equals_reference(size, dtype):
    arguments = draw(*size, dtype=dtype)
    exact = [value.double() for value in arguments]
    got = blocked.swiglu_gradients(*arguments)
    for left, right in zip(got, swiglu.swiglu_gradients(*exact), strict=True):
        assert left.dtype == dtype
        assert relative_rms(left, right) < (F64 if dtype == torch.float64 else KERNEL_RMS[dtype])
    applied = blocked.swiglu_apply(*arguments[:4])
    assert relative_rms(applied, swiglu.swiglu_apply(*exact[:4])) < (
        F64 if dtype == torch.float64 else KERNEL_RMS[dtype]
    )


@pytest.mark.parametrize("size", [SIZES["odd"], SIZES["several blocks"]], ids=["odd", "several blocks"])
def test_blocked_takes_strided_inputs_and_writes_into_out(size):
    arguments = [value.mT.contiguous().mT for value in draw(*size)]
    before = [value.clone() for value in arguments]
    wide = torch.full((size[0], size[1] + 3, size[4]), float("nan"), dtype=torch.float64)
    out = wide[:, 1:-2]
    assert blocked.swiglu_apply(*arguments[:4], out=out) is out
    assert relative_max(out, swiglu.swiglu_apply(*before[:4])) < F64
    assert wide[:, 0].isnan().all()
    assert wide[:, -2:].isnan().all()
    for left, right in zip(blocked.swiglu_gradients(*arguments), swiglu.swiglu_gradients(*before), strict=True):
        assert relative_max(left, right) < F64
    assert all(torch.equal(left, right) for left, right in zip(arguments, before, strict=True))


def test_low_precision_sums_run_in_float32():
    arguments = draw(1, 4096, 8, 8, 8, dtype=torch.float32)
    low = [value.bfloat16() for value in arguments]
    wanted = swiglu.swiglu_gradients(*(value.double() for value in low))
    for left, right in zip(blocked.swiglu_gradients(*low), wanted, strict=True):
        assert left.dtype == torch.bfloat16
        assert relative_rms(left, right) < 2 * KERNEL_RMS[torch.bfloat16]


def test_checkpointed_blocks_have_the_reference_derivatives():
    arguments = [value.requires_grad_() for value in draw(*SIZES["several blocks"])]
    upstream = draw(3, 1, 6, 4, 6, seed=1)[:3]

    def derivatives(module):
        gradients = module.swiglu_gradients(*arguments)
        loss = sum((left * right).sum() for left, right in zip(gradients, upstream, strict=True))
        loss = loss + module.swiglu_apply(*arguments[:4]).square().sum()
        return torch.autograd.grad(loss, arguments)

    for left, right in zip(derivatives(blocked), derivatives(swiglu), strict=True):
        assert relative_max(left, right) < F64


class LargestNewStorage(TorchDispatchMode):
    """The largest tensor any operation allocates, in bytes."""

    def __init__(self, known):
        super().__init__()
        self.known = {value.untyped_storage().data_ptr() for value in known}
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor) and value.untyped_storage().data_ptr() not in self.known:
                self.largest = max(self.largest, value.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("tokens", [1_000, 1_000_000])
def test_scratch_memory_does_not_grow_with_the_chunk(tokens):
    arguments = draw(1, tokens, 4, 4, 4, dtype=torch.float32)
    out = torch.empty(1, tokens, 4)
    with LargestNewStorage([*arguments, out]) as seen:
        blocked.swiglu_gradients(*arguments)
        blocked.swiglu_apply(*arguments[:4], out=out)
    assert 0 < seen.largest <= 5 * 256 * 4 * 4


def test_memory_kept_for_the_backward_pass_is_one_block():
    arguments = [value.requires_grad_() for value in draw(1, 20_000, 4, 4, 4, dtype=torch.float32)]
    known = {value.untyped_storage().data_ptr() for value in arguments}
    kept = {}

    def pack(value):
        if value.untyped_storage().data_ptr() not in known:
            kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        total = sum(gradient.sum() for gradient in blocked.swiglu_gradients(*arguments))
    assert sum(kept.values()) < 20_000 * 4 * 4
    assert total.requires_grad
