"""Sliding-window attention against the masked softmax."""

from __future__ import annotations

import pytest
import torch

from tests.fast_weights.tolerances import RTOL_EXACT, relative_max
from tttabpfn.lact.window import window_attention


@pytest.mark.parametrize("length", [1, 4, 5, 13, 16])
@pytest.mark.parametrize("window", [1, 2, 4, 7, 16, 40])
def test_equals_the_masked_softmax(length, window):
    draw = torch.Generator().manual_seed(0)
    q, k = (torch.randn(3, length, 6, dtype=torch.float64, generator=draw) for _ in range(2))
    v = torch.randn(3, length, 5, dtype=torch.float64, generator=draw)
    back = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    scores = (q @ k.mT / 6**0.5).masked_fill((back < 0) | (back >= window), float("-inf"))
    assert relative_max(window_attention(q, k, v, window), scores.softmax(-1) @ v) < RTOL_EXACT[torch.float64]


def test_window_below_one_is_refused():
    x = torch.ones(1, 2, 2)
    with pytest.raises(ValueError, match="window_size must be 1 or more, got 0"):
        window_attention(x, x, x, 0)
