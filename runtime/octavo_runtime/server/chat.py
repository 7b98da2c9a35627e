"""POST /v1/chat/completions: from engine outputs to chat answers, whole or streamed."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from octavo_protocol.openai import ChatCompletionRequest
from octavo_protocol.openai.answers import (
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    Delta,
    sse,
    usage,
)
from octavo_protocol.outputs import CompletionOutput
from octavo_runtime.server.generation import GenerationJob, run, says_something
from octavo_runtime.server.logprobs import chat_logprobs
from octavo_runtime.server.state import ServerState


async def whole_answer(
    state: ServerState, request: ChatCompletionRequest, model: str, job: GenerationJob
) -> ChatCompletion:
    async for _, output in run(state, job):
        final = output
    choices = [
        ChatChoice(
            index=completion.index,
            message=AssistantMessage(completion.text),
            finish_reason=completion.finish_reason,
            stop_reason=completion.stop_reason,
            logprobs=chat_logprobs(completion, request.top_logprobs or 0),
            token_ids=list(completion.token_ids) if request.return_token_ids else None,
        )
        for completion in final.outputs
    ]
    num_output = sum(len(completion.token_ids) for completion in final.outputs)
    return ChatCompletion(
        id=job.answer_id,
        model=model,
        choices=choices,
        usage=usage(len(job.prompts[0]), num_output, final.num_cached_tokens or 0),
    )


async def stream_answer(
    state: ServerState, request: ChatCompletionRequest, model: str, job: GenerationJob
) -> AsyncGenerator[bytes, None]:
    """Events: per choice one chunk with the role, chunks with text, one with the finish reason;
    then, when asked for, one with the usage and no choices.
    """
    created = int(time.time())
    options = request.stream_options
    running = bool(options and options.include_usage and options.continuous_usage_stats)
    opened: set[int] = set()
    num_output = num_cached = 0

    def event(choices: list[ChatChunkChoice], *, with_usage: bool) -> bytes:
        chunk = ChatCompletionChunk(id=job.answer_id, model=model, created=created, choices=choices)
        if with_usage:
            chunk.usage = usage(len(job.prompts[0]), num_output, num_cached)
        return sse(chunk)

    async with aclosing(run(state, job)) as outputs:
        async for _, output in outputs:
            num_cached = output.num_cached_tokens or 0
            for completion in output.outputs:
                num_output += len(completion.token_ids)
                if completion.index not in opened:
                    opened.add(completion.index)
                    first = ChatChunkChoice(completion.index, Delta("assistant", ""))
                    yield event([first], with_usage=running)
                if says_something(completion, with_ids=bool(request.return_token_ids)):
                    yield event([_chunk(request, completion)], with_usage=running)
    if options and options.include_usage:
        yield event([], with_usage=True)


def _chunk(request: ChatCompletionRequest, completion: CompletionOutput) -> ChatChunkChoice:
    return ChatChunkChoice(
        completion.index,
        Delta(content=completion.text or None),
        logprobs=chat_logprobs(completion, request.top_logprobs or 0),
        finish_reason=completion.finish_reason,
        stop_reason=completion.stop_reason,
        token_ids=list(completion.token_ids) if request.return_token_ids else None,
    )
