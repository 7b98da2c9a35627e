"""From `ChatDelta`s to an Anthropic message and the events of its stream. Pure.

    message_start, ping,
    per content block: content_block_start, deltas, content_block_stop
    message_delta (why it stopped, usage), message_stop     or: error

One block is open at a time: thinking, text or tool use; what belongs to another closes it. A whole
answer is what the same steps leave in `message`.
"""

import json
from collections.abc import Iterator
from typing import Any

import msgspec

from octavo_protocol.anthropic.answers import (
    AnthropicMessage,
    BlockDelta,
    BlockStart,
    BlockStop,
    ContentBlock,
    InputDelta,
    MessageDelta,
    MessageStart,
    MessageStop,
    MessageUsage,
    Ping,
    StopDelta,
    StopReason,
    StreamEvent,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    ToolUseBlock,
)
from octavo_runtime.server.chat_delta import ChatDelta, ToolCallDelta


class MessageEncoder:
    """The answer of one request, from delta to delta.

    message_id, model: as the client sees them. num_input_tokens: of the prompt.
    """

    def __init__(self, message_id: str, model: str, num_input_tokens: int) -> None:
        self.message = AnthropicMessage(
            id=message_id,
            model=model,
            content=[],
            usage=MessageUsage(input_tokens=num_input_tokens, output_tokens=0),
        )
        self._num_input_tokens = num_input_tokens
        self._is_open = False
        self._block: ContentBlock | None = None
        self._call_index: int | None = None  # of the call that is open
        self._arguments = ""  # of that call, so far
        self._last: ChatDelta | None = None

    def feed(self, delta: ChatDelta) -> list[StreamEvent]:
        """The events that `delta` causes; the first delta also opens the stream."""
        return list(self._feed(delta))

    def finish(self) -> list[StreamEvent]:
        """The events that end the answer after its last delta."""
        events = list(self._close())
        self.message.stop_reason = reason = self._stop_reason()
        if reason == "stop_sequence" and self._last is not None:
            self.message.stop_sequence = str(self._last.stop_reason)
        stop = StopDelta(reason, self.message.stop_sequence)
        return [*events, MessageDelta(stop, self.message.usage), MessageStop()]

    def _feed(self, delta: ChatDelta) -> Iterator[StreamEvent]:
        self._last = delta
        self.message.usage = MessageUsage(
            input_tokens=self._num_input_tokens - delta.num_cached_tokens,
            output_tokens=delta.num_tokens,
            cache_read_input_tokens=delta.num_cached_tokens,
        )
        if not self._is_open:
            self._is_open = True
            yield MessageStart(msgspec.structs.replace(self.message, content=[]))
            yield Ping()
        if delta.reasoning:
            yield from self._think(delta.reasoning)
        if delta.content:
            yield from self._say(delta.content)
        for piece in delta.tool_calls:
            yield from self._call(piece)

    def _think(self, text: str) -> Iterator[StreamEvent]:
        block = self._block
        if not isinstance(block, ThinkingBlock):
            block = ThinkingBlock()
            yield from self._open(block)
        block.thinking += text
        yield BlockDelta(self._index, ThinkingDelta(text))

    def _say(self, text: str) -> Iterator[StreamEvent]:
        block = self._block
        if not isinstance(block, TextBlock):
            block = TextBlock()
            yield from self._open(block)
        block.text += text
        yield BlockDelta(self._index, TextDelta(text))

    def _call(self, piece: ToolCallDelta) -> Iterator[StreamEvent]:
        if not isinstance(self._block, ToolUseBlock) or piece.index != self._call_index:
            yield from self._open(ToolUseBlock(id=piece.id or "", name=piece.name or "", input={}))
            self._call_index, self._arguments = piece.index, ""
        if piece.arguments:
            self._arguments += piece.arguments
            yield BlockDelta(self._index, InputDelta(piece.arguments))

    @property
    def _index(self) -> int:
        return len(self.message.content) - 1

    def _open(self, block: ContentBlock) -> Iterator[StreamEvent]:
        yield from self._close()
        self._block = block
        self.message.content.append(block)
        yield BlockStart(self._index, msgspec.structs.replace(block))

    def _close(self) -> Iterator[StreamEvent]:
        block, self._block = self._block, None
        if block is None:
            return
        if isinstance(block, ToolUseBlock):
            block.input = _object(self._arguments)
        yield BlockStop(self._index)

    def _stop_reason(self) -> StopReason:
        last = self._last
        if last is not None and last.finish_reason == "length":
            return "max_tokens"
        if any(isinstance(block, ToolUseBlock) for block in self.message.content):
            return "tool_use"
        if last is not None and isinstance(last.stop_reason, str):
            return "stop_sequence"
        return "end_turn"


def _object(arguments: str) -> dict[str, Any]:
    """The arguments of a call; those that were cut off in the middle are none."""
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
