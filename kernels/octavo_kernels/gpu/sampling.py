"""Sampling in two launches and a reduction, without a sort.

1. The filters of a row become one number, the least logit that may race. Its bits, made to sort as
   integers do, are found two at a time from the top: a pass over the row counts the tokens, or sums
   the weights, at and above three candidates. A row of 150,000 tokens lies in the L2 cache.
2. Programs of a row race their tokens against each other; a second launch compares their winners.

Noise: splitmix64 (Steele et al. 2014) of seed, position and token, as on the CPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 4096
_NUM_SMS = 132
_MAX_SPLITS = 64

_GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
_FACTOR_1 = tl.constexpr(0xBF58476D1CE4E5B9)
_FACTOR_2 = tl.constexpr(0x94D049BB133111EB)


@triton.jit
def _mixed(state):
    state = (state ^ (state >> 30)) * _FACTOR_1
    state = (state ^ (state >> 27)) * _FACTOR_2
    return state ^ (state >> 31)


@triton.jit
def _as_key(values):
    """fp32 to int64 of the same order, 0 to 2^32 - 1."""
    bits = values.to(tl.int32, bitcast=True)
    key = tl.where(bits < 0, ~bits, bits | -2147483648)
    return key.to(tl.uint32, bitcast=True).to(tl.int64)


@triton.jit
def _as_value(key):
    """The number whose key it is."""
    bits = key.to(tl.uint32).to(tl.int32, bitcast=True)
    bits = tl.where(bits < 0, bits & 2147483647, ~bits)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _at_least(
    row_ptr, size, low, at_1, at_2, at_3, best, scale, COUNTS: tl.constexpr, TILE: tl.constexpr
):
    """How many tokens, or how much weight, have keys of at least at_1, at_2, at_3; above `low`."""
    sum_1 = tl.zeros((TILE,), tl.float32)
    sum_2 = tl.zeros((TILE,), tl.float32)
    sum_3 = tl.zeros((TILE,), tl.float32)
    for first in range(0, size, TILE):
        lanes = first + tl.arange(0, TILE)
        values = tl.load(row_ptr + lanes, mask=lanes < size, other=-float("inf")).to(tl.float32)
        key = _as_key(values)
        weight = tl.where(key >= low, 1.0, 0.0)
        if not COUNTS:
            weight = tl.where(key >= low, tl.exp((values - best) * scale), 0.0)
        sum_1 += tl.where(key >= at_1, weight, 0.0)
        sum_2 += tl.where(key >= at_2, weight, 0.0)
        sum_3 += tl.where(key >= at_3, weight, 0.0)
    return tl.sum(sum_1), tl.sum(sum_2), tl.sum(sum_3)


@triton.jit
def _greatest_key(
    row_ptr,
    size,
    low,
    wanted,
    best,
    scale,
    COUNTS: tl.constexpr,
    LAST_SHIFT: tl.constexpr,
    TILE: tl.constexpr,
):
    """The greatest key such that the tokens from it on are `wanted` many, or weigh as much."""
    found = tl.zeros((), tl.int64)
    for digit in range((32 - LAST_SHIFT) // 2):
        step = tl.full((), 1, tl.int64) << (30 - 2 * digit)
        sum_1, sum_2, sum_3 = _at_least(
            row_ptr, size, low, found + step, found + 2 * step, found + 3 * step, best, scale,
            COUNTS, TILE,
        )  # fmt: skip
        reached = (sum_1 >= wanted).to(tl.int64) + (sum_2 >= wanted) + (sum_3 >= wanted)
        found += reached * step
    return found


@triton.jit
def _thresholds(
    logits_ptr,
    stride,
    size,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    threshold_ptr,
    LAST_SHIFT: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * stride
    temperature = tl.load(temperature_ptr + row)
    top_k = tl.load(top_k_ptr + row)
    top_p = tl.load(top_p_ptr + row)
    min_p = tl.load(min_p_ptr + row)
    low = tl.zeros((), tl.int64)
    has_top_k = (top_k > 0) & (top_k < size)
    if (temperature > 0) & (has_top_k | (top_p < 1.0) | (min_p > 0.0)):
        greatest = tl.full((TILE,), -float("inf"), tl.float32)
        for first in range(0, size, TILE):
            lanes = first + tl.arange(0, TILE)
            values = tl.load(row_ptr + lanes, mask=lanes < size, other=-float("inf"))
            greatest = tl.maximum(greatest, values.to(tl.float32))
        best = tl.max(greatest)
        scale = 1.0 / temperature
        if min_p > 0.0:
            low = _as_key(best + temperature * tl.log(min_p))
        if has_top_k:
            wanted = top_k.to(tl.float32)
            zero = tl.zeros((), tl.int64)
            kth = _greatest_key(row_ptr, size, zero, wanted, best, scale, True, LAST_SHIFT, TILE)
            low = tl.maximum(low, kth)
        if top_p < 1.0:
            total, _, _ = _at_least(row_ptr, size, low, low, low, low, best, scale, False, TILE)
            edge = _greatest_key(
                row_ptr, size, low, total * top_p, best, scale, False, LAST_SHIFT, TILE
            )
            low = tl.maximum(low, edge)
        low = tl.minimum(low, _as_key(best))  # rounding never leaves a row without a token
    tl.store(threshold_ptr + row, low)


@triton.jit
def _race(
    logits_ptr,
    stride,
    size,
    temperature_ptr,
    seed_ptr,
    position_ptr,
    threshold_ptr,
    lead_ptr,
    winner_ptr,
    per_split,
    HAS_FILTERS: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    row_ptr = logits_ptr + row * stride
    temperature = tl.load(temperature_ptr + row)
    begin = split * per_split
    end = tl.minimum(begin + per_split, size)
    lead = tl.full((), -float("inf"), tl.float64)
    winner = begin
    if temperature > 0:
        scale = temperature.to(tl.float64)
        position = tl.load(position_ptr + row).to(tl.uint64)
        seed = tl.load(seed_ptr + row).to(tl.uint64, bitcast=True)
        origin = _mixed(seed + (position + 1) * _GOLDEN)
        threshold = tl.zeros((), tl.int64)
        if HAS_FILTERS:
            threshold = tl.load(threshold_ptr + row)
        for first in range(begin, end, TILE):
            lanes = first + tl.arange(0, TILE)
            values = tl.load(row_ptr + lanes, mask=lanes < end, other=-float("inf"))
            values = values.to(tl.float32)
            state = _mixed(origin + (lanes + 1).to(tl.uint64) * _GOLDEN)
            uniform = ((state >> 11).to(tl.float64) + 0.5) * (1.0 / 9007199254740992.0)
            pace = values.to(tl.float64) / scale - tl.log(-tl.log(uniform))
            pace = tl.where(lanes < end, pace, -float("inf"))
            if HAS_FILTERS:
                pace = tl.where(_as_key(values) >= threshold, pace, -float("inf"))
            best, place = tl.max(pace, axis=0, return_indices=True)
            if best > lead:
                lead = best
                winner = first + place
    else:
        for first in range(begin, end, TILE):
            lanes = first + tl.arange(0, TILE)
            values = tl.load(row_ptr + lanes, mask=lanes < end, other=-float("inf"))
            best, place = tl.max(values.to(tl.float32), axis=0, return_indices=True)
            if best.to(tl.float64) > lead:
                lead = best.to(tl.float64)
                winner = first + place
    tl.store(lead_ptr + row * tl.num_programs(1) + split, lead)
    tl.store(winner_ptr + row * tl.num_programs(1) + split, winner)


@triton.jit
def _final(lead_ptr, winner_ptr, out_ptr, num_splits, SPLITS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, SPLITS)
    inside = lanes < num_splits
    lead = tl.load(lead_ptr + row * num_splits + lanes, mask=inside, other=-float("inf"))
    _, place = tl.max(lead, axis=0, return_indices=True)
    tl.store(out_ptr + row, tl.load(winner_ptr + row * num_splits + place).to(tl.int64))


def sample_tokens(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seed: Tensor,
    position: Tensor,
    *,
    has_filters: bool = True,
) -> Tensor:
    """See `octavo_kernels.sampling.sample_tokens`."""
    num_rows, size = logits.shape
    device = logits.device
    out = torch.empty(num_rows, dtype=torch.int64, device=device)
    if num_rows == 0:
        return out
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    threshold = out  # not read without filters
    if has_filters:
        threshold = torch.empty(num_rows, dtype=torch.int64, device=device)
        # Of a bf16 number the last 16 bits of its fp32 form are 0.
        last_shift = 16 if logits.dtype is torch.bfloat16 else 0
        _thresholds[(num_rows,)](
            logits,
            logits.stride(0),
            size,
            temperature,
            top_k,
            top_p,
            min_p,
            threshold,
            LAST_SHIFT=last_shift,
            TILE=_TILE,
            num_warps=16,
        )
    num_tiles = triton.cdiv(size, _TILE)
    num_splits = min(num_tiles, _MAX_SPLITS, max(1, 2 * _NUM_SMS // num_rows))
    per_split = triton.cdiv(num_tiles, num_splits) * _TILE
    lead = torch.empty((num_rows, num_splits), dtype=torch.float64, device=device)
    winner = torch.empty((num_rows, num_splits), dtype=torch.int32, device=device)
    _race[(num_rows, num_splits)](
        logits,
        logits.stride(0),
        size,
        temperature,
        seed,
        position,
        threshold,
        lead,
        winner,
        per_split,
        HAS_FILTERS=has_filters,
        TILE=_TILE,
        num_warps=8,
    )
    _final[(num_rows,)](
        lead, winner, out, num_splits, SPLITS=triton.next_power_of_2(num_splits), num_warps=1
    )
    return out
