"""SwiGLU kernels against the reference: forward and every gradient."""

from __future__ import annotations

import pytest
import torch

from tests.fast_weights.kernels.inputs import assert_kernel, strided, swiglu_inputs
from tttabpfn.fast_weights import operations, reference

SIZES = {
    "one": (1, 1, 1, 1, 1),
    "odd": (2, 63, 17, 33, 20),
    "block": (1, 64, 16, 32, 64),
    "block + 1": (1, 65, 16, 65, 16),
    "wide keys": (1, 33, 70, 40, 20),
    "wide values": (2, 20, 20, 70, 67),
}


def check(arguments, wanted_from=None, dtype=torch.float32):
    exact = [value.float() for value in wanted_from or arguments]
    assert_kernel(operations.swiglu_apply(*arguments[:4], backend="triton"), reference.swiglu_apply(*exact[:4]), dtype)
    got = operations.swiglu_gradients(*arguments, backend="triton")
    for left, right in zip(got, reference.swiglu_gradients(*exact), strict=True):
        assert left.dtype == dtype
        assert_kernel(left, right, dtype)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_forward_and_gradients_equal_reference(device, size):
    check(swiglu_inputs(*size, device=device))


@pytest.mark.parametrize("size", [SIZES["odd"], SIZES["wide keys"]], ids=["odd", "wide keys"])
def test_strided_inputs_are_read_right_and_left_alone(device, size):
    arguments = [strided(value) for value in swiglu_inputs(*size, device=device)]
    before = [value.clone() for value in arguments]
    check(arguments)
    assert all(torch.equal(left, right) for left, right in zip(arguments, before, strict=True))


@pytest.mark.parametrize("size", [SIZES["odd"], SIZES["wide keys"]], ids=["on chip", "in two launches"])
def test_result_is_written_into_out_and_nowhere_else(device, size):
    arguments = swiglu_inputs(*size, device=device)
    wide = torch.full((size[0], size[1] + 2, size[4]), 7.0, device=device)
    out = wide[:, 1:-1]
    assert operations.swiglu_apply(*arguments[:4], out, backend="triton") is out
    assert_kernel(out, reference.swiglu_apply(*arguments[:4]))
    assert (wide[:, [0, -1]] == 7.0).all()


def test_tokens_beyond_the_scratch_are_added_up(device, monkeypatch):
    from tttabpfn.fast_weights.kernels import swiglu as kernel

    monkeypatch.setattr(kernel, "SCRATCH_TOKENS", 48)
    check(swiglu_inputs(1, 130, 66, 20, 18, device=device))


def test_sums_over_many_tokens_are_split_and_repeat_bit_by_bit(device):
    arguments = swiglu_inputs(1, 700, 8, 8, 8, device=device)
    first, second = (operations.swiglu_gradients(*arguments, backend="triton") for _ in range(2))
    assert all(torch.equal(left, right) for left, right in zip(first, second, strict=True))
    check(arguments)


def test_large_gates_do_not_overflow(device):
    arguments = swiglu_inputs(1, 8, 4, 6, 4, device=device)
    arguments[0] = arguments[0] * 1e4
    check(arguments)


def test_autograd_is_refused(device):
    arguments = [value.requires_grad_() for value in swiglu_inputs(*SIZES["odd"], device=device)]
    with pytest.raises(RuntimeError, match="an input requires grad"):
        operations.swiglu_gradients(*arguments, backend="triton")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "size", [(12, 2049, 64, 128, 64), (2, 2048, 192, 768, 192), (1, 4097, 768, 1536, 768)], ids=str
)
def test_working_sizes_on_a_gpu(size, dtype):
    check(swiglu_inputs(*size, device="cuda", dtype=dtype), dtype=dtype)
