"""Inputs of the kernel tests: seeded, odd-sized, strided."""

from __future__ import annotations

import torch

from tests.fast_weights.tolerances import KERNEL_RMS, relative_rms


def normal(*shape, device="cpu", dtype=torch.float32, seed=0):
    """Standard normal numbers, the same on every device."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def strided(value):
    """The same numbers with gaps between all of them."""
    wide = value.new_full((*value.shape[:-1], 2 * value.shape[-1] + 1), float("nan"))
    out = wide[..., 1::2]
    out.copy_(value)
    return out


def swiglu_inputs(batch, tokens, keys, hidden, values, device="cpu", dtype=torch.float32):
    """w0, w1, w2, k, v, lr0, lr1, lr2."""
    shapes = [(batch, hidden, keys), (batch, values, hidden), (batch, hidden, keys), (batch, tokens, keys)]
    shapes.append((batch, tokens, values))
    tensors = [normal(*shape, device=device, seed=seed) / shape[-1] ** 0.5 for seed, shape in enumerate(shapes)]
    tensors += [normal(batch, tokens, 1, device=device, seed=10 + index).sigmoid() for index in range(3)]
    return [value.to(dtype) for value in tensors]


def assert_kernel(got, wanted, dtype=torch.float32):
    """Every output is written, and close to the float32 reference as the table of tolerances says."""
    assert got.shape == wanted.shape
    assert not got.isnan().any()
    assert relative_rms(got.cpu(), wanted.cpu()) < KERNEL_RMS[dtype]
