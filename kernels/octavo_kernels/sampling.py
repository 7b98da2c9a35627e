"""Drawing tokens from logits without leaving the device, and their log-probabilities."""

from __future__ import annotations

from torch import Tensor

from octavo_kernels.reference import sampling as reference


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
    """One token of each row; a function of the row's logits, parameters, seed and position alone.

    Tokens race (Gumbel-max): temperature-scaled logits plus noise that is a hash of (seed,
    position, token), the greatest wins. Min-p, top-k and top-p say who may race, in this order,
    top-p of what is left by the others. Of equals top-k and top-p keep the first: never more than
    top_k tokens, and the fewest whose probability reaches top_p, or one.

    logits:      [num_rows, vocab_size] bf16, fp16 or fp32; not changed
    temperature: [num_rows] fp32; 0: the best token, the first of equals
    top_k:       [num_rows] int32; 0: off
    top_p:       [num_rows] fp32; 1: off. min_p: [num_rows] fp32; 0: off
    seed:        [num_rows] int64, its bits are the hash's. position: [num_rows] int64
    has_filters: False where no row has top_k, top_p or min_p: they are then not looked at
    returns      [num_rows] int64
    """
    arguments = (logits, temperature, top_k, top_p, min_p, seed, position)
    if logits.is_cuda:
        from octavo_kernels.gpu import sampling as gpu

        return gpu.sample_tokens(*arguments, has_filters=has_filters)
    return reference.sample_tokens(*arguments, has_filters=has_filters)


def gather_logprobs(
    logits: Tensor, token_ids: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(log-probabilities of `token_ids`, their ranks, the best log-probabilities, whose they are).

    logits: [num_rows, vocab_size]. token_ids: [num_rows] int64. Returns [num_rows] fp32,
    [num_rows] int64 (1: the best), and twice [num_rows, count], fp32 and int64, descending; which
    of equals come first is left open.
    """
    if logits.is_cuda:
        from octavo_kernels.gpu import logprobs as gpu

        return gpu.gather_logprobs(logits, token_ids, count)
    return reference.gather_logprobs(logits, token_ids, count)
