"""POST /v1/completions: from engine outputs to text answers, whole or streamed."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from octavo_protocol.openai import CompletionRequest
from octavo_protocol.openai.answers import Completion, CompletionChoice, sse, usage
from octavo_protocol.outputs import CompletionOutput, RequestOutput
from octavo_runtime.server.generation import GenerationJob, run, says_something
from octavo_runtime.server.logprobs import completion_logprobs
from octavo_runtime.server.state import ServerState


async def whole_answer(
    state: ServerState,
    request: CompletionRequest,
    model: str,
    job: GenerationJob,
    echoes: Sequence[str],
) -> Completion:
    """echoes: text to put before each prompt's outputs; empty strings without `echo`."""
    finals: dict[int, RequestOutput] = {}
    async for index, output in run(state, job):
        finals[index] = output
    choices = []
    num_output = num_cached = 0
    for prompt_index, final in sorted(finals.items()):
        num_cached += final.num_cached_tokens or 0
        for completion in final.outputs:
            num_output += len(completion.token_ids)
            choice = _choice(request, completion, prompt_index, 0)
            choice.text = echoes[prompt_index] + choice.text
            choices.append(choice)
    return Completion(
        id=job.answer_id,
        model=model,
        choices=choices,
        created=int(time.time()),
        usage=usage(sum(map(len, job.prompts)), num_output, num_cached),
    )


async def stream_answer(
    state: ServerState,
    request: CompletionRequest,
    model: str,
    job: GenerationJob,
    echoes: Sequence[str],
) -> AsyncGenerator[bytes, None]:
    """Events: chunks with text, the last one of each choice with its finish reason; then, when
    asked for, one with the usage and no choices.
    """
    created = int(time.time())
    options = request.stream_options
    running = bool(options and options.include_usage and options.continuous_usage_stats)
    num_prompt = sum(map(len, job.prompts))
    num_output = 0
    cached: dict[int, int] = {}
    offsets: dict[int, int] = {}  # of the next token in each choice that has begun

    def event(choices: list[CompletionChoice], *, with_usage: bool) -> bytes:
        chunk = Completion(id=job.answer_id, model=model, choices=choices, created=created)
        if with_usage:
            chunk.usage = usage(num_prompt, num_output, sum(cached.values()))
        return sse(chunk)

    async with aclosing(run(state, job)) as outputs:
        async for prompt_index, output in outputs:
            cached[prompt_index] = output.num_cached_tokens or 0
            for completion in output.outputs:
                num_output += len(completion.token_ids)
                if not says_something(completion, with_ids=bool(request.return_token_ids)):
                    continue
                index = prompt_index * request.n + completion.index
                choice = _choice(request, completion, prompt_index, offsets.get(index, 0))
                if index not in offsets:
                    choice.text = echoes[prompt_index] + choice.text
                # Not by the text of the choices: that may be held back for a stop string.
                tokens = choice.logprobs.tokens if choice.logprobs else []
                offsets[index] = offsets.get(index, 0) + sum(map(len, tokens))
                yield event([choice], with_usage=running)
    if options and options.include_usage:
        yield event([], with_usage=True)


def _choice(
    request: CompletionRequest, completion: CompletionOutput, prompt_index: int, first_offset: int
) -> CompletionChoice:
    return CompletionChoice(
        index=prompt_index * request.n + completion.index,
        text=completion.text,
        finish_reason=completion.finish_reason,
        stop_reason=completion.stop_reason,
        logprobs=completion_logprobs(completion, request.logprobs or 0, first_offset),
        token_ids=list(completion.token_ids) if request.return_token_ids else None,
    )
