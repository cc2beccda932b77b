"""Newton-Schulz orthogonalisation: what it gives, and what it does not."""

from __future__ import annotations

import pytest
import torch

from tests.fast_weights.tolerances import MUON_BAND, RTOL_EXACT, relative_max
from tttabpfn.fast_weights import blocked
from tttabpfn.fast_weights.reference.newton_schulz import COEFFICIENTS, coefficients, newton_schulz

SHAPES = [(1, 16, 16), (3, 24, 16), (3, 16, 24), (2, 1, 5), (2, 64, 64)]


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def with_singular_values(values, rows, cols):
    left = torch.linalg.qr(draw(rows, rows, seed=1)).Q[:, : len(values)]
    right = torch.linalg.qr(draw(cols, cols, seed=2)).Q[:, : len(values)]
    return (left * torch.tensor(values, dtype=torch.float64)) @ right.T


@pytest.mark.parametrize("schedule", sorted(COEFFICIENTS))
@pytest.mark.parametrize("shape", [(12, 12), (12, 30), (30, 12)], ids=["square", "wide", "tall"])
def test_singular_values_land_in_the_band_and_vectors_stay(schedule, shape):
    values = [10.0 ** (-2 * i / 11) for i in range(12)]
    matrix = with_singular_values(values, *shape)
    left, got, right = torch.linalg.svd(newton_schulz(matrix[None], schedule)[0], full_matrices=False)
    assert MUON_BAND[0] < got.min()
    assert got.max() < MUON_BAND[1]
    polar = left @ right
    wanted_left, _, wanted_right = torch.linalg.svd(matrix, full_matrices=False)
    assert relative_max(polar, wanted_left @ wanted_right) < 1e-8


def test_small_singular_values_stay_below_the_band():
    matrix = with_singular_values([1.0, 1e-6], 6, 6)
    assert torch.linalg.svdvals(newton_schulz(matrix[None]))[0, 1] < 0.01


def test_every_matrix_of_the_stack_is_orthogonalised_alone():
    matrices = draw(4, 8, 12) * torch.tensor([1e-4, 1.0, 1e4, 1e8], dtype=torch.float64)[:, None, None]
    together = newton_schulz(matrices)
    for index in range(4):
        alone = newton_schulz(matrices[index : index + 1])
        assert relative_max(together[index : index + 1], alone) < RTOL_EXACT[torch.float64]
    stacked = newton_schulz(matrices[:2].reshape(1, 16, 12)).reshape(2, 8, 12)
    assert relative_max(stacked, together[:2]) > 0.1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("schedule", sorted(COEFFICIENTS))
def test_polynomial_acts_on_singular_values(shape, schedule):
    matrix = draw(*shape)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    values = values / (torch.linalg.vector_norm(values, dim=-1, keepdim=True) + 1e-7)
    for a, b, c in coefficients(schedule, 5):
        values = a * values + b * values**3 + c * values**5
    wanted = left @ (values.unsqueeze(-1) * right)
    assert relative_max(newton_schulz(matrix, schedule), wanted) < RTOL_EXACT[torch.float64]


@pytest.mark.parametrize("schedule", sorted(COEFFICIENTS))
def test_a_stack_in_groups_equals_the_stack_at_once(schedule, monkeypatch):
    monkeypatch.setattr(blocked, "CPU_STACK_ELEMENTS", 2 * 8 * 12)
    matrices = draw(5, 8, 12)
    before = matrices.clone()
    assert relative_max(blocked.newton_schulz(matrices, schedule), newton_schulz(before, schedule)) < 1e-12
    assert torch.equal(matrices, before)


def test_zero_steps_divide_by_the_frobenius_norm():
    matrix = draw(2, 5, 3)
    wanted = matrix / (matrix.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    assert relative_max(newton_schulz(matrix, "fixed", 0), wanted) < RTOL_EXACT[torch.float64]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_zero_matrix_stays_zero(dtype):
    assert torch.equal(newton_schulz(torch.zeros(2, 3, 4), dtype=dtype), torch.zeros(2, 3, 4))


def test_dtype_of_the_result_is_that_of_the_matrix_and_input_is_untouched():
    matrix = draw(1, 4, 4, dtype=torch.float32)
    before = matrix.clone()
    low = newton_schulz(matrix, dtype="bfloat16")
    assert low.dtype == torch.float32
    assert torch.equal(matrix, before)
    assert 0 < relative_max(low, newton_schulz(matrix)) < 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cubic", 5), "newton_schulz must be one of"),
        (("schedule", 6), "newton_schulz_steps must be at most 5"),
        (("fixed", -1), "newton_schulz_steps must be an integer of 0 or more, got -1"),
        (("fixed", 2.0), "newton_schulz_steps must be an integer"),
    ],
)
def test_bad_coefficients_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        coefficients(*arguments)


def test_bad_dtype_is_refused():
    with pytest.raises(ValueError, match="newton_schulz_dtype must be one of"):
        newton_schulz(torch.ones(1, 2, 2), dtype="float16")
