"""Which backend runs a call: logic only, with made-up capabilities."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from tttabpfn.fast_weights import operations
from tttabpfn.fast_weights.dispatch import OPERATIONS, STEP_COLUMNS, Capability, Spec, cannot_run, choose, worth_it

GPU = Capability(triton=True, interpreted=False, compute=(9, 0))
CPU = Capability(triton=True, interpreted=False, compute=None)
INTERPRETER = Capability(triton=True, interpreted=True, compute=None)
BARE = Capability(triton=False, interpreted=False, compute=(9, 0))


def spec(operation="newton_schulz", device="cuda", dtype="float32", **sizes):
    return Spec(operation, device, dtype, **({"batch": 48, "rows": 192, "cols": 192, "tokens": 4096} | sizes))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_gpu_takes_the_kernel_on_auto_and_when_forced(operation):
    assert choose(spec(operation), "auto", GPU) == "triton"
    assert choose(spec(operation), "triton", GPU) == "triton"
    assert choose(spec(operation), "torch", GPU) == "torch"


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_cpu_takes_torch_on_auto_even_under_the_interpreter(operation):
    assert choose(spec(operation, "cpu"), "auto", CPU) == "torch"
    assert choose(spec(operation, "cpu"), "auto", INTERPRETER) == "torch"
    assert choose(spec(operation, "cpu"), "triton", INTERPRETER) == "triton"


@pytest.mark.parametrize(
    ("call", "able", "reason"),
    [
        (spec(), BARE, r"triton is not installed; install the extra: pip install tttabpfn\[gpu\]"),
        (spec(device="cpu"), CPU, 'the data is on "cpu" and kernels need a CUDA device'),
        (spec(needs_grad=True), GPU, "an input requires grad"),
        (spec(dtype="float64"), GPU, r"dtype must be one of \['float32', 'bfloat16'\], got float64"),
        (spec(device="cpu", dtype="bfloat16"), INTERPRETER, "the interpreter is right for float32 only, got bfloat16"),
        (spec(), Capability(True, False, (7, 5)), "compute capability 8.0 or newer, got 7.5"),
        (spec("step", cols=STEP_COLUMNS + 1), GPU, f"rows must be at most {STEP_COLUMNS} long"),
    ],
    ids=["no triton", "cpu", "autograd", "float64", "interpreter bf16", "old gpu", "long rows"],
)
def test_a_forced_kernel_that_cannot_run_raises_with_the_reason_and_auto_falls_back(call, able, reason):
    with pytest.raises(RuntimeError, match=f'backend="triton" cannot run {call.operation}: .*{reason}'):
        choose(call, "triton", able)
    assert choose(call, "auto", able) == "torch"


def test_can_run_and_worth_it_are_apart():
    large = spec(rows=4096, cols=4096)
    assert cannot_run(large, GPU) is None
    assert not worth_it(large)
    assert choose(large, "auto", GPU) == "torch"
    assert choose(large, "triton", GPU) == "triton"
    assert not worth_it(spec("swiglu_apply", tokens=16))


def test_unknown_backend_is_refused_by_every_operation():
    w, t, r = torch.ones(1, 2, 2), torch.ones(1, 3, 2), torch.ones(1, 3, 1)
    calls = [
        lambda: operations.newton_schulz(w, backend="cuda"),
        lambda: operations.step(w, w, None, operations.StepOptions(0.0, 0.1), backend="cuda"),
        lambda: operations.swiglu_apply(w, w, w, t, backend="cuda"),
        lambda: operations.swiglu_gradients(w, w, w, t, t, r, r, r, backend="cuda"),
        lambda: choose(spec(), "cuda", GPU),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"backend must be one of \['auto', 'torch', 'triton'\], got 'cuda'"):
            call()


def test_forced_triton_on_float64_raises_before_any_kernel_is_built():
    with pytest.raises(RuntimeError, match='backend="triton" cannot run newton_schulz'):
        operations.newton_schulz(torch.ones(1, 2, 2, dtype=torch.float64), backend="triton")


def test_importing_and_running_on_a_cpu_leaves_triton_alone():
    code = (
        "import sys, torch\n"
        "from tttabpfn.fast_weights import operations, update_rules\n"
        "from tttabpfn.lact import LaCTSwiGLU\n"
        "LaCTSwiGLU(4)(torch.ones(1, 3, 4))\n"
        "operations.newton_schulz(torch.ones(1, 2, 2))\n"
        "sys.exit('triton' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
