"""POST /v1/chat/completions: `ChatDelta`s written down as chat completions, whole or streamed."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field

import msgspec

from octavo_protocol.openai import ChatCompletionRequest
from octavo_protocol.openai.answers import (
    AssistantMessage,
    CalledFunction,
    CalledTool,
    CalledToolPiece,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    Delta,
    Usage,
    sse,
    usage,
)
from octavo_protocol.outputs import PromptLogprobs
from octavo_runtime.server.chat_delta import ChatDelta, ToolCallDelta
from octavo_runtime.server.generation import GenerationJob
from octavo_runtime.server.logprobs import (
    LogprobStyle,
    Position,
    chat_logprobs,
    output_logprobs,
    prompt_logprobs,
)
from octavo_runtime.server.state import ServerState
from octavo_runtime.server.usage_options import UsageOptions


class ChatWriter:
    """One request's answer. model: the name that the client knows it by."""

    def __init__(
        self, state: ServerState, request: ChatCompletionRequest, model: str, job: GenerationJob
    ) -> None:
        self._request = request
        self._job = job
        self._model = model
        self._created = job.trace.head.created
        self._role = state.options.response_role
        self._repeats_reasoning = state.options.reasoning_content_field
        self._fingerprint = state.fingerprint
        self._counts_reasoning = state.reasoning_parser is not None
        self._usage_options = UsageOptions.of(state, request)
        num_top = request.top_logprobs or 0
        if request.logprob_token_ids:
            num_top = -1
        as_ids = bool(request.return_tokens_as_token_ids)
        self._style = LogprobStyle(
            num_top, as_ids=as_ids or state.options.return_tokens_as_token_ids
        )
        self._counts: dict[int, tuple[int, int]] = {}  # of each choice: tokens, reasoning tokens
        self._num_cached = 0

    async def whole(self, deltas: AsyncGenerator[ChatDelta, None]) -> ChatCompletion:
        """The answer when all is said."""
        choices: dict[int, _WholeChoice] = {}
        scored: PromptLogprobs | None = None
        async with aclosing(deltas):
            async for delta in deltas:
                self._count(delta)
                choices.setdefault(delta.choice, _WholeChoice()).add(delta)
                scored = scored or delta.prompt_logprobs
        return ChatCompletion(
            id=self._job.answer_id,
            model=self._model,
            created=self._created,
            choices=[self._choice(index, choice) for index, choice in sorted(choices.items())],
            usage=self._usage(),
            system_fingerprint=self._fingerprint,
            prompt_logprobs=prompt_logprobs(scored),
            prompt_token_ids=self._prompt_token_ids(),
            prompt_text=self._job.prompt_texts[0] if self._request.return_prompt_text else None,
        )

    async def events(self, deltas: AsyncGenerator[ChatDelta, None]) -> AsyncGenerator[bytes, None]:
        """Per choice a chunk with the role, then one that echoes, where asked for; chunks with
        what is said, the last of each choice with its finish reason; then the usage, where asked
        for, in a chunk without choices.
        """
        is_open = False
        async with aclosing(deltas):
            async for delta in deltas:
                self._count(delta)
                events = b"" if is_open else b"".join(self._opening())
                is_open = True
                if self._says_something(delta):
                    events += sse(self._chunk(self._chunk_choice(delta), delta.finish_reason))
                if events:
                    yield self._job.trace.sealed(events)
        if self._usage_options.at_end:
            last = self._chunk(None)
            last.usage = self._usage()
            yield sse(last)

    def _opening(self) -> Iterator[bytes]:
        for index in range(self._request.n):
            chunk = self._chunk(ChatChunkChoice(index, Delta(role=self._role, content="")))
            if (token_ids := self._prompt_token_ids()) is not None:
                chunk.prompt_token_ids = token_ids
            if self._request.return_prompt_text:
                chunk.prompt_text = self._job.prompt_texts[0] or ""
            yield sse(chunk)
        if echo := self._echo():
            for index in range(self._request.n):
                yield sse(self._chunk(ChatChunkChoice(index, Delta(content=echo))))

    def _chunk(
        self, choice: ChatChunkChoice | None, finish_reason: str | None = None
    ) -> ChatCompletionChunk:
        chunk = ChatCompletionChunk(
            id=self._job.answer_id,
            model=self._model,
            created=self._created,
            choices=[] if choice is None else [choice],
        )
        if finish_reason is not None and self._fingerprint is not None:
            chunk.system_fingerprint = self._fingerprint
        if self._usage_options.running:
            chunk.usage = self._usage()
        return chunk

    def _chunk_choice(self, delta: ChatDelta) -> ChatChunkChoice:
        said = Delta(
            content=delta.content or None,
            reasoning=delta.reasoning or None,
            tool_calls=[_piece(call) for call in delta.tool_calls] or None,
        )
        if self._repeats_reasoning:
            said.reasoning_content = said.reasoning
        return ChatChunkChoice(
            delta.choice,
            said,
            logprobs=chat_logprobs(delta.token_ids, delta.logprobs or None, self._style),
            finish_reason=delta.finish_reason,
            stop_reason=msgspec.UNSET if delta.stop_reason is None else delta.stop_reason,
            token_ids=delta.token_ids if self._request.return_token_ids else msgspec.UNSET,
        )

    def _choice(self, index: int, choice: "_WholeChoice") -> ChatChoice:
        reasoning = choice.reasoning or None
        content: str | None = self._echo() + choice.content
        if not content and (choice.calls or reasoning):
            content = None
        message = AssistantMessage(role=self._role, content=content, reasoning=reasoning)
        if choice.calls:
            message.tool_calls = list(choice.calls.values())
        if self._repeats_reasoning:
            message.reasoning_content = reasoning
        return ChatChoice(
            index=index,
            message=message,
            logprobs=chat_logprobs(choice.token_ids, choice.logprobs, self._style),
            finish_reason=choice.finish_reason,
            stop_reason=choice.stop_reason,
            token_ids=choice.token_ids if self._request.return_token_ids else None,
            output_logprobs=output_logprobs(
                choice.logprobs if self._request.return_output_logprobs else None
            ),
        )

    def _echo(self) -> str:
        """The last message, which the answer begins with where the request says so."""
        last = self._request.messages[-1]
        return last.text() if self._request.echo and last.role == self._role else ""

    def _says_something(self, delta: ChatDelta) -> bool:
        """Whether a delta deserves a chunk. Half a character has nothing but token ids."""
        return bool(
            delta.content
            or delta.reasoning
            or delta.tool_calls
            or delta.finish_reason
            or delta.logprobs
            or (self._request.return_token_ids and delta.token_ids)
        )

    def _prompt_token_ids(self) -> list[int] | None:
        return self._job.prompts[0] if self._request.return_token_ids else None

    def _count(self, delta: ChatDelta) -> None:
        self._counts[delta.choice] = (delta.num_tokens, delta.num_reasoning_tokens)
        self._num_cached = delta.num_cached_tokens

    def _usage(self) -> Usage:
        counts = self._counts.values()
        return usage(
            self._job.num_prompt_tokens,
            sum(num_tokens for num_tokens, _ in counts),
            self._num_cached,
            sum(num for _, num in counts) if self._counts_reasoning else None,
        )


@dataclass(slots=True)
class _WholeChoice:
    """Everything that a choice has said."""

    content: str = ""
    reasoning: str = ""
    calls: dict[int, CalledTool] = field(default_factory=dict)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Position] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def add(self, delta: ChatDelta) -> None:
        self.content += delta.content
        self.reasoning += delta.reasoning
        self.token_ids += delta.token_ids
        if delta.logprobs is not None:
            self.logprobs = self.logprobs or []
            self.logprobs += delta.logprobs
        for piece in delta.tool_calls:
            call = self.calls.setdefault(
                piece.index, CalledTool(piece.id or "", CalledFunction(piece.name, ""))
            )
            call.function.arguments = (call.function.arguments or "") + piece.arguments
        self.finish_reason = delta.finish_reason
        self.stop_reason = delta.stop_reason


def _piece(call: ToolCallDelta) -> CalledToolPiece:
    function = CalledFunction(call.name, call.arguments)
    if call.name is None:
        return CalledToolPiece(call.index, function)
    return CalledToolPiece(call.index, function, id=call.id, type="function")
