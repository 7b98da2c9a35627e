"""Reasoning between two markers, which nearly all families write; they differ in the markers."""

from typing import ClassVar

from octavo_runtime.server.reasoning_parsers.base import ReasoningParser
from octavo_runtime.server.text_reader import SPACES, EndOfTextError, Steps, TextReader


class MarkedReasoningParser(ReasoningParser):
    """Reasoning is what the output begins with; a start marker further down is content.

    starts, ends: other ways to write the markers. always: the model reasons unless the prompt has
    closed it, so that a start marker may be missing; otherwise it is needed, in the prompt or in
    the output. interruptions: what ends reasoning without its end marker and is content itself.
    """

    starts: ClassVar[tuple[str, ...]] = ()
    ends: ClassVar[tuple[str, ...]] = ()
    always: ClassVar[bool] = True
    interruptions: ClassVar[tuple[str, ...]] = ()

    def __init__(self, prompt: str) -> None:
        written = prompt.rstrip(SPACES)
        opened = written.endswith((self.start, *self.starts))
        self._starts_in_reasoning = opened or (
            self.always and not written.endswith((self.end, *self.ends))
        )
        self._is_reasoning = self._starts_in_reasoning
        self._reader = TextReader()
        self._steps = self._run()
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self._spaces: list[str] = []

    @property
    def starts_in_reasoning(self) -> bool:
        return self._starts_in_reasoning

    @property
    def is_reasoning(self) -> bool:
        return self._is_reasoning

    def feed(self, text: str) -> tuple[str, str]:
        self._reader.append(text)
        next(self._steps, None)
        return self._flush()

    def finish(self) -> tuple[str, str]:
        self._reader.end()
        next(self._steps, None)
        return self._flush()

    def _flush(self) -> tuple[str, str]:
        reasoning, content = "".join(self._reasoning), "".join(self._content)
        self._reasoning, self._content = [], []
        return reasoning, content

    def _run(self) -> Steps[None]:
        reader = self._reader
        try:
            yield from self._read_start()
            if self._is_reasoning:
                yield from self._read_reasoning()
            yield from reader.forward(self._say)
        except EndOfTextError:
            held = reader.recall() + reader.rest()
            if self._is_reasoning:
                self._think(held.lstrip(SPACES))
                self._reasoning += self._spaces
            else:
                self._say(held)

    def _read_start(self) -> Steps[None]:
        reader = self._reader
        reader.mark()
        yield from reader.spaces()
        if (yield from reader.literal(self.start, *self.starts)):
            self._is_reasoning = True
        elif not self._is_reasoning:
            self._say(reader.recall())
        reader.forget()

    def _read_reasoning(self) -> Steps[None]:
        reader = self._reader
        ends = (self.end, *self.ends)
        yield from reader.spaces()
        marker = yield from reader.until((*ends, *self.interruptions), self._think)
        reader.forget()
        self._is_reasoning = False
        if marker in ends:
            yield from reader.spaces()
        else:
            self._say(marker)

    def _say(self, text: str) -> None:
        self._content.append(text)

    def _think(self, text: str) -> None:
        """Reasoning; white space waits until it is known not to stand before the end marker."""
        body = text.rstrip(SPACES)
        if body:
            self._reasoning += [*self._spaces, body]
            self._spaces.clear()
        if len(body) < len(text):
            self._spaces.append(text[len(body) :])


class ThinkParser(MarkedReasoningParser):
    """Models that always think, unless the prompt holds an empty thought (`enable_thinking`)."""

    start = "<think>"
    end = "</think>"


class OptionalThinkParser(ThinkParser):
    """Models that think only where the prompt or they themselves open a thought."""

    always = False


class KimiK2Parser(ThinkParser):
    """Kimi K2, which may call tools in the middle of a thought."""

    interruptions = ("<|tool_calls_section_begin|>",)


class SeedOssParser(MarkedReasoningParser):
    start = "<seed:think>"
    end = "</seed:think>"


class MistralThinkParser(MarkedReasoningParser):
    start = "[THINK]"
    end = "[/THINK]"
    always = False


class GraniteThinkParser(MarkedReasoningParser):
    start = "Here is my thought process:"
    starts = ("Here's my thought process:",)
    end = "Here is my response:"
    ends = ("Here's my response:",)
    always = False
