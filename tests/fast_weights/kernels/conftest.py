"""Where kernels run in these tests: on a GPU if there is one, else in Triton's interpreter on the CPU."""

from __future__ import annotations

import os
import sys

import pytest
import torch

ON_GPU = torch.cuda.is_available()

if not ON_GPU:
    # Triton reads this when it is first imported. Other tests that import triton must come after, or set it too.
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("triton was imported before TRITON_INTERPRET=1 was set; run these tests in a fresh process")
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture
def device():
    return "cuda" if ON_GPU else "cpu"


@pytest.fixture(autouse=True)
def interpreter_is_seen():
    """`capability` looks once per process; look again with the interpreter on, and forget it afterwards."""
    from tttabpfn.fast_weights.dispatch import capability

    capability.cache_clear()
    yield
    capability.cache_clear()


@pytest.fixture(autouse=True)
def poisoned_scratch(monkeypatch):
    """Fill what `torch.empty` returns with NaN, so that an entry no kernel wrote shows."""
    empty = torch.empty

    def poisoned(*size, **options):
        out = empty(*size, **options)
        return out.fill_(float("nan")) if out.is_floating_point() else out

    monkeypatch.setattr(torch, "empty", poisoned)
