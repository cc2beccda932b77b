"""Newton-Schulz kernels against the reference."""

from __future__ import annotations

import pytest
import torch

from tests.fast_weights.kernels.inputs import assert_kernel, normal, strided
from tests.fast_weights.tolerances import relative_rms
from tttabpfn.fast_weights import operations, reference

SMALL = [(1, 1, 1), (2, 16, 16), (3, 17, 33), (2, 40, 23), (5, 1, 63), (1, 64, 64)]
TILED = [(2, 17, 33), (1, 65, 66), (2, 70, 40)]


@pytest.fixture
def always_tiled(device, monkeypatch):
    from tttabpfn.fast_weights.kernels import newton_schulz as kernel

    monkeypatch.setattr(kernel, "ON_CHIP_SIZE", {"float32": 0, "bfloat16": 0})


def check(matrix, *options):
    got = operations.newton_schulz(matrix, *options, backend="triton")
    assert_kernel(got, reference.newton_schulz(matrix, *options))


@pytest.mark.parametrize("schedule", ["schedule", "fixed"])
@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_on_chip_equals_reference(device, shape, schedule):
    check(normal(*shape, device=device), schedule)


@pytest.mark.parametrize("schedule", ["schedule", "fixed"])
@pytest.mark.parametrize("shape", TILED, ids=str)
def test_tiled_equals_reference(device, always_tiled, shape, schedule):
    check(normal(*shape, device=device), schedule, 3)


def test_a_matrix_too_large_for_the_chip_is_tiled(device):
    check(normal(1, 129, 30, device=device), "schedule", 2)


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_fewer_steps(device, steps):
    check(normal(2, 9, 12, device=device), "schedule", steps)


@pytest.mark.parametrize("shape", [(2, 17, 33), (2, 33, 17), (2, 20, 20)], ids=["wide", "tall", "square"])
def test_strided_input_is_read_right_and_left_alone(device, shape):
    matrix = strided(normal(*shape, device=device))
    before = matrix.clone()
    check(matrix)
    assert torch.equal(matrix, before)


def test_strided_input_tiled(device, always_tiled):
    check(strided(normal(2, 33, 40, device=device)), "schedule", 2)


def test_zero_and_extreme_matrices_do_not_mix(device):
    matrices = normal(4, 12, 12, device=device) * torch.tensor([0.0, 1e-6, 1.0, 1e6], device=device)[:, None, None]
    got = operations.newton_schulz(matrices, backend="triton")
    assert torch.equal(got[0], torch.zeros_like(got[0]))
    assert_kernel(got[1:], reference.newton_schulz(matrices)[1:])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("shape", [(48, 64, 64), (7, 128, 100), (3, 192, 192), (2, 300, 500)], ids=str)
def test_bfloat16_rounds_as_torch_does(shape):
    matrix = normal(*shape, device="cuda")
    got = operations.newton_schulz(matrix, "schedule", 5, "bfloat16", backend="triton")
    wanted = reference.newton_schulz(matrix)
    own = reference.newton_schulz(matrix, "schedule", 5, "bfloat16")
    assert not got.isnan().any()
    assert relative_rms(got, wanted) < 1.5 * relative_rms(own, wanted)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("size", [64, 128, 192, 256, 512])
def test_float32_at_working_sizes(size):
    check(normal(12, size, size, device="cuda"))
