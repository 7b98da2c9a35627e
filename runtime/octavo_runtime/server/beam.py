"""Beam search for a route: many short engine requests, one output at the end."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from octavo_protocol.beam_search import BeamSearchParams, BeamSearchSequence
from octavo_protocol.errors import ValidationError
from octavo_protocol.openai import ChatCompletionRequest, CompletionRequest
from octavo_protocol.outputs import CompletionOutput, Logprob, RequestOutput
from octavo_protocol.sampling_params import SamplingParams
from octavo_protocol.tokenizer import Tokenizer
from octavo_runtime.engine.beam_search import BeamSearch
from octavo_runtime.engine.messages import EngineInfo

# Prompt and parameters to the log-probabilities of the one token that follows.
Step = Callable[[list[int], SamplingParams], Awaitable[Mapping[int, Logprob]]]


def beam_params(
    request: ChatCompletionRequest | CompletionRequest, params: SamplingParams, info: EngineInfo
) -> BeamSearchParams | None:
    """The search that `request` asks for, n beams wide. Raises `ValidationError`."""
    if not request.use_beam_search:
        return None
    if params.prompt_logprobs is not None:
        raise ValidationError(
            "a beam search does not score the prompt: leave out prompt_logprobs, or echo with "
            "logprobs",
            parameter="use_beam_search",
        )
    return BeamSearchParams(
        beam_width=request.n,
        max_tokens=params.max_tokens or info.max_model_len,
        ignore_eos=params.ignore_eos,
        temperature=request.temperature or 0.0,
        length_penalty=request.length_penalty,
        include_stop_str_in_output=params.include_stop_str_in_output,
        structured_outputs=params.structured_outputs,
        skip_special_tokens=params.skip_special_tokens,
        allowed_token_ids=params.allowed_token_ids,
    )


async def search(
    prompt: list[int],
    params: BeamSearchParams,
    step: Step,
    info: EngineInfo,
    tokenizer: Tokenizer,
    *,
    request_id: str,
    with_logprobs: bool,
) -> RequestOutput:
    """The best beams as the outputs of one finished request, best first.

    Raises what a step raises; the other steps are then cancelled, as they are with this call.
    """
    beams = BeamSearch(prompt, params, info.eos_token_ids, max_model_len=info.max_model_len)
    while prompts := beams.next_prompts():
        steps = [asyncio.ensure_future(step(each, beams.sampling_params)) for each in prompts]
        try:
            beams.advance(await asyncio.gather(*steps))
        finally:
            for each in steps:
                each.cancel()
            await asyncio.gather(*steps, return_exceptions=True)
    outputs = [
        _output(index, sequence, len(prompt), params, tokenizer, with_logprobs=with_logprobs)
        for index, sequence in enumerate(beams.result())
    ]
    return RequestOutput(
        request_id, None, prompt, outputs=outputs, finished=True, num_cached_tokens=0
    )


def _output(
    index: int,
    sequence: BeamSearchSequence,
    num_prompt: int,
    params: BeamSearchParams,
    tokenizer: Tokenizer,
    *,
    with_logprobs: bool,
) -> CompletionOutput:
    """An end token that is not shown still has its log-probabilities."""
    token_ids = sequence.tokens[num_prompt:]
    for position in sequence.logprobs:
        for token_id, logprob in position.items():
            logprob.decoded_token = tokenizer.token_text(token_id)
    return CompletionOutput(
        index=index,
        text=tokenizer.decode(token_ids, skip_special_tokens=params.skip_special_tokens),
        token_ids=token_ids,
        cumulative_logprob=sequence.cum_logprob,
        logprobs=sequence.logprobs if with_logprobs else None,
        finish_reason=sequence.finish_reason,
        stop_reason=sequence.stop_reason,
    )
