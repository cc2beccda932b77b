"""The published operation's outputs, case by case."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.fast_weights.tolerances import VECTOR_RMS_BFLOAT16, VECTOR_RTOL, assert_close, relative_rms
from tttabpfn.lact import lact_swiglu

# Checkpointing makes torch import its compiler, which looks at every loaded module, and tabpfn warns when looked at.
pytestmark = pytest.mark.filterwarnings("ignore:Importing from 'tabpfn:DeprecationWarning")

FOLDER = Path(__file__).resolve().parents[1] / "data" / "lact_vectors"
CASES = json.loads((FOLDER / "index.json").read_text())
OPTIONS = ("order", "chunk_size", "operators", "muon", "newton_schulz", "newton_schulz_steps", "newton_schulz_dtype")
INPUTS = ("w0", "w1", "w2", "q", "k", "v", "lr0", "lr1", "lr2")


def load(case):
    with np.load(FOLDER / case["file"]) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.mark.parametrize("needs_grad", [False, True], ids=["blocked", "autograd"])
@pytest.mark.parametrize("case", CASES, ids=[case["file"] for case in CASES])
def test_vector(case, needs_grad):
    arrays = load(case)
    options = {name: case[name] for name in OPTIONS if name in case}
    inputs = [arrays[name].clone().requires_grad_(needs_grad) for name in INPUTS]
    o, weights = lact_swiglu(*inputs, momentum=arrays.get("momentum"), **options)
    got = {"o": o, **{f"w{i}_out": weight for i, weight in enumerate(weights)}}
    expected = {name.removeprefix("expected_"): value for name, value in arrays.items() if name.startswith("expected_")}
    assert "o" in expected
    for name, wanted in expected.items():
        if case["newton_schulz_dtype"] == "bfloat16":
            assert relative_rms(got[name].detach(), wanted) < VECTOR_RMS_BFLOAT16
        else:
            size = float(wanted.square().mean().sqrt())
            assert_close(got[name].detach(), wanted, rtol=VECTOR_RTOL, atol=VECTOR_RTOL * size)


def test_every_vector_file_has_a_case():
    assert sorted(case["file"] for case in CASES) == sorted(path.name for path in FOLDER.glob("*.npz"))
