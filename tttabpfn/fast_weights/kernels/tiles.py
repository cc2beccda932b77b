# mypy: disable-error-code="no-untyped-def"
"""What tiled Triton kernels share: finding a program's tile, masked reads and writes, and the loop of a product.

Matrices are given as a pointer to their first entry, two strides and two sizes, so that a transposed or strided matrix
costs no copy. Sizes may be odd: what lies outside reads as 0 and is not written.
"""

from __future__ import annotations

from itertools import chain

import triton
import triton.language as tl
from torch import Tensor

__all__ = ["add_product", "block_size", "find_tile", "read", "strides", "write"]


@triton.jit
def find_tile(rows, cols, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Entry of the stack (64-bit), row of tiles and column of tiles that this program works on."""
    tiles_m, tiles_n = tl.cdiv(rows, BLOCK_M), tl.cdiv(cols, BLOCK_N)
    program = tl.program_id(0)
    tile = program % (tiles_m * tiles_n)
    return (program // (tiles_m * tiles_n)).to(tl.int64), tile // tiles_n, tile % tiles_n


@triton.jit
def read(matrix, m, n, stride_m, stride_n, rows, cols):
    """Entries at rows `m` and columns `n`."""
    return tl.load(
        matrix + m[:, None] * stride_m + n[None, :] * stride_n,
        mask=(m[:, None] < rows) & (n[None, :] < cols),
        other=0.0,
    )


@triton.jit
def write(matrix, value, m, n, stride_m, stride_n, rows, cols):
    """Put `value`, in the dtype of the matrix, at rows `m` and columns `n`."""
    tl.store(
        matrix + m[:, None] * stride_m + n[None, :] * stride_n,
        value.to(matrix.dtype.element_ty),
        mask=(m[:, None] < rows) & (n[None, :] < cols),
    )


@triton.jit
def add_product(
    total,
    lhs,
    rhs,
    m,
    n,
    first,
    last,
    rows,
    cols,
    lhs_m,
    lhs_k,
    rhs_k,
    rhs_n,
    factor,
    SCALED: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Add rows `m` of `lhs` times columns `n` of `rhs`, over inner places from `first` to `last`, to a float32 `total`.

    With SCALED the entries of `lhs` are multiplied by `factor` first, and rounded to their dtype.
    """
    for start in range(first, last, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        left = read(lhs, m, k, lhs_m, lhs_k, rows, last)
        right = read(rhs, k, n, rhs_k, rhs_n, last, cols)
        if SCALED:
            left = (left.to(tl.float32) * factor).to(left.dtype)
        total = tl.dot(left, right, total, input_precision="ieee")
    return total


def block_size(size: int) -> int:
    """Least power of two that holds `size` and that a tile's side may have.

    Examples
    --------
    >>> block_size(3), block_size(65)
    (16, 128)
    """
    return max(16, triton.next_power_of_2(size))


def strides(*tensors: Tensor) -> tuple[int, ...]:
    """Strides of all tensors one after another, as kernels take them.

    Examples
    --------
    >>> import torch
    >>> strides(torch.empty(2, 3), torch.empty(4))
    (3, 1, 1)
    """
    return tuple(chain.from_iterable(tensor.stride() for tensor in tensors))
