"""Log-probabilities of the sampled tokens and of the best ones; one read of the logits.

The best n tokens are found among the best n blocks of 128 tokens, by torch.topk on both.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo_kernels.gpu.vocabulary_blocks import BLOCK, survey


@triton.jit
def _score(
    logits_ptr,
    stride,
    size,
    token_ids_ptr,
    block_best_ptr,
    block_weight_ptr,
    num_blocks,
    above_ptr,
    num_above,
    top_blocks_ptr,
    own_ptr,
    ranks_ptr,
    candidates_ptr,
    candidate_ids_ptr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Log-probabilities of one of the best blocks of a row; its first program, the token's too."""
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * stride
    lanes = tl.arange(0, LANES)
    inside = lanes < num_blocks
    best = tl.load(block_best_ptr + row * num_blocks + lanes, mask=inside, other=-float("inf"))
    part = tl.load(block_weight_ptr + row * num_blocks + lanes, mask=inside, other=0.0)
    greatest = tl.max(best, axis=0)
    total = greatest + tl.log(tl.sum(part * tl.exp(best - greatest), axis=0))
    if tl.program_id(1) == 0:
        own = tl.load(row_ptr + tl.load(token_ids_ptr + row)).to(tl.float32)
        above = tl.load(above_ptr + row * num_above + lanes, mask=lanes < num_above, other=0)
        tl.store(own_ptr + row, own - total)
        tl.store(ranks_ptr + row, tl.sum(above, axis=0).to(tl.int64) + 1)
    place = row * tl.num_programs(1) + tl.program_id(1)
    tokens = tl.load(top_blocks_ptr + place) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(row_ptr + tokens, mask=tokens < size, other=-float("inf")).to(tl.float32)
    places = place * BLOCK + tl.arange(0, BLOCK)
    tl.store(candidates_ptr + places, values - total)
    tl.store(candidate_ids_ptr + places, tl.minimum(tokens, size - 1))


def gather_logprobs(
    logits: Tensor, token_ids: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `octavo_kernels.sampling.gather_logprobs`."""
    num_rows, size = logits.shape
    device = logits.device
    own = torch.empty(num_rows, device=device)
    ranks = torch.empty(num_rows, dtype=torch.int64, device=device)
    if num_rows == 0:
        none = torch.empty((0, count), device=device)
        return own, ranks, none, none.long()
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    found = survey(logits, token_ids=token_ids)
    num_blocks = found.best.shape[1]
    top_blocks = found.best.topk(min(count, num_blocks), dim=1).indices
    num_candidates = top_blocks.shape[1] * BLOCK
    candidates = torch.empty((num_rows, num_candidates), device=device)
    candidate_ids = torch.empty((num_rows, num_candidates), dtype=torch.int64, device=device)
    _score[(num_rows, top_blocks.shape[1])](
        logits,
        logits.stride(0),
        size,
        token_ids,
        found.best,
        found.weight,
        num_blocks,
        found.above,
        found.above.shape[1],
        top_blocks,
        own,
        ranks,
        candidates,
        candidate_ids,
        LANES=triton.next_power_of_2(num_blocks),
        BLOCK=BLOCK,
        num_warps=4,
    )
    values, places = candidates.topk(count, dim=1)
    return own, ranks, values, candidate_ids.gather(1, places)
