"""Finds a pattern of tokens that repeats at the end of an output."""

from octavo_protocol.sampling_params import RepetitionDetectionParams


def ends_in_repetition(
    token_ids: list[int], num_prompt_tokens: int, params: RepetitionDetectionParams
) -> bool:
    """Whether the output ends in a pattern of an allowed size, `min_count` times in a row.

    token_ids: prompt and output; nothing before `num_prompt_tokens` counts.
    """
    for size in range(max(1, params.min_pattern_size), params.max_pattern_size + 1):
        span = size * (params.min_count - 1)  # tokens that must equal those `size` later
        if len(token_ids) - num_prompt_tokens < span + size:
            return False
        end = len(token_ids)
        if all(token_ids[i] == token_ids[i - size] for i in range(end - 1, end - 1 - span, -1)):
            return True
    return False
