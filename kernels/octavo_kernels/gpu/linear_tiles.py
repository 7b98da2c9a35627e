"""The kernel of `Tiles`: weights through shared memory, several stages ahead of the tensor cores.

A program multiplies BLOCK_N rows of the weight, for one of SPLITS ranges of in_features, by all
rows of x. With SPLITS > 1 the parts meet in memory, and the last to arrive at a tile adds them in
their order, whichever order they came in: two runs give equal bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from octavo_kernels.gpu.linear_epilogue import finish


@triton.jit
def _prefetch(weight_ptr, first_n, first_k, num_weight_rows, in_features, BLOCK_N, DEPTH):
    """Ask the L2 cache for weight[first_n : first_n + BLOCK_N, first_k : first_k + DEPTH]."""
    n = tl.minimum(first_n + tl.arange(0, BLOCK_N), num_weight_rows - 1).to(tl.int64)
    num_bytes = tl.maximum(tl.minimum(DEPTH, in_features - first_k), 0) * 2
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;",
        "=r,l,r",
        [weight_ptr + n * in_features + tl.minimum(first_k, in_features - 8), num_bytes],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit(do_not_specialize=["num_rows"])
def tiles(
    x_desc,
    weight_desc,
    weight_ptr,
    output_ptr,
    bias_ptr,
    parts_ptr,
    arrivals_ptr,
    num_rows,
    num_columns,
    in_features,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr,
    GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GELU: tl.constexpr,
    OVERLAP: tl.constexpr,
    PREFETCH: tl.constexpr,
):
    tile = tl.program_id(0)
    split = tl.program_id(1)
    first_n = tile * BLOCK_N
    steps = tl.cdiv(tl.cdiv(in_features, BLOCK_K), SPLITS)
    first_k = split * steps * BLOCK_K
    last_k = tl.minimum(first_k + steps * BLOCK_K, in_features)
    # Asynchronous products take 64 rows at least of their first operand: of the weight, if not x.
    WEIGHT_FIRST: tl.constexpr = BLOCK_M < 64 and BLOCK_N >= 64
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
        if PREFETCH > 0:
            rows = num_columns * 2 if GATED else num_columns
            _prefetch(weight_ptr, first_n, first_k, rows, in_features, BLOCK_N, PREFETCH)
            if GATED:
                up_n = num_columns + first_n
                _prefetch(weight_ptr, up_n, first_k, rows, in_features, BLOCK_N, PREFETCH)
        tl.extra.cuda.gdc_wait()

    if WEIGHT_FIRST:
        product = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    else:
        product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    up = product
    for k in range(first_k, last_k, BLOCK_K):
        x = x_desc.load([0, k])
        weight = weight_desc.load([first_n, k])
        product = tl.dot(weight, x.T, product) if WEIGHT_FIRST else tl.dot(x, weight.T, product)
        if GATED:
            weight = weight_desc.load([num_columns + first_n, k])
            up = tl.dot(weight, x.T, up) if WEIGHT_FIRST else tl.dot(x, weight.T, up)
    if WEIGHT_FIRST:
        product = product.T
        up = up.T

    is_last = True
    if SPLITS > 1:
        SIZE: tl.constexpr = BLOCK_M * BLOCK_N
        HALVES: tl.constexpr = 2 if GATED else 1
        is_row = tl.arange(0, BLOCK_M)[:, None] < num_rows
        inside = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        tile_ptr = parts_ptr + tile.to(tl.int64) * (SPLITS * HALVES * SIZE) + inside
        part_ptr = tile_ptr + split * (HALVES * SIZE)
        tl.store(part_ptr, product, mask=is_row)
        if GATED:
            tl.store(part_ptr + SIZE, up, mask=is_row)
        tl.debug_barrier()  # every thread has stored its share before one of them says so
        arrived = tl.atomic_add(arrivals_ptr + tile, 1, sem="acq_rel")
        is_last = arrived == SPLITS - 1
        if is_last:
            tl.store(arrivals_ptr + tile, 0)  # for the next launch
            product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            up = product
            for other in tl.static_range(SPLITS):
                part_ptr = tile_ptr + other * (HALVES * SIZE)
                product += tl.load(part_ptr, mask=is_row, other=0.0, cache_modifier=".cg")
                if GATED:
                    up += tl.load(part_ptr + SIZE, mask=is_row, other=0.0, cache_modifier=".cg")
    if is_last:
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
