"""The kernels of `Streams` and `DotProducts`: weights pass through registers, a block ahead.

They begin to read sooner than `Tiles` do: the first block of weights is under way before the
kernel that computes x has ended. That counts where a layer takes only microseconds.

- `streams` multiplies on the tensor cores; each of SLICES groups of warps takes its own range of
  every block of in_features, which keeps all warps busy on few weight rows.
- `dot_products` multiplies one or two rows in fp32, where the tensor cores would multiply padding.
"""

from __future__ import annotations

import triton
import triton.language as tl

from octavo_kernels.gpu.linear_epilogue import finish


@triton.jit
def _block(ptr, row, k, num_rows, in_features, EVICTION: tl.constexpr):
    inside = (row < num_rows) & (k < in_features)
    offsets = row.to(tl.int64) * in_features + k
    return tl.load(ptr + offsets, mask=inside, other=0.0, eviction_policy=EVICTION)


@triton.jit
def _weight_rows(first_n, num_columns, BLOCK_N: tl.constexpr, HALVES: tl.constexpr):
    """BLOCK_N rows from first_n on, then, with two HALVES, the same rows of the second half."""
    lane = tl.arange(0, HALVES * BLOCK_N)
    return first_n + lane % BLOCK_N + (lane // BLOCK_N) * num_columns


@triton.jit(do_not_specialize=["num_rows"])
def streams(
    x_ptr,
    weight_ptr,
    output_ptr,
    bias_ptr,
    num_rows,
    num_columns,
    in_features,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SLICES: tl.constexpr,
    GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GELU: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    first_n = tl.program_id(0) * BLOCK_N
    HALVES: tl.constexpr = 2 if GATED else 1
    n = _weight_rows(first_n, num_columns, BLOCK_N, HALVES)
    num_weight_rows = num_columns * HALVES
    # The first operand of the tensor cores has 16 rows at least, the second 8.
    X_FIRST: tl.constexpr = HALVES * BLOCK_N < 16
    TALL: tl.constexpr = BLOCK_M if X_FIRST else HALVES * BLOCK_N
    WIDE: tl.constexpr = HALVES * BLOCK_N if X_FIRST else BLOCK_M
    # A product of three dimensions cannot be asynchronous, so a single slice has two.
    if SLICES > 1:
        n = n[None, :, None]
        m = tl.arange(0, BLOCK_M)[None, :, None]
        k = tl.arange(0, SLICES)[:, None, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, None, :]
        product = tl.zeros((SLICES, TALL, WIDE), tl.float32)
    else:
        n = n[:, None]
        m = tl.arange(0, BLOCK_M)[:, None]
        k = tl.arange(0, BLOCK_K)[None, :]
        product = tl.zeros((TALL, WIDE), tl.float32)
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
    weight = _block(weight_ptr, n, k, num_weight_rows, in_features, "evict_first")
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
    x = _block(x_ptr, m, k, num_rows, in_features, "")
    for _ in range(0, in_features, BLOCK_K * SLICES):
        k += BLOCK_K * SLICES
        next_weight = _block(weight_ptr, n, k, num_weight_rows, in_features, "evict_first")
        next_x = _block(x_ptr, m, k, num_rows, in_features, "")
        tall, wide = (x, weight) if X_FIRST else (weight, x)
        if SLICES > 1:
            product = tl.dot(tall, tl.permute(wide, (0, 2, 1)), product)
        else:
            product = tl.dot(tall, wide.T, product)
        weight = next_weight
        x = next_x
    if SLICES > 1:
        product = tl.sum(product, 0)
    if not X_FIRST:
        product = product.T
    up = product
    if GATED:
        product, up = tl.split(product.reshape(BLOCK_M, 2, BLOCK_N).permute(0, 2, 1))
    finish(
        product,
        up,
        output_ptr,
        bias_ptr,
        first_n,
        num_rows,
        num_columns,
        BLOCK_M,
        BLOCK_N,
        GATED,
        HAS_BIAS,
        GELU,
    )


@triton.jit
def dot_products(
    x_ptr,
    weight_ptr,
    output_ptr,
    bias_ptr,
    num_columns,
    in_features,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GELU: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    first_n = tl.program_id(0) * BLOCK_N
    HALVES: tl.constexpr = 2 if GATED else 1
    n = _weight_rows(first_n, num_columns, BLOCK_N, HALVES)[:, None]
    num_weight_rows = num_columns * HALVES
    k = tl.arange(0, BLOCK_K)
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
    weight = _block(weight_ptr, n, k[None, :], num_weight_rows, in_features, "evict_first")
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
    # Summed over the block at the end only: until then no thread needs another.
    first = tl.zeros((HALVES * BLOCK_N, BLOCK_K), tl.float32)
    second = first
    for _ in range(0, in_features, BLOCK_K):
        x = tl.load(x_ptr + k, mask=k < in_features, other=0.0).to(tl.float32)
        if ROWS == 2:
            y = tl.load(x_ptr + in_features + k, mask=k < in_features, other=0.0).to(tl.float32)
        k += BLOCK_K
        next_weight = _block(weight_ptr, n, k[None, :], num_weight_rows, in_features, "evict_first")
        first += weight.to(tl.float32) * x[None, :]
        if ROWS == 2:
            second += weight.to(tl.float32) * y[None, :]
        weight = next_weight
    if ROWS == 2:
        product = tl.join(tl.sum(first, 1), tl.sum(second, 1)).T
    else:
        product = tl.sum(first, 1)[None, :]
    up = product
    if GATED:
        product, up = tl.split(product.reshape(ROWS, 2, BLOCK_N).permute(0, 2, 1))
    finish(
        product,
        up,
        output_ptr,
        bias_ptr,
        first_n,
        ROWS,
        num_columns,
        ROWS,
        BLOCK_N,
        GATED,
        HAS_BIAS,
        GELU,
    )
