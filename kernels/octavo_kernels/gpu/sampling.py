"""Sampling without a sort: filters become a threshold, then tokens race.

Programs of a row race its tokens against each other, and a last launch compares their winners.
What decides is computed in fp64, as on the CPU; fp32 tells which tokens need no closer look.

Noise: splitmix64 (Steele et al. 2014) of seed, position and token, as on the CPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo_kernels.gpu.overlap import can_overlap
from octavo_kernels.gpu.sampling_filters import find_contenders
from octavo_kernels.gpu.vocabulary_blocks import BLOCK

_BLOCKS = 8  # that a program races at once
_PROGRAMS = 8 * 132
_MAX_SPLITS = 256

_GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
_FACTOR_1 = tl.constexpr(0xBF58476D1CE4E5B9)
_FACTOR_2 = tl.constexpr(0x94D049BB133111EB)
_UNIT_53 = tl.constexpr(2.0**-53)
_UNIT_32 = tl.constexpr(2.0**-32)
_LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _mixed(state):
    state = (state ^ (state >> 30)) * _FACTOR_1
    state = (state ^ (state >> 27)) * _FACTOR_2
    return state ^ (state >> 31)


@triton.jit
def _pace(value, temperature, state):
    """Logit over temperature plus Gumbel noise, fp64."""
    uniform = ((state >> 11).to(tl.float64) + 0.5) * _UNIT_53
    return value.to(tl.float64) / temperature.to(tl.float64) - tl.log(-tl.log(uniform))


@triton.jit
def _highest_pace(values, scale, state):
    """Above `_pace`, from half of the noise's bits and in fp32: mostly by 1e-3."""
    bits = (state >> 32).to(tl.uint32)
    uniform = (bits.to(tl.float32) + 1.0) * _UNIT_32  # no less than that of `_pace`
    left = tl.maximum((bits ^ 0xFFFFFFFF).to(tl.float32) * _UNIT_32, 5e-17)  # no more than 1 - it
    wait = tl.where(left < 0.01, left, -_LN_2 * tl.log2(uniform))
    pace = values * scale - _LN_2 * tl.log2(wait)
    return pace + (1e-3 + 1e-6 * tl.minimum(tl.abs(pace), 1e9))


@triton.jit
def _race(
    logits_ptr,
    stride,
    size,
    num_blocks,
    temperature_ptr,
    seed_ptr,
    position_ptr,
    threshold_ptr,
    last_ptr,
    counts_ptr,
    blocks_ptr,
    lead_ptr,
    winner_ptr,
    HAS_FILTERS: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    row_ptr = logits_ptr + row * stride
    temperature = tl.load(temperature_ptr + row)
    position = tl.load(position_ptr + row).to(tl.uint64)
    seed = tl.load(seed_ptr + row).to(tl.uint64, bitcast=True)
    origin = _mixed(seed + (position + 1) * _GOLDEN)
    count = num_blocks
    if HAS_FILTERS:
        count = tl.load(counts_ptr + row)
        threshold = tl.load(threshold_ptr + row)
        last = tl.load(last_ptr + row)
    lead = tl.full((), -float("inf"), tl.float64)
    winner = tl.zeros((), tl.int32)
    for first in range(split * BLOCKS, count, tl.num_programs(1) * BLOCKS):
        lanes = first + tl.arange(0, BLOCKS)
        blocks = lanes
        if HAS_FILTERS:
            list_ptr = blocks_ptr + row * num_blocks
            blocks = tl.load(list_ptr + lanes, mask=lanes < count, other=num_blocks)
        tokens = blocks[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
        values = tl.load(row_ptr + tokens, mask=tokens < size, other=-float("inf"))
        values = values.to(tl.float32)
        if HAS_FILTERS:
            is_in = (values > threshold) | ((values == threshold) & (tokens <= last))
            values = tl.where(is_in, values, -float("inf"))
        highest = values
        if temperature > 0:
            state = _mixed(origin + (tokens + 1).to(tl.uint64) * _GOLDEN)
            highest = _highest_pace(values, 1.0 / temperature, state)
        top = tl.max(tl.max(highest, axis=1), axis=0)
        while top.to(tl.float64) > lead:
            at = tl.where(highest == top, tokens, size)
            token = tl.min(tl.min(at, axis=1), axis=0)
            pace = top.to(tl.float64)
            if temperature > 0:
                state_of_token = _mixed(origin + (token + 1).to(tl.uint64) * _GOLDEN)
                pace = _pace(tl.load(row_ptr + token).to(tl.float32), temperature, state_of_token)
            if pace > lead:
                lead = pace
                winner = token
            highest = tl.where(tokens == token, -float("inf"), highest)
            top = tl.max(tl.max(highest, axis=1), axis=0)
    tl.store(lead_ptr + row * tl.num_programs(1) + split, lead)
    tl.store(winner_ptr + row * tl.num_programs(1) + split, winner)


@triton.jit(do_not_specialize=["num_splits"])  # compiled once, not anew as batches shrink
def _final(
    lead_ptr, winner_ptr, out_ptr, num_splits, size, SPLITS: tl.constexpr, OVERLAP: tl.constexpr
):
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, SPLITS)
    inside = lanes < num_splits
    lead = tl.load(lead_ptr + row * num_splits + lanes, mask=inside, other=-float("inf"))
    winner = tl.load(winner_ptr + row * num_splits + lanes, mask=inside, other=size)
    first = tl.min(tl.where(lead == tl.max(lead, axis=0), winner, size), axis=0)
    tl.store(out_ptr + row, first.to(tl.int64))


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
    filters = find_contenders(logits, temperature, top_k, top_p, min_p) if has_filters else None
    num_blocks = triton.cdiv(size, BLOCK)
    most = min(_MAX_SPLITS, triton.cdiv(num_blocks, _BLOCKS))
    num_splits = min(most, max(1, _PROGRAMS // num_rows))
    lead = torch.empty((num_rows, num_splits), dtype=torch.float64, device=device)
    winner = torch.empty((num_rows, num_splits), dtype=torch.int32, device=device)
    _race[(num_rows, num_splits)](
        logits,
        logits.stride(0),
        size,
        num_blocks,
        temperature,
        seed,
        position,
        filters and filters.threshold,
        filters and filters.last,
        filters and filters.counts,
        filters and filters.blocks,
        lead,
        winner,
        HAS_FILTERS=has_filters,
        BLOCKS=_BLOCKS,
        BLOCK=BLOCK,
        OVERLAP=can_overlap(device),
        launch_pdl=can_overlap(device),
        num_warps=4,
    )
    _final[(num_rows,)](
        lead,
        winner,
        out,
        num_splits,
        size,
        SPLITS=_MAX_SPLITS,
        OVERLAP=can_overlap(device),
        launch_pdl=can_overlap(device),
        num_warps=1,
    )
    return out
