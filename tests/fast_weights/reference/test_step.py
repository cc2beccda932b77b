"""Row norms and their restoration."""

from __future__ import annotations

import pytest
import torch

from tests.fast_weights.tolerances import NORM_RTOL, assert_close
from tttabpfn.fast_weights.reference.step import restore_row_norms, row_norms


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
def test_restored_rows_have_the_wanted_norms_and_keep_their_direction(scale):
    draw = torch.Generator().manual_seed(0)
    start, moved = (scale * torch.randn(3, 7, 5, generator=draw) for _ in range(2))
    restored = restore_row_norms(moved, row_norms(start))
    assert_close(row_norms(restored), row_norms(start), rtol=NORM_RTOL, atol=0)
    cosine = torch.nn.functional.cosine_similarity(restored, moved, dim=-1)
    assert_close(cosine, torch.ones_like(cosine), rtol=NORM_RTOL, atol=0)


def test_eps_is_added_to_the_norm_not_put_under_the_root():
    weight = torch.tensor([[[0.3, 0.4]]], dtype=torch.float64)
    restored = restore_row_norms(weight, torch.ones(1, 1, 1, dtype=torch.float64), eps=0.5)
    assert_close(row_norms(restored).item(), 0.5 / (0.5 + 0.5))


def test_zero_rows_stay_zero_and_finite():
    restored = restore_row_norms(torch.zeros(1, 2, 3), torch.ones(1, 2, 1))
    assert torch.equal(restored, torch.zeros(1, 2, 3))
