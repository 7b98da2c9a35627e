"""Operations of an inference step on tensors, each with a plain torch reference.

Nothing here knows requests, models or schedulers.
"""

from octavo_kernels.activation import gelu_and_mul, silu_and_mul
from octavo_kernels.allocator import tune_allocator
from octavo_kernels.backend import CpuBackend, KernelError, cpu_backend, use_cpu_backend
from octavo_kernels.encoder_attention import encoder_attention
from octavo_kernels.kv_cache import kv_cache_shapes, new_kv_cache, write_kv_cache
from octavo_kernels.linear import (
    PackedWeight,
    linear,
    linear_gelu,
    linear_silu_and_mul,
    pack_linear_weight,
)
from octavo_kernels.metadata import AttentionMetadata
from octavo_kernels.norm import add_rms_norm, layer_norm, rms_norm
from octavo_kernels.paged_attention import paged_attention
from octavo_kernels.rotary import rotary_and_cache
from octavo_kernels.token_bitmask import apply_token_bitmask

__all__ = [
    "AttentionMetadata",
    "CpuBackend",
    "KernelError",
    "PackedWeight",
    "add_rms_norm",
    "apply_token_bitmask",
    "cpu_backend",
    "encoder_attention",
    "gelu_and_mul",
    "kv_cache_shapes",
    "layer_norm",
    "linear",
    "linear_gelu",
    "linear_silu_and_mul",
    "new_kv_cache",
    "pack_linear_weight",
    "paged_attention",
    "rms_norm",
    "rotary_and_cache",
    "silu_and_mul",
    "tune_allocator",
    "use_cpu_backend",
    "write_kv_cache",
]
