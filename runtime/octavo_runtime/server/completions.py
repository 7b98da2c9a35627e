"""POST /v1/completions: from engine outputs to text answers, whole or streamed."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from octavo_protocol.openai import CompletionRequest
from octavo_protocol.openai.answers import (
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionLogprobs,
    Usage,
    sse,
    usage,
)
from octavo_protocol.outputs import CompletionOutput, PromptLogprobs, RequestOutput
from octavo_runtime.server.generation import GenerationJob, run
from octavo_runtime.server.logprobs import (
    LogprobStyle,
    Position,
    completion_logprobs,
    output_logprobs,
    prompt_logprobs,
)
from octavo_runtime.server.state import ServerState
from octavo_runtime.server.usage_options import UsageOptions


class CompletionWriter:
    """One request's answer. model: the name that the client knows it by.

    With `echo` every choice begins with its prompt, with max_tokens=0 it also ends there.
    """

    def __init__(
        self, state: ServerState, request: CompletionRequest, model: str, job: GenerationJob
    ) -> None:
        self._state = state
        self._request = request
        self._job = job
        self._model = model
        self._created = job.trace.head.created
        self._usage_options = UsageOptions.of(state, request)
        as_ids = bool(request.return_tokens_as_token_ids)
        self._style = LogprobStyle(
            -1 if request.logprob_token_ids else request.logprobs or 0,
            as_ids=as_ids or state.options.return_tokens_as_token_ids,
        )
        self._num_output = 0
        self._cached: dict[int, int] = {}  # tokens from the prefix cache, by prompt
        self._offsets: dict[int, int] = {}  # of the next token, by choice that has begun

    async def whole(self) -> Completion:
        """The answer when all is said."""
        finals: dict[int, RequestOutput] = {}
        async for prompt_index, output in run(self._state, self._job):
            finals[prompt_index] = output
        choices = [
            self._choice(prompt_index, final, completion)
            for prompt_index, final in sorted(finals.items())
            for completion in final.outputs
        ]
        return Completion(
            id=self._job.answer_id,
            model=self._model,
            choices=choices,
            created=self._created,
            usage=self._usage(),
            system_fingerprint=self._state.fingerprint,
        )

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Chunks with text, the last one of each choice with its finish reason; then the usage,
        where asked for, in a chunk without choices.
        """
        trace = self._job.trace
        async with aclosing(run(self._state, self._job)) as outputs:
            async for prompt_index, output in outputs:
                for completion in output.outputs:
                    choice = self._choice(prompt_index, output, completion)
                    trace.note(choice.index, completion, output.num_cached_tokens)
                    if _says_something(choice):
                        chunk = self._chunk([choice], with_usage=self._usage_options.running)
                        yield trace.sealed(sse(chunk))
        if self._usage_options.at_end:
            yield sse(self._chunk([], with_usage=True))

    def _chunk(self, choices: list[CompletionChoice], *, with_usage: bool) -> CompletionChunk:
        is_last = any(choice.finish_reason for choice in choices)
        fingerprint = self._state.fingerprint if is_last else None
        return CompletionChunk(
            id=self._job.answer_id,
            model=self._model,
            choices=choices,
            created=self._created,
            usage=self._usage() if with_usage else msgspec.UNSET,
            system_fingerprint=fingerprint or msgspec.UNSET,
        )

    def _choice(
        self, prompt_index: int, output: RequestOutput, completion: CompletionOutput
    ) -> CompletionChoice:
        """What a choice says next, counted."""
        request = self._request
        index = prompt_index * request.n + completion.index
        is_first = index not in self._offsets
        prompt = self._job.prompts[prompt_index]
        said = list(completion.token_ids) if request.generates else []
        self._num_output += len(said)
        self._cached[prompt_index] = output.num_cached_tokens or 0
        text = completion.text if request.generates else ""
        if is_first and request.echo:
            text = (self._job.prompt_texts[prompt_index] or "") + text
        echoed = output.prompt_logprobs if is_first and request.echo else None
        scored = output.prompt_logprobs if request.prompt_logprobs is not None else None
        logprobs = self._logprobs(index, said, completion, prompt, echoed)
        with_logprobs = request.return_output_logprobs and request.generates
        text_of_prompt = self._job.prompt_texts[prompt_index] or ""
        return CompletionChoice(
            index=index,
            text=text,
            logprobs=logprobs,
            finish_reason=completion.finish_reason,
            stop_reason=completion.stop_reason,
            token_ids=said if request.return_token_ids else None,
            prompt_token_ids=prompt if request.return_token_ids and is_first else None,
            prompt_logprobs=prompt_logprobs(scored),
            prompt_text=text_of_prompt if request.return_prompt_text else msgspec.UNSET,
            output_logprobs=output_logprobs(completion.logprobs if with_logprobs else None),
        )

    def _logprobs(
        self,
        index: int,
        said: list[int],
        completion: CompletionOutput,
        prompt: list[int],
        echoed: PromptLogprobs | None,
    ) -> CompletionLogprobs | None:
        """Offsets count the tokens' text: that of the choice may be held back for a stop string."""
        offset = self._offsets.setdefault(index, 0)
        if completion.logprobs is None:
            return None
        token_ids, positions = said, list[Position | None](completion.logprobs[: len(said)])
        first_text = ""
        if echoed is not None:
            token_ids, positions = [*prompt, *said], [*echoed, *positions]
            first_text = self._state.llm.tokenizer.token_text(prompt[0])
        result = completion_logprobs(
            token_ids, positions, self._style, first_offset=offset, first_text=first_text
        )
        self._offsets[index] = offset + sum(map(len, result.tokens))
        return result

    def _usage(self) -> Usage:
        cached = sum(self._cached.values())
        return usage(self._job.num_prompt_tokens, self._num_output, cached)


def _says_something(choice: CompletionChoice) -> bool:
    """Whether a piece deserves a chunk. Half a character has nothing but token ids."""
    return bool(
        choice.text
        or choice.finish_reason
        or choice.token_ids
        or (choice.logprobs and choice.logprobs.tokens)
    )
