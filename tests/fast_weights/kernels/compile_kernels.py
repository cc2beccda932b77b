"""Compile the kernels for compute capability 8.0 and print name, dtype and bytes of shared memory of each."""

from __future__ import annotations

import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tttabpfn.fast_weights.kernels import newton_schulz, product, step, swiglu

TARGET = GPUTarget("cuda", 80, 32)
SWIGLU_POINTERS = ("w0", "w1", "w2", "k", "v", "lr0", "lr1", "lr2", "p0", "p1", "p2")


def compiled(kernel, kind, pointers, constants, *, numbers=(), table=(), warps=8):
    """Compile one kernel: `pointers` are of dtype `kind`, `table` and `numbers` float32, the rest 32-bit integers."""
    types = dict.fromkeys(pointers, f"*{kind}") | dict.fromkeys(table, "*fp32") | dict.fromkeys(numbers, "fp32")
    types |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, {name: types.get(name, "i32") for name in kernel.arg_names}, constexprs=constants)
    done = triton.compile(source, target=TARGET, options={"num_warps": warps, "enable_fp_fusion": True})
    sys.stdout.write(f"{kernel.__name__} {kind} {done.metadata.shared}\n")


def main():
    constants = {"EPSILON": 1e-7, "LOW": True, "SIZE_M": 128, "SIZE_N": 128}
    compiled(newton_schulz._on_chip, "fp32", ("matrix", "out"), constants, table=("triples",))
    tile = {"BLOCK_M": 64, "BLOCK_N": 64}
    constants = {"HAS_BASE": True, "SCALED": True, "SYMMETRIC": True, **tile, "BLOCK_K": 32}
    compiled(
        product._affine_product, "bf16", ("lhs", "rhs", "base", "out"), constants, numbers=("alpha", "beta"), warps=4
    )
    compiled(product._token_product, "bf16", ("lhs", "rhs"), {**tile, "BLOCK_T": 32}, table=("partial",), warps=4)
    compiled(
        step._step,
        "bf16",
        ("weight", "gradient", "buffer", "norms", "new_weight", "new_buffer"),
        {"HAS_BUFFER": True, "HAS_NORMS": True, "BLOCK_N": 256},
        numbers=("weight_decay", "norm_eps"),
        table=("momentum", "step_size"),
        warps=4,
    )
    constants = {"SIZE_K": 128, "SIZE_V": 128, "BLOCK_L": 64, "BLOCK_H": 32}
    compiled(swiglu._narrow_apply, "bf16", ("w0", "w1", "w2", "x", "out"), constants)
    constants = {"GRADIENTS": True, "BLOCK_L": 64, "BLOCK_H": 64, "BLOCK_K": 32}
    compiled(swiglu._hidden_rows, "bf16", SWIGLU_POINTERS, constants)


if __name__ == "__main__":
    main()
