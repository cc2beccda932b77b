"""backend="triton" through the layers above: every leaf of an update and of LaCT is a kernel."""

from __future__ import annotations

import pytest
import torch

from tests.fast_weights.kernels.inputs import normal, swiglu_inputs
from tests.fast_weights.tolerances import KERNEL_RMS, relative_rms
from tttabpfn.fast_weights.update_rules import RULES, init_state, update
from tttabpfn.lact import lact_swiglu


@pytest.mark.parametrize("rule", RULES)
def test_update_equals_the_torch_backend(device, rule):
    shapes = {"wide": (2, 4, 6), "tall": (2, 6, 4), "bias": (2, 5)}
    results = []
    for backend in ("triton", "torch"):
        weights = {name: normal(*shape, device=device) for name, shape in shapes.items()}
        state = init_state(rule, weights)
        for seed in (1, 2):
            gradients = {name: normal(*shape, device=device, seed=seed) for name, shape in shapes.items()}
            sizes = torch.tensor([0.0, 0.1], device=device)
            weights, state = update(rule, weights, gradients, state, sizes, restore_norms=True, backend=backend)
        results.append(weights)
    for name in shapes:
        assert relative_rms(results[0][name].cpu(), results[1][name].cpu()) < KERNEL_RMS[torch.float32]


@pytest.mark.parametrize(("muon", "order"), [(True, "causal"), (False, "causal"), (True, "causal-prenorm")])
def test_lact_equals_the_torch_backend(device, muon, order):
    w0, w1, w2, k, v, *rates = swiglu_inputs(2, 41, 10, 12, 9, device=device)
    q, momentum = normal(2, 41, 10, device=device, seed=20), rates[0] * 0.9
    results = []
    for backend in ("triton", "torch"):
        options = {"order": order, "chunk_size": 16, "muon": muon, "momentum": momentum, "backend": backend}
        o, weights = lact_swiglu(w0, w1, w2, q, k, v, *rates, **options)
        results.append([o, *weights])
    for left, right in zip(*results, strict=True):
        assert not left.isnan().any()
        assert relative_rms(left.cpu(), right.cpu()) < 10 * KERNEL_RMS[torch.float32]
