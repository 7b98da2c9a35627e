"""The paged KV cache: its layout, and writing to it.

A block holds `block_size` tokens. Keys lie with the tokens innermost, so that one query element
meets a vector of neighbouring keys and no sum runs across vector lanes; values lie with the head
dimension innermost.

    key_cache   [num_blocks, num_kv_heads, head_dim, block_size]
    value_cache [num_blocks, num_kv_heads, block_size, head_dim]

On a GPU the head dimension lies innermost for both, which is what tensor cores and wide loads
want; the key cache is then a transposed view of its memory, with the shape above all the same.

The elements have the dtype of the keys and values that are written, or `FP8`: half of bf16's bytes,
stored as they are (scale 1), and what is beyond +-448 as that.

A block's keys and its values are each one run of bytes: it can be copied, sent or stored as two.
"""

from __future__ import annotations

import torch
from torch import Tensor

from octavo_kernels.backend import CpuBackend, cpu_backend
from octavo_kernels.reference import kv_cache as reference

FP8 = torch.float8_e4m3fn
_DTYPES = (torch.float32, torch.bfloat16)

Shape = tuple[int, int, int, int]


def kv_cache_shapes(
    num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int
) -> tuple[Shape, Shape]:
    """Shapes of the key cache and of the value cache of one layer."""
    return (num_blocks, num_kv_heads, head_dim, block_size), (
        num_blocks,
        num_kv_heads,
        block_size,
        head_dim,
    )


def new_kv_cache(
    num_blocks: int,
    block_size: int,
    num_kv_heads: int,
    head_dim: int,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Key cache and value cache of one layer, in the memory order of the device; not zeroed."""
    keys, values = kv_cache_shapes(num_blocks, block_size, num_kv_heads, head_dim)
    value_cache = torch.empty(values, dtype=dtype, device=device)
    if value_cache.device.type == "cpu":
        return torch.empty(keys, dtype=dtype), value_cache
    return torch.empty_like(value_cache).transpose(2, 3), value_cache


def write_kv_cache(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor
) -> None:
    """Store the keys and values of the step's tokens, unrotated.

    key, value:    [T, num_kv_heads, head_dim]
    key_cache, value_cache: see `kv_cache_shapes`, same dtype or `FP8`; changed in place
    slot_mapping:  [T] int64, block * block_size + offset; -1 leaves the cache as it is
    """
    if key.is_cuda:
        from octavo_kernels.gpu import kv_cache as gpu

        gpu.write_kv_cache(key, value, key_cache, value_cache, slot_mapping)
    elif cpu_backend() is CpuBackend.NUMBA and fits_numba(key, value, key_cache, value_cache):
        from octavo_kernels.cpu import rotary

        rotary.write_kv_cache(key, value, key_cache, value_cache, slot_mapping)
    else:
        reference.write_kv_cache(key, value, key_cache, value_cache, slot_mapping)


def fits_numba(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor) -> bool:
    head_dim = key.shape[2]
    return (
        key.device.type == "cpu"
        and key.dtype in _DTYPES
        and key.dtype == value.dtype == key_cache.dtype == value_cache.dtype
        and head_dim % 16 == 0
        and key.stride()[1:] == (head_dim, 1)
        and value.stride()[1:] == (head_dim, 1)
        and key_cache.is_contiguous()
        and value_cache.is_contiguous()
    )
