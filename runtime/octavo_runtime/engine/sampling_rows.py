"""From sequences to the sampler's and the scorer's inputs, and back."""

from collections.abc import Iterable

from octavo_runtime.engine.messages import EngineRequest, TokenLogprobs
from octavo_runtime.engine.scheduler import SampledToken, ScheduledSequence, StepPlan
from octavo_runtime.engine.sequence import Sequence
from octavo_runtime.layers.sampling.logprobs import TokenScores
from octavo_runtime.layers.sampling.rows import SamplingRow
from octavo_runtime.layers.sampling.sampler import SampledRow
from octavo_runtime.layers.sampling.thinking import ThinkingBudget
from octavo_runtime.worker.prompt_scores import PromptPart


def sampling_row(sequence: Sequence) -> SamplingRow:
    """How to sample after the last known token of `sequence`; the same row in every step."""
    row = sequence.sampling_row
    if row is None:
        row = sequence.sampling_row = _new_row(sequence.request)
    for token_id in sequence.token_ids[sequence.num_prompt_tokens + row.num_output_tokens :]:
        row.append(token_id)
    return row


def sampled_token(row: SampledRow) -> SampledToken:
    """What the scheduler gets of a sampled row."""
    if row.scores is None:
        return SampledToken(row.token_id)
    return SampledToken(row.token_id, *token_logprobs([row.scores]))


def prompt_parts(plan: StepPlan) -> dict[int, PromptPart]:
    """By index in the plan: the prompt tokens that the step gives log-probabilities for."""
    parts = {index: _prompt_part(item) for index, item in enumerate(plan.scheduled)}
    return {index: part for index, part in parts.items() if part is not None}


def token_logprobs(scores: Iterable[TokenScores]) -> list[TokenLogprobs]:
    """What the scheduler gets of scored tokens."""
    return [TokenLogprobs(s.token_ids, s.values, s.rank, s.ranks) for s in scores]


def _prompt_part(item: ScheduledSequence) -> PromptPart | None:
    """Position i of the model says how likely token i + 1 is.

    Tokens that were scored before a preemption are not scored again.
    """
    sequence = item.sequence
    first = max(item.start + 1, sequence.num_scored_tokens)
    end = min(item.start + item.num_new_tokens + 1, sequence.num_prompt_tokens)
    wanted = sequence.request.sampling.prompt_logprobs
    if wanted is None or first >= end:
        return None
    return PromptPart(first - 1 - item.start, sequence.token_ids[first:end], wanted)


def _new_row(request: EngineRequest) -> SamplingRow:
    params = request.sampling
    end_token_ids = list(params.stop_token_ids or [])
    if request.eos_token_id is not None:
        end_token_ids.append(request.eos_token_id)
    thinking = None
    if params.thinking_token_budget is not None and request.is_reasoning:
        thinking = ThinkingBudget(params.thinking_token_budget, request.reasoning_end_token_ids)
    return SamplingRow(
        params,
        seed=params.seed or 0,
        prompt_token_ids=request.prompt_token_ids,
        end_token_ids=end_token_ids,
        bad_words=request.bad_words_token_ids,
        thinking=thinking,
    )
