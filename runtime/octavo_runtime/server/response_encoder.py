"""From `ChatDelta`s to a response object and the events of its stream. Pure: no clock, no I/O.

    created, in_progress,
    per output item:   output_item.added
                         content_part.added, text deltas, text done, content_part.done
                         or arguments deltas, arguments done
                       output_item.done
    completed | incomplete | failed

One item is open at a time: reasoning, message or function call; what belongs to another kind
closes it. A whole answer is what the same steps leave in `response`.
"""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from octavo_protocol.openai.answers import TokenLogprob
from octavo_protocol.openai.response_answers import (
    ArgumentsDeltaEvent,
    ArgumentsDoneEvent,
    Event,
    FunctionCall,
    IncompleteDetails,
    InputTokensDetails,
    ItemEvent,
    ItemStatus,
    OutputMessage,
    OutputText,
    OutputTokensDetails,
    PartEvent,
    ReasoningItem,
    ReasoningText,
    Response,
    ResponseError,
    ResponseEvent,
    ResponseUsage,
    TextDeltaEvent,
    TextDoneEvent,
)
from octavo_runtime.server.chat_delta import ChatDelta, ToolCallDelta

_ABORTED = "the request was aborted"


class ResponseEncoder:
    """response: in progress and without output; it grows with every delta.

    new_id: an identifier that begins with the given prefix. num_input_tokens: of the prompt.
    logprobs_of: the log-probabilities of a delta's new tokens; empty where not asked for.
    num_events: events so far, which are numbered.
    """

    def __init__(
        self,
        response: Response,
        *,
        num_input_tokens: int,
        new_id: Callable[[str], str],
        logprobs_of: Callable[[ChatDelta], list[TokenLogprob]] = lambda delta: [],
    ) -> None:
        self.response = response
        self._num_input_tokens = num_input_tokens
        self._new_id = new_id
        self._logprobs_of = logprobs_of
        self.num_events = 0
        self._item: OutputMessage | ReasoningItem | FunctionCall | None = None
        self._call_index: int | None = None  # of the call that is open
        self._logprobs: list[TokenLogprob] = []  # of tokens whose text is held back
        self._num_reasoning = 0
        self._last: ChatDelta | None = None

    def feed(self, delta: ChatDelta) -> list[Event]:
        """The events that `delta` causes; the first delta also opens the stream."""
        return list(self._feed(delta))

    def finish(self, completed_at: int) -> list[Event]:
        """The events that end the answer after its last delta."""
        reason = self._last.finish_reason if self._last else None
        if reason == "abort" or self._last is None:
            return self.fail(_ABORTED)
        is_cut = reason == "length"
        events = list(self._close("incomplete" if is_cut else "completed"))
        self._count(self._last)
        if is_cut:
            self.response.status = "incomplete"
            self.response.incomplete_details = IncompleteDetails()
        else:
            self.response.status = "completed"
            self.response.completed_at = completed_at
        return [*events, self._snapshot(f"response.{self.response.status}")]

    def fail(self, message: str, code: str = "server_error") -> list[Event]:
        """The events that end an answer which cannot be completed."""
        events = [] if self.num_events else list(self._open_stream())
        events += self._close("incomplete")
        self.response.status = "failed"
        self.response.error = ResponseError(code, message)
        return [*events, self._snapshot("response.failed")]

    def _feed(self, delta: ChatDelta) -> Iterator[Event]:
        if not self.num_events:
            yield from self._open_stream()
        self._hold_logprobs(delta)
        self._last = delta
        if delta.reasoning:
            yield from self._say_reasoning(delta.reasoning)
        if delta.content:
            yield from self._say_text(delta.content)
        for piece in delta.tool_calls:
            yield from self._call(piece)

    def _open_stream(self) -> Iterator[Event]:
        yield self._snapshot("response.created")
        yield self._snapshot("response.in_progress")

    def _say_reasoning(self, text: str) -> Iterator[Event]:
        item = self._item
        if not isinstance(item, ReasoningItem):
            item = ReasoningItem(id=self._new_id("rs_"), content=[])
            yield from self._open(item, ReasoningText())
        item.content[0].text += text
        yield TextDeltaEvent(
            **self._head("response.reasoning_text.delta", item), content_index=0, delta=text
        )

    def _say_text(self, text: str) -> Iterator[Event]:
        item = self._item
        if not isinstance(item, OutputMessage):
            item = OutputMessage(id=self._new_id("msg_"), content=[])
            yield from self._open(item, OutputText(annotations=[], logprobs=[]))
        logprobs, self._logprobs = self._logprobs, []
        item.content[0].text += text
        item.content[0].logprobs += logprobs
        yield TextDeltaEvent(
            **self._head("response.output_text.delta", item),
            content_index=0,
            delta=text,
            logprobs=logprobs,
        )

    def _call(self, piece: ToolCallDelta) -> Iterator[Event]:
        item = self._item
        if not isinstance(item, FunctionCall) or piece.index != self._call_index:
            item = FunctionCall(
                id=self._new_id("fc_"), call_id=piece.id or "", name=piece.name or ""
            )
            yield from self._open(item, None)
            self._call_index = piece.index
        if piece.arguments:
            item.arguments += piece.arguments
            yield ArgumentsDeltaEvent(
                **self._head("response.function_call_arguments.delta", item), delta=piece.arguments
            )

    def _open(
        self, item: OutputMessage | ReasoningItem | FunctionCall, part: Any
    ) -> Iterator[Event]:
        yield from self._close("completed")
        self._item = item
        self.response.output.append(item)
        yield self._item_event("response.output_item.added", item)
        if not isinstance(item, FunctionCall):
            item.content.append(part)
            yield self._part_event("response.content_part.added", item)

    def _close(self, status: ItemStatus) -> Iterator[Event]:
        item, self._item = self._item, None
        if item is None:
            return
        if isinstance(item, FunctionCall):
            yield ArgumentsDoneEvent(
                **self._head("response.function_call_arguments.done", item),
                name=item.name,
                arguments=item.arguments,
            )
        else:
            yield self._text_done(item)
            yield self._part_event("response.content_part.done", item)
        item.status = status
        yield self._item_event("response.output_item.done", item)

    def _text_done(self, item: OutputMessage | ReasoningItem) -> Event:
        text = item.content[0].text
        if isinstance(item, ReasoningItem):
            head = self._head("response.reasoning_text.done", item)
            return TextDoneEvent(**head, content_index=0, text=text)
        item.content[0].logprobs += self._logprobs
        self._logprobs = []
        return TextDoneEvent(
            **self._head("response.output_text.done", item),
            content_index=0,
            text=text,
            logprobs=list(item.content[0].logprobs),
        )

    def _item_event(self, kind: str, item: OutputMessage | ReasoningItem | FunctionCall) -> Event:
        shown = _copy(item)
        if not isinstance(shown, FunctionCall) and kind.endswith(".added"):
            shown.content = []
        return ItemEvent(
            type=kind,
            sequence_number=self._next_number(),
            output_index=len(self.response.output) - 1,
            item=shown,
        )

    def _part_event(self, kind: str, item: OutputMessage | ReasoningItem) -> Event:
        return PartEvent(**self._head(kind, item), content_index=0, part=_copy(item.content[0]))

    def _snapshot(self, kind: str) -> Event:
        return ResponseEvent(
            type=kind, sequence_number=self._next_number(), response=_copy(self.response)
        )

    def _head(self, kind: str, item: Any) -> dict[str, Any]:
        return {
            "type": kind,
            "sequence_number": self._next_number(),
            "item_id": item.id,
            "output_index": len(self.response.output) - 1,
        }

    def _next_number(self) -> int:
        self.num_events += 1
        return self.num_events - 1

    def _hold_logprobs(self, delta: ChatDelta) -> None:
        """Keeps what belongs to the text of a message: not reasoning, not calls."""
        num_reasoning = delta.num_reasoning_tokens - self._num_reasoning
        self._num_reasoning = delta.num_reasoning_tokens
        if not delta.tool_calls and not isinstance(self._item, FunctionCall):
            self._logprobs += self._logprobs_of(delta)[num_reasoning:]

    def _count(self, last: ChatDelta) -> None:
        self.response.usage = ResponseUsage(
            input_tokens=self._num_input_tokens,
            output_tokens=last.num_tokens,
            total_tokens=self._num_input_tokens + last.num_tokens,
            input_tokens_details=InputTokensDetails(last.num_cached_tokens),
            output_tokens_details=OutputTokensDetails(last.num_reasoning_tokens),
        )


def _copy(value: Any) -> Any:
    """A copy that later deltas do not change."""
    if isinstance(value, Response):
        return msgspec.structs.replace(value, output=[_copy(item) for item in value.output])
    if isinstance(value, OutputText):
        return msgspec.structs.replace(value, logprobs=list(value.logprobs))
    if isinstance(value, OutputMessage | ReasoningItem):
        return msgspec.structs.replace(value, content=[_copy(part) for part in value.content])
    return msgspec.structs.replace(value)
