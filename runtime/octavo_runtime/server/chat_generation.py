"""What a chat generation says, as `ChatDelta`s: reasoning split off, tool calls found.

    engine text ──▶ reasoning parser ──▶ tool parser ──▶ ChatDelta
                        └▶ reasoning         └▶ calls

Chat completions, responses and messages only write these down.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from octavo_protocol.openai import ChatCompletionRequest
from octavo_protocol.openai.tools import NamedToolChoice
from octavo_protocol.outputs import CompletionOutput
from octavo_runtime.server.chat_delta import ChatDelta, ToolCallDelta
from octavo_runtime.server.chat_job import parser_for, tools_for
from octavo_runtime.server.generation import GenerationJob, run
from octavo_runtime.server.reasoning_parsers import ReasoningParser
from octavo_runtime.server.state import ServerState
from octavo_runtime.server.tool_parsers import ToolParser


async def chat_deltas(
    state: ServerState, request: ChatCompletionRequest, job: GenerationJob
) -> AsyncGenerator[ChatDelta, None]:
    """Runs `job`, which `chat_job` made of `request`. Closing the generator aborts it.

    A job whose outputs are final only gives one delta per choice. With include_reasoning=false
    neither reasoning nor its tokens appear; they are counted all the same.
    """
    readers: dict[int, _ChoiceReader] = {}
    parser = parser_for(state, request)
    async with aclosing(run(state, job)) as outputs:
        async for _, output in outputs:
            prompt_logprobs = output.prompt_logprobs
            for completion in output.outputs:
                reader = readers.get(completion.index)
                if reader is None:
                    reader = readers[completion.index] = _ChoiceReader(
                        request,
                        job,
                        parser(tools_for(request)) if parser else None,
                        state.reasoning_parser(job.prompt_texts[0] or "")
                        if state.reasoning_parser
                        else None,
                    )
                job.trace.note(completion.index, completion, output.num_cached_tokens)
                delta = reader.read(completion)
                delta.num_cached_tokens = output.num_cached_tokens or 0
                delta.prompt_logprobs = prompt_logprobs
                yield delta


class _ChoiceReader:
    """One choice: its parsers and its counts."""

    def __init__(
        self,
        request: ChatCompletionRequest,
        job: GenerationJob,
        tool_parser: ToolParser | None,
        reasoning_parser: ReasoningParser | None,
    ) -> None:
        self._request = request
        self._end_ids = job.reasoning_end_token_ids
        self._new_id = job.trace.new_id
        self._tools = tool_parser
        self._reasoning = reasoning_parser
        self._is_named = isinstance(request.tool_choice, NamedToolChoice)
        self._has_calls = False
        self._num_tokens = 0
        self._num_reasoning_tokens = 0

    def read(self, completion: CompletionOutput) -> ChatDelta:
        is_last = completion.finish_reason is not None
        token_ids = list(completion.token_ids)
        reasoning, text, num_reasoning = self._split(completion.text, token_ids, is_last)
        content, calls = self._parse(text, completion.index, is_last)
        self._num_tokens += len(token_ids)
        self._num_reasoning_tokens += num_reasoning
        num_hidden = 0 if self._request.include_reasoning else num_reasoning
        logprobs = completion.logprobs
        return ChatDelta(
            choice=completion.index,
            content=content,
            reasoning=reasoning if self._request.include_reasoning else "",
            tool_calls=calls,
            token_ids=token_ids[num_hidden:],
            logprobs=None if logprobs is None else logprobs[num_hidden : len(token_ids)],
            finish_reason=self._finish_reason(completion),
            stop_reason=completion.stop_reason,
            num_tokens=self._num_tokens,
            num_reasoning_tokens=self._num_reasoning_tokens,
        )

    def _split(self, text: str, token_ids: Sequence[int], is_last: bool) -> tuple[str, str, int]:
        """(reasoning, rest, how many of the tokens are reasoning)."""
        parser = self._reasoning
        if parser is None:
            return "", text, 0
        was_reasoning = parser.is_reasoning
        reasoning, rest = parser.feed(text)
        num_reasoning = 0
        if parser.is_reasoning:
            num_reasoning = len(token_ids)
        elif was_reasoning or reasoning:
            num_reasoning = _end_of(token_ids, self._end_ids)
        if is_last:
            more_reasoning, more_rest = parser.finish()
            reasoning, rest = reasoning + more_reasoning, rest + more_rest
        return reasoning, rest, num_reasoning

    def _parse(self, text: str, choice: int, is_last: bool) -> tuple[str, list[ToolCallDelta]]:
        if self._tools is None:
            return text, []
        parsed = self._tools.feed(text)
        content, calls = parsed.content, parsed.calls
        if is_last:
            ending = self._tools.finish()
            content, calls = content + ending.content, calls + ending.calls
        if not self._request.parallel_tool_calls:
            calls = [call for call in calls if call.index == 0]
        for call in calls:
            if call.name is not None:
                call.id = self._new_id("chatcmpl-tool-", f"{choice}/{call.index}")
                self._has_calls = True
        return content, calls

    def _finish_reason(self, completion: CompletionOutput) -> str | None:
        is_call = self._has_calls and not self._is_named
        if completion.finish_reason == "stop" and is_call:
            return "tool_calls"
        return completion.finish_reason


def _end_of(token_ids: Sequence[int], end_ids: Sequence[int]) -> int:
    """Number of tokens up to the end of `end_ids`; all of them where the end is not among them."""
    size = len(end_ids)
    for start in range(len(token_ids) - size + 1):
        if size and list(token_ids[start : start + size]) == list(end_ids):
            return start + size
    return len(token_ids)
