"""Running prompts for a route: many at once, counted, ended when the client leaves."""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import cast

from octavo_protocol.beam_search import BeamSearchParams
from octavo_protocol.hashing import SharedPrefix
from octavo_protocol.outputs import Logprob, RequestOutput
from octavo_protocol.sampling_params import SamplingParams
from octavo_protocol.spans import current_span
from octavo_runtime.engine.output_so_far import OutputSoFar
from octavo_runtime.server.beam import search
from octavo_runtime.server.generation_span import GenerationSpan
from octavo_runtime.server.request_log import RequestLog
from octavo_runtime.server.state import ServerState
from octavo_runtime.server.stream_trace import StreamTrace


@dataclass(slots=True)
class GenerationJob:
    """One HTTP request's prompts. answer_id: the `id` that the client sees. request_id: the HTTP
    request's own; clients choose both, so the engine's ids get something random added.

    shared_prefix: with which prompts begin that share it. prompt_texts: the prompts as text where
    they came as text, in the same order. is_reasoning: the outputs begin with reasoning, which ends
    with `reasoning_end_token_ids`. visible_special_ids: special tokens whose text is shown all the
    same, since a parser looks for it. beam: a search in place of sampling. adapter: name of the one
    that all prompts use. trace: what was generated elsewhere, and what is told for others to go on.
    """

    answer_id: str
    request_id: str
    prompts: Sequence[list[int]]
    params: SamplingParams
    priority: int = 0
    cache_salt: str = ""
    shared_prefix: SharedPrefix | None = None
    prompt_texts: Sequence[str | None] = ()
    is_reasoning: bool = False
    reasoning_end_token_ids: list[int] = field(default_factory=list)
    visible_special_ids: frozenset[int] = frozenset()
    beam: BeamSearchParams | None = None
    adapter: str | None = None
    trace: StreamTrace = field(default_factory=StreamTrace.new)

    @property
    def num_prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))

    def follow(self, trace: StreamTrace) -> None:
        """The answer is traced by, or goes on from, `trace`.

        Raises `ValidationError` for one that cannot go on, or not from there.
        """
        if self.beam is not None or self.params.prompt_logprobs is not None:
            trace.forbid()
        trace.check_choices(len(self.prompts) * self.params.n)
        self.trace = trace

    def so_far(self, index: int) -> Sequence[OutputSoFar]:
        """What the prompt's samples had generated elsewhere; empty: nothing."""
        return self.trace.so_far(index * self.params.n, self.params.n)


async def run(
    state: ServerState, job: GenerationJob
) -> AsyncGenerator[tuple[int, RequestOutput], None]:
    """(index of the prompt, output), as they come. Closing it aborts what still runs.

    While an output is out that was generated elsewhere, the trace is replaying.

    Raises what the engine raises for any of the prompts; the others are then aborted too.
    """
    state.num_generating += 1
    replays = {index for index in range(len(job.prompts)) if job.so_far(index)}
    try:
        async with aclosing(_run_all(state, job)) as outputs:
            async for index, output in outputs:
                job.trace.is_replaying = index in replays
                replays.discard(index)
                yield index, output
        job.trace.is_replaying = False
    finally:
        state.num_generating -= 1


async def _run_all(
    state: ServerState, job: GenerationJob
) -> AsyncGenerator[tuple[int, RequestOutput], None]:
    if len(job.prompts) == 1:
        async with aclosing(_one(state, job, 0)) as outputs:
            async for output in outputs:
                yield 0, output
        return
    queue: asyncio.Queue[tuple[int, RequestOutput | Exception | None]] = asyncio.Queue()

    async def feed(index: int) -> None:
        try:
            async for output in _one(state, job, index):
                queue.put_nowait((index, output))
            queue.put_nowait((index, None))
        except Exception as error:  # noqa: BLE001  # raised again by the queue's reader
            queue.put_nowait((index, error))

    tasks = [asyncio.create_task(feed(index)) for index in range(len(job.prompts))]
    try:
        num_open = len(tasks)
        while num_open:
            index, item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                num_open -= 1
            else:
                yield index, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _one(
    state: ServerState, job: GenerationJob, index: int
) -> AsyncGenerator[RequestOutput, None]:
    """One prompt's outputs, counted and logged."""
    request_id = f"{job.request_id}-{index}-{secrets.token_hex(4)}"
    prompt_text = job.prompt_texts[index] if job.prompt_texts else None
    log = RequestLog(state.options, prompt_text) if state.options.enable_log_requests else None
    span = GenerationSpan(current_span())
    outputs = _sampled(state, job, index, request_id)
    if job.beam is not None:
        outputs = _searched(state, job, job.beam, index, request_id)
    finished = False
    is_replayed = bool(job.so_far(index))
    state.metrics.started(request_id, job.params)
    try:
        async for output in outputs:
            finished = output.finished
            if not is_replayed:
                state.metrics.observe(output, job.params)
            is_replayed = False
            span.add(output)
            if log is not None:
                log.add(output)
            yield output
    finally:
        state.metrics.ended(request_id, job.params, finished=finished)
        span.end()
        if log is not None:
            log.write()
        await outputs.aclose()


def _sampled(
    state: ServerState, job: GenerationJob, index: int, request_id: str
) -> AsyncGenerator[RequestOutput, None]:
    outputs = state.llm.generate(
        job.prompts[index],
        job.params,
        request_id,
        priority=job.priority,
        cache_salt=job.cache_salt,
        shared_prefix=job.shared_prefix,
        reasoning_end_token_ids=job.reasoning_end_token_ids,
        is_reasoning=job.is_reasoning,
        visible_special_ids=job.visible_special_ids,
        so_far=job.so_far(index),
        lora_request=job.adapter,
    )
    return cast(AsyncGenerator[RequestOutput, None], outputs)


async def _searched(
    state: ServerState, job: GenerationJob, beam: BeamSearchParams, index: int, request_id: str
) -> AsyncGenerator[RequestOutput, None]:
    async def step(prompt: list[int], params: SamplingParams) -> dict[int, Logprob]:
        step_id = f"{request_id}-{secrets.token_hex(4)}"
        outputs = state.llm.generate(
            prompt,
            params,
            step_id,
            priority=job.priority,
            cache_salt=job.cache_salt,
            shared_prefix=job.shared_prefix,
            lora_request=job.adapter,
        )
        [*_, final] = [output async for output in outputs]
        assert final.outputs[0].logprobs is not None
        return final.outputs[0].logprobs[0]

    yield await search(
        job.prompts[index],
        beam,
        step,
        state.check_accepts(),
        state.llm.tokenizer,
        request_id=request_id,
        with_logprobs=job.params.logprobs is not None,
    )
