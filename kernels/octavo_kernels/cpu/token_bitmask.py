from __future__ import annotations

import functools
from array import array
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from octavo_kernels.cpu import simd
from octavo_kernels.cpu.compile import compile_kernel
from octavo_kernels.cpu.team import launch

splat, store_f32, store_bf16 = simd.splat, simd.store_f32, simd.store_bf16
write_f32, write_i16 = simd.write_f32, simd.write_i16
read_i32, read_i64, atomic_next = simd.read_i32, simd.read_i64, simd.atomic_next

_NEGATIVE_INFINITY = float("-inf")
_NEGATIVE_INFINITY_BF16 = -128  # 0xFF80 as int16


@functools.cache
def _kernel(bf16: int) -> int:
    size = 2 if bf16 else 4
    lowest, lowest_bits = _NEGATIVE_INFINITY, _NEGATIVE_INFINITY_BF16

    def kernel(arguments: Any) -> None:  # pragma: no cover - compiled
        logits = read_i64(arguments + 8)
        bitmask = read_i64(arguments + 16)
        rows = read_i64(arguments + 24)
        num_masks = read_i64(arguments + 32)
        num_words = read_i64(arguments + 40)
        vocab_size = read_i64(arguments + 48)
        row_bytes = read_i64(arguments + 56)
        forbidden = splat(lowest)
        while True:
            index = atomic_next(arguments)
            if index >= num_masks:
                break
            row = logits + read_i64(rows + 8 * index) * row_bytes
            words = bitmask + 4 * index * num_words
            for word in range((vocab_size + 31) // 32):
                bits = read_i32(words + 4 * word) if word < num_words else 0
                if bits == -1:
                    continue
                first = 32 * word
                # Most masks of a grammar are almost empty: whole words at once.
                if bits == 0 and first + 32 <= vocab_size:
                    if size == 2:
                        store_bf16(row + first * size, forbidden)
                        store_bf16(row + (first + 16) * size, forbidden)
                    else:
                        store_f32(row + first * size, forbidden)
                        store_f32(row + (first + 16) * size, forbidden)
                    continue
                for bit in range(min(32, vocab_size - first)):
                    if (bits >> bit) & 1 == 0:
                        if size == 2:
                            write_i16(row + (first + bit) * size, lowest_bits)
                        else:
                            write_f32(row + (first + bit) * size, lowest)

    return compile_kernel(kernel)


def apply_token_bitmask(logits: Tensor, bitmask: Tensor, rows: Sequence[int]) -> None:
    row_numbers = array("q", rows)
    arguments = array(
        "q",
        (
            0,
            logits.data_ptr(),
            bitmask.data_ptr(),
            row_numbers.buffer_info()[0],
            len(row_numbers),
            bitmask.shape[1],
            logits.shape[1],
            logits.stride(0) * logits.element_size(),
        ),
    )
    launch(_kernel(int(logits.dtype == torch.bfloat16)), arguments, len(row_numbers))
