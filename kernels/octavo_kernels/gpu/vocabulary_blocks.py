"""A row of logits in blocks of 128 tokens: what is great in it is found by the blocks' best.

One read of the logits gives each block its best logit. The k best tokens lie in the k best blocks,
and a token above a threshold in a block whose best is: whoever comes next reads only those.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo_kernels.gpu.overlap import can_overlap

BLOCK = 128
LOWEST = -3.4028234663852886e38  # of fp32 numbers
_BLOCKS = 32  # that one program reads


@dataclass(frozen=True, slots=True)
class VocabularyBlocks:
    """best, weight: [num_rows, num_blocks] fp32, of each block the greatest logit, and the sum of
    exp((logit - best) / temperature). above: [num_rows, n] int32; their sum is how many logits are
    greater than that of the row's token; n = 0 where none was asked for.
    """

    best: Tensor
    weight: Tensor
    above: Tensor


@triton.jit
def _survey(
    logits_ptr,
    stride,
    size,
    temperature_ptr,
    token_ids_ptr,
    best_ptr,
    weight_ptr,
    above_ptr,
    num_blocks,
    HAS_TOKENS: tl.constexpr,
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
    blocks = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    tokens = blocks[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    values = tl.load(row_ptr + tokens, mask=tokens < size, other=-float("inf")).to(tl.float32)
    best = tl.max(values, axis=1)
    scale = 1.0
    if HAS_TOKENS:
        own = tl.load(row_ptr + tl.load(token_ids_ptr + row)).to(tl.float32)
        above = tl.sum(tl.sum((values > own).to(tl.int32), axis=1), axis=0)
        tl.store(above_ptr + row * tl.num_programs(1) + tl.program_id(1), above)
    else:
        temperature = tl.load(temperature_ptr + row)
        scale = 1.0 / tl.where(temperature > 0, temperature, 1.0)
    # Where all of a block is -inf, -inf minus -inf would be no number.
    weight = tl.sum(tl.exp((values - tl.maximum(best, LOWEST)[:, None]) * scale), axis=1)
    places = row * num_blocks + blocks
    tl.store(best_ptr + places, best, mask=blocks < num_blocks)
    tl.store(weight_ptr + places, weight, mask=blocks < num_blocks)


def survey(
    logits: Tensor, *, temperature: Tensor | None = None, token_ids: Tensor | None = None
) -> VocabularyBlocks:
    """logits: [num_rows, size], rows dense. One of the two: temperature: [num_rows] fp32;
    token_ids: [num_rows] int64, for `above`, with temperature 1.
    """
    num_rows, size = logits.shape
    num_blocks = triton.cdiv(size, BLOCK)
    num_programs = triton.cdiv(num_blocks, _BLOCKS)
    best, weight = torch.empty((2, num_rows, num_blocks), device=logits.device)
    num_above = 0 if token_ids is None else num_programs
    above = torch.empty((num_rows, num_above), dtype=torch.int32, device=logits.device)
    _survey[(num_rows, num_programs)](
        logits,
        logits.stride(0),
        size,
        temperature,
        token_ids,
        best,
        weight,
        above,
        num_blocks,
        HAS_TOKENS=token_ids is not None,
        BLOCKS=_BLOCKS,
        BLOCK=BLOCK,
        LOWEST=LOWEST,
        OVERLAP=can_overlap(logits.device),
        launch_pdl=can_overlap(logits.device),
        num_warps=8,
    )
    return VocabularyBlocks(best, weight, above)
