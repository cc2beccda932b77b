"""The fused momentum, update and row-norm kernel against the reference."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.fast_weights.kernels.inputs import assert_kernel, normal, strided
from tests.fast_weights.tolerances import NORM_RTOL, assert_close
from tttabpfn.fast_weights import operations, reference
from tttabpfn.fast_weights.reference.step import StepOptions, row_norms

SHAPES = [(1, 1, 1), (3, 5, 37), (2, 16, 64), (2, 3, 257)]


def check(tensors, options, dtype=torch.float32):
    exact = [None if value is None else value.float() for value in tensors]
    wide = StepOptions(*(value.float() if isinstance(value, torch.Tensor) else value for value in options))
    got, wanted = operations.step(*tensors, options, backend="triton"), reference.step(*exact, wide)
    for left, right in zip(got, wanted, strict=True):
        assert (left is None) == (right is None)
        if left is not None:
            assert left.dtype == dtype
            assert_kernel(left, right, dtype)
    return got


@pytest.mark.parametrize(("with_buffer", "with_norms"), list(itertools.product([False, True], repeat=2)))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_reference(device, shape, with_buffer, with_norms):
    weight, gradient, buffer = (normal(*shape, device=device, seed=seed) for seed in range(3))
    norms = row_norms(normal(*shape, device=device, seed=3)) if with_norms else None
    check([weight, gradient, buffer if with_buffer else None], StepOptions(0.9, 0.1, 0.01, norms, 1e-5))


def test_momentum_and_step_size_per_entry_and_bits_kept_at_zero(device):
    weight, gradient, buffer = (normal(3, 5, 37, device=device, seed=seed) for seed in range(3))
    sizes, factors = torch.tensor([0.0, 0.1, 0.3], device=device), torch.tensor([0.5, 0.0, 0.9], device=device)
    new, running = check([weight, gradient, buffer], StepOptions(factors, sizes, 0.1, row_norms(weight), 1e-5))
    assert torch.equal(new[0], weight[0])
    assert not torch.equal(new[1], weight[1])
    assert torch.equal(running[1], gradient[1])


def test_row_norms_are_restored(device):
    weight, gradient = (normal(2, 7, 33, device=device, seed=seed) for seed in range(2))
    options = StepOptions(0.0, 0.5, norms=row_norms(weight))
    new, _ = operations.step(weight, gradient, None, options, backend="triton")
    assert_close(row_norms(new).cpu(), row_norms(weight).cpu(), rtol=NORM_RTOL)


def test_strided_inputs_are_read_right_and_left_alone(device):
    tensors = [strided(normal(2, 5, 21, device=device, seed=seed)) for seed in range(3)]
    before = [value.clone() for value in tensors]
    check(tensors, StepOptions(0.9, 0.1, 0.01, row_norms(tensors[0]), 1e-5))
    assert all(torch.equal(left, right) for left, right in zip(tensors, before, strict=True))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(48, 192, 192), (3, 7, 16384)], ids=str)
def test_working_sizes_on_a_gpu(shape, dtype):
    tensors = [normal(*shape, device="cuda", dtype=dtype, seed=seed) for seed in range(3)]
    check(tensors, StepOptions(0.9, 0.1, 0.01, row_norms(tensors[0]), 1e-5), dtype)
