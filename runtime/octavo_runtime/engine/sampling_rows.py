"""From sequences to rows of the sampler, and back."""

from octavo_runtime.engine.messages import TokenLogprobs
from octavo_runtime.engine.scheduler import SampledToken
from octavo_runtime.engine.sequence import Sequence
from octavo_runtime.layers.sampler import SampledRow, SamplingRow


def sampling_row(sequence: Sequence) -> SamplingRow:
    """How to sample after the last known token of `sequence`."""
    params = sequence.request.sampling
    banned: list[int] = []
    if sequence.num_output_tokens < params.min_tokens:
        banned = list(params.stop_token_ids or [])
        if sequence.request.eos_token_id is not None:
            banned.append(sequence.request.eos_token_id)
    return SamplingRow(
        params=params,
        seed=params.seed or 0,
        num_output_tokens=sequence.num_output_tokens,
        prompt_token_ids=sequence.request.prompt_token_ids,
        output_token_ids=sequence.output_token_ids,
        banned_token_ids=banned,
    )


def sampled_token(row: SampledRow) -> SampledToken:
    """What the scheduler gets of a sampled row."""
    if row.logprobs is None or row.logprob_token_ids is None:
        return SampledToken(row.token_id)
    return SampledToken(row.token_id, TokenLogprobs(row.logprob_token_ids, row.logprobs, row.rank))
