"""Every kernel compiles for real GPUs, to machine code, with no GPU at hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMPILE = Path(__file__).with_name("compile_kernels.py")


@pytest.mark.skipif(sys.platform != "linux", reason="triton's wheels are for Linux")
def test_every_kernel_compiles_and_fits_in_shared_memory(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"}
    done = subprocess.run([sys.executable, COMPILE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 6
    for kernel, kind, shared in lines:
        assert int(shared) <= 99 * 1024, f"{kernel} ({kind}) needs {shared} bytes, more than compute capability 8.6 has"
