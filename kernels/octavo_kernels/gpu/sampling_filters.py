"""Min-p, top-k and top-p without a sort: the least logit that may race, and the last of its equals.

A program takes a row. It searches the value from which on the tokens are k, or weigh top_p: a
pass counts, or sums the weights, from three candidates on, the greatest of which is the best value
that is still in question; the search ends when that one suffices. A pass reads only the blocks
whose best token is in question. For top-k these are the k best blocks, which a search among the
blocks' bests tells; for top-p, those with a token heavier than the dropped may be on average.

Sums are fp32, in an order that is a matter of the row alone: other rows change no draw.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo_kernels.gpu.overlap import can_overlap
from octavo_kernels.gpu.vocabulary_blocks import BLOCK, LOWEST, survey

_BLOCKS = 32  # of a pass at once


@dataclass(frozen=True, slots=True)
class Contenders:
    """Who may race: tokens above `threshold`, and of its equals those up to token `last`.

    threshold: [num_rows] fp32. last, counts: [num_rows] int32. blocks: [num_rows, num_blocks]
    int32, the first `counts` of a row are the blocks that hold contenders, ascending.
    """

    threshold: Tensor
    last: Tensor
    counts: Tensor
    blocks: Tensor


@triton.jit
def _list_blocks(block_best, low, list_ptr, lanes):
    """Lists the blocks whose best is at least `low`; returns their number."""
    is_listed = block_best >= low
    places = tl.cumsum(is_listed.to(tl.int32), axis=0) - 1
    tl.debug_barrier()  # all have read the list that was there
    tl.store(list_ptr + places, lanes, mask=is_listed)
    tl.debug_barrier()
    return tl.sum(is_listed.to(tl.int32), axis=0)


@triton.jit
def _listed(row_ptr, size, list_ptr, count, first, BLOCKS: tl.constexpr, BLOCK: tl.constexpr):
    """Tokens and values of some listed blocks, [BLOCKS, BLOCK] each; -inf past the end."""
    lanes = first + tl.arange(0, BLOCKS)
    blocks = tl.load(list_ptr + lanes, mask=lanes < count, other=0)
    tokens = blocks[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (lanes < count)[:, None] & (tokens < size)
    values = tl.load(row_ptr + tokens, mask=inside, other=-float("inf")).to(tl.float32)
    return tokens, values


@triton.jit
def _total(x):
    return tl.sum(tl.sum(x, axis=1), axis=0)


@triton.jit
def _greatest(x):
    return tl.max(tl.max(x, axis=1), axis=0)


@triton.jit
def _measure(
    row_ptr, size, list_ptr, count, low, at_1, at_2, at_3, best, scale,
    COUNTS: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of at_1 <= at_2 <= at_3: number or weight of tokens of at least each, the greatest value
    below each; and the least value from `low` on.
    """
    sum_1 = tl.zeros((BLOCKS, BLOCK), tl.float32)
    sum_2 = tl.zeros((BLOCKS, BLOCK), tl.float32)
    sum_3 = tl.zeros((BLOCKS, BLOCK), tl.float32)
    below_1 = tl.full((BLOCKS, BLOCK), -float("inf"), tl.float32)
    below_2 = tl.full((BLOCKS, BLOCK), -float("inf"), tl.float32)
    below_3 = tl.full((BLOCKS, BLOCK), -float("inf"), tl.float32)
    least = tl.full((BLOCKS, BLOCK), float("inf"), tl.float32)
    for first in range(0, count, BLOCKS):
        _, values = _listed(row_ptr, size, list_ptr, count, first, BLOCKS, BLOCK)
        if COUNTS:
            weight = tl.full((BLOCKS, BLOCK), 1.0, tl.float32)
        else:
            weight = tl.exp((values - best) * scale)
        sum_1 += tl.where(values >= at_1, weight, 0.0)
        sum_2 += tl.where(values >= at_2, weight, 0.0)
        sum_3 += tl.where(values >= at_3, weight, 0.0)
        below_1 = tl.where(values < at_1, tl.maximum(below_1, values), below_1)
        below_2 = tl.where(values < at_2, tl.maximum(below_2, values), below_2)
        below_3 = tl.where(values < at_3, tl.maximum(below_3, values), below_3)
        least = tl.where(values >= low, tl.minimum(least, values), least)
    return (
        _total(sum_1),
        _total(sum_2),
        _total(sum_3),
        _greatest(below_1),
        _greatest(below_2),
        _greatest(below_3),
        -_greatest(-least),
    )


@triton.jit
def _search(
    row_ptr, size, list_ptr, count, block_best, lanes, low, best, scale, wanted,
    COUNTS: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(value, reached, above): the greatest value such that the tokens of at least it are, or
    weigh, `wanted`; what these come to; what those above it come to. The listed blocks hold all
    tokens of at least `low`; where these are not enough, `low`, and -inf for `above`.
    """
    top = best
    above = tl.zeros((), tl.float32)
    reached = tl.zeros((), tl.float32)
    is_open = top >= low
    while is_open:
        step = top / 3 - low / 3
        at_1 = tl.minimum(low + step, top)
        at_2 = tl.minimum(at_1 + step, top)
        sum_1, sum_2, sum_3, below_1, below_2, below_3, least = _measure(
            row_ptr, size, list_ptr, count, low, at_1, at_2, top, best, scale,
            COUNTS, BLOCKS, BLOCK,
        )  # fmt: skip
        low = tl.maximum(low, least)
        if sum_3 >= wanted:
            reached = sum_3
            is_open = False
        else:
            if sum_2 >= wanted:
                low = tl.maximum(low, at_2)
                above = sum_3
                top = below_3
            elif sum_1 >= wanted:
                low = tl.maximum(low, at_1)
                above = sum_2
                top = below_2
            else:
                above = sum_1
                top = below_1
            is_open = top >= low
            if not COUNTS:
                count = _list_blocks(block_best, low, list_ptr, lanes)
    if reached == 0:
        above = tl.full((), -float("inf"), tl.float32)
    return tl.maximum(top, low), reached, above


@triton.jit
def _last_equal(
    row_ptr, size, list_ptr, count, value, room, BLOCKS: tl.constexpr, BLOCK: tl.constexpr
):
    """The token that is the `room`-th, by token id, of those of this value."""
    last = tl.full((), -1, tl.int32)
    seen = tl.zeros((), tl.int32)
    for first in range(0, count, BLOCKS):
        tokens, values = _listed(row_ptr, size, list_ptr, count, first, BLOCKS, BLOCK)
        is_equal = tl.reshape((values == value).to(tl.int32), (BLOCKS * BLOCK,))
        ranks = seen + tl.cumsum(is_equal, axis=0)
        is_in = (is_equal > 0) & (ranks <= room)
        last = tl.maximum(last, tl.max(tl.where(is_in, tl.reshape(tokens, (BLOCKS * BLOCK,)), -1)))
        seen += tl.sum(is_equal, axis=0)
    return last


@triton.jit
def _filter(
    logits_ptr,
    stride,
    size,
    block_best_ptr,
    block_weight_ptr,
    num_blocks,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    threshold_ptr,
    last_ptr,
    counts_ptr,
    blocks_ptr,
    LANES: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
    LOWEST: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * stride
    best_ptr = block_best_ptr + row * num_blocks
    list_ptr = blocks_ptr + row * num_blocks
    temperature = tl.load(temperature_ptr + row)
    top_k = tl.load(top_k_ptr + row)
    top_p = tl.load(top_p_ptr + row)
    min_p = tl.load(min_p_ptr + row)
    lanes = tl.arange(0, LANES)
    block_best = tl.load(best_ptr + lanes, mask=lanes < num_blocks, other=-float("inf"))
    best = tl.max(block_best, axis=0)
    threshold = tl.full((), LOWEST, tl.float32)
    room = tl.full((), float("inf"), tl.float32)  # for tokens that equal the threshold
    is_cut = False
    if temperature > 0:
        scale = 1.0 / temperature
        if min_p > 0.0:
            threshold = tl.minimum(best + temperature * tl.log(min_p), best)
        has_top_k = (top_k > 0) & (top_k < size)
        surplus = tl.zeros((), tl.float32)  # of equals that top-k drops
        if has_top_k:
            low = threshold
            wanted = top_k.to(tl.float32)
            if top_k <= num_blocks:
                # The row of the blocks' bests, all blocks of which are listed.
                is_block = tl.where(lanes * BLOCK < num_blocks, 0.0, -1.0)
                count = _list_blocks(is_block, 0.0, list_ptr, lanes)
                kth_best, _, _ = _search(
                    best_ptr, num_blocks, list_ptr, count, block_best, lanes, low, best, scale,
                    wanted, True, BLOCKS, BLOCK,
                )  # fmt: skip
                low = tl.maximum(low, kth_best)
            count = _list_blocks(block_best, low, list_ptr, lanes)
            threshold, reached, above = _search(
                row_ptr, size, list_ptr, count, block_best, lanes, low, best, scale,
                wanted, True, BLOCKS, BLOCK,
            )  # fmt: skip
            room = wanted - above
            surplus = tl.maximum(reached - wanted, 0.0)
            is_cut = surplus > 0
        if top_p < 1.0:
            if threshold > LOWEST:
                count = _list_blocks(block_best, threshold, list_ptr, lanes)
                weight, _, _, _, _, _, _ = _measure(
                    row_ptr, size, list_ptr, count, threshold, threshold, threshold, threshold,
                    best, scale, False, BLOCKS, BLOCK,
                )  # fmt: skip
                weight -= surplus * tl.exp((threshold - best) * scale)
            else:
                is_inside = (lanes < num_blocks) & (block_best >= LOWEST)
                part = tl.load(
                    block_weight_ptr + row * num_blocks + lanes, mask=is_inside, other=0.0
                )
                weight = tl.sum(part * tl.exp((block_best - best) * scale), axis=0)
            wanted = top_p * weight
            # Tokens lighter than this are together lighter than what may be dropped.
            lightest = best + temperature * tl.log((1.0 - top_p) * weight / size)
            low = tl.minimum(tl.maximum(threshold, lightest), best)
            count = _list_blocks(block_best, low, list_ptr, lanes)
            edge, reached, above = _search(
                row_ptr, size, list_ptr, count, block_best, lanes, low, best, scale,
                wanted, False, BLOCKS, BLOCK,
            )  # fmt: skip
            edge_weight = tl.exp((edge - best) * scale)
            edge_room = tl.maximum(tl.ceil((wanted - above) / edge_weight), 1.0)
            # Equals that do not fit weigh at least one of them; half of one may be rounding.
            is_edge_cut = reached - above > (edge_room + 0.5) * edge_weight
            is_cut = is_edge_cut | (is_cut & (edge == threshold))
            room = tl.where(edge == threshold, tl.minimum(room, edge_room), edge_room)
            threshold = edge
    elif best >= LOWEST:
        threshold = best
    count = _list_blocks(block_best, threshold, list_ptr, lanes)
    last = size
    if is_cut:
        last = _last_equal(
            row_ptr, size, list_ptr, count, threshold, room.to(tl.int32), BLOCKS, BLOCK
        )
    tl.store(threshold_ptr + row, threshold)
    tl.store(last_ptr + row, last)
    tl.store(counts_ptr + row, count)


def find_contenders(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor
) -> Contenders:
    """Arguments as of `octavo_kernels.sampling.sample_tokens`; rows of logits dense."""
    num_rows, size = logits.shape
    found = survey(logits, temperature=temperature)
    num_blocks = found.best.shape[1]
    threshold = torch.empty(num_rows, device=logits.device)
    last, counts = torch.empty((2, num_rows), dtype=torch.int32, device=logits.device)
    blocks = torch.empty((num_rows, num_blocks), dtype=torch.int32, device=logits.device)
    _filter[(num_rows,)](
        logits,
        logits.stride(0),
        size,
        found.best,
        found.weight,
        num_blocks,
        temperature,
        top_k,
        top_p,
        min_p,
        threshold,
        last,
        counts,
        blocks,
        LANES=triton.next_power_of_2(num_blocks),
        BLOCKS=_BLOCKS,
        BLOCK=BLOCK,
        LOWEST=LOWEST,
        OVERLAP=can_overlap(logits.device),
        launch_pdl=can_overlap(logits.device),
        num_warps=16,
    )
    return Contenders(threshold, last, counts, blocks)
