"""What follows the product of a linear layer, in the registers that hold it."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _gelu(x, FORM: tl.constexpr):
    if FORM == "exact":
        result = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    else:  # 0.5 * (1 + tanh(y)) is sigmoid(2 * y)
        result = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    return result


@triton.jit
def finish(
    product,  # [BLOCK_M, BLOCK_N] fp32
    up,  # alike; read where GATED
    output_ptr,
    bias_ptr,
    first_n,
    num_rows,
    num_columns,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GELU: tl.constexpr,
):
    """Store product + bias, gelu(product + bias) or silu(product) * up.

    GELU: "exact", "tanh" or "" for none.

    Rounds to the dtype of the output wherever the operations one by one would.
    """
    m = tl.arange(0, BLOCK_M)[:, None]
    n = first_n + tl.arange(0, BLOCK_N)[None, :]
    inside = (m < num_rows) & (n < num_columns)
    offsets = m.to(tl.int64) * num_columns + n
    dtype = output_ptr.dtype.element_ty
    if HAS_BIAS:
        product += tl.load(bias_ptr + n, mask=n < num_columns, other=0.0).to(tl.float32)
    result = product.to(dtype)
    if GATED:
        gate = result.to(tl.float32)
        gate = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)
        result = (gate * up.to(dtype).to(tl.float32)).to(dtype)
    if GELU != "":
        result = _gelu(result.to(tl.float32), GELU).to(dtype)
    tl.store(output_ptr + offsets, result, mask=inside)
