"""Base of the parsers that read their text step by step (`text_reader.py`)."""

from abc import abstractmethod
from collections.abc import Sequence

from octavo_protocol.openai.tools import Tool
from octavo_runtime.server.chat_delta import ToolCallDelta
from octavo_runtime.server.text_reader import SPACES, EndOfTextError, Steps, TextReader
from octavo_runtime.server.tool_parsers.base import ParsedText, ToolParser


class StepwiseParser(ToolParser):
    """Runs `_read`, which consumes the text and says what it found.

    At most one call is open: from `_open`, over pieces of arguments, to `_close`. Text that was
    consumed since the reader's mark, when no call came of it, becomes content as it was written.
    """

    def __init__(self, tools: Sequence[Tool]) -> None:
        super().__init__(tools)
        self.reader = TextReader()
        self._steps = self._run()
        self._content_parts: list[str] = []
        self._spaces: list[str] = []
        self._has_content = False
        self._beside_call = False
        self._calls: list[ToolCallDelta] = []
        self._num_calls = 0
        self._is_open = False

    @abstractmethod
    def _read(self) -> Steps[None]:
        """Read the whole text; returns when only content can follow."""

    def feed(self, text: str) -> ParsedText:
        self.reader.append(text)
        next(self._steps, None)
        return self._flush()

    def finish(self) -> ParsedText:
        self.reader.end()
        next(self._steps, None)
        return self._flush()

    def _run(self) -> Steps[None]:
        try:
            yield from self._read()
            self._give_up()
            yield from self.reader.forward(self._say)
        except EndOfTextError:
            if not self._is_open:
                self._say(self.reader.recall() + self.reader.rest())
            if not self._beside_call:
                self._content_parts += self._spaces

    def _say(self, text: str) -> None:
        """Content; white space waits until it is known to stand inside content."""
        body = text.rstrip(SPACES)
        if body:
            if self._num_calls and not self._has_content:
                self._spaces.clear()
                self._content_parts.append(body.lstrip(SPACES))
            else:
                self._content_parts += [*self._spaces, body]
            self._spaces.clear()
            self._has_content, self._beside_call = True, False
        if len(body) < len(text):
            self._spaces.append(text[len(body) :])

    def _give_up(self) -> None:
        """What was read since the mark is no call."""
        self._say(self.reader.recall())

    def _open(self, name: str) -> None:
        self.reader.forget()
        self._beside_call = self._is_open = True
        self._calls.append(ToolCallDelta(index=self._num_calls, name=name))
        self._num_calls += 1

    def _argue(self, text: str) -> None:
        """Next piece of the open call's arguments."""
        if text:
            self._calls.append(ToolCallDelta(index=self._num_calls - 1, arguments=text))

    def _close(self) -> None:
        self._is_open = False

    def _flush(self) -> ParsedText:
        parsed = ParsedText("".join(self._content_parts), self._calls)
        self._content_parts, self._calls = [], []
        return parsed
