"""The best tokens of each row, without a look at every token for each of them."""

import torch
from torch import Tensor

_BLOCK = 128


def best_token(logits: Tensor) -> list[int]:
    """Index of each row's greatest value; the first of equals. logits: [num_rows, vocab_size]."""
    if logits.device.type == "cpu":
        best: list[int] = logits.numpy().argmax(axis=-1).tolist()  # vectorised, unlike torch's
        return best
    return logits.argmax(dim=-1).tolist()


def top_tokens(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` greatest values of each row, descending, and their indices.

    logits: [num_rows, vocab_size] → two tensors [num_rows, count]. The best `count` tokens lie in
    the `count` blocks of 128 tokens whose maxima are greatest, or in what is left after the last
    whole block: only those are searched.
    """
    vocab_size = logits.shape[-1]
    if 2 * count * _BLOCK > vocab_size:
        return logits.topk(count, dim=-1)
    end = vocab_size // _BLOCK * _BLOCK
    blocks = logits[:, :end].view(len(logits), -1, _BLOCK)
    chosen = blocks.amax(dim=-1).topk(count, dim=-1).indices
    inside = blocks.gather(1, chosen.unsqueeze(2).expand(-1, -1, _BLOCK)).flatten(1)
    values, places = torch.cat([inside, logits[:, end:]], dim=1).topk(count, dim=-1)
    num_inside = inside.shape[-1]
    block = chosen.gather(1, (places // _BLOCK).clamp_(max=count - 1))
    indices = torch.where(
        places < num_inside, block * _BLOCK + places % _BLOCK, places - num_inside + end
    )
    return values, indices
