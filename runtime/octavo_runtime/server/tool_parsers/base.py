"""What every tool parser offers: text in, content and calls out, and formats that force calls."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from octavo_protocol.openai.tools import Tool
from octavo_runtime.server.chat_delta import ToolCallDelta


@dataclass(slots=True)
class ParsedText:
    """content: text that is no call. calls: pieces of calls, in order; `id` is the caller's task.

    The first piece of a call, and only it, has `name`.
    """

    content: str = ""
    calls: list[ToolCallDelta] = field(default_factory=list)


class ToolParser(ABC):
    """Finds tool calls in one choice of one request; makes one pass over its text.

    markers: tokens that must be visible in the text although the tokenizer calls them special.
    White space that only calls follow or precede belongs to their notation and is no content.
    """

    markers: ClassVar[tuple[str, ...]] = ()

    def __init__(self, tools: Sequence[Tool]) -> None:
        self.tools = tools

    @abstractmethod
    def feed(self, text: str) -> ParsedText:
        """Parse the next piece of the text, cut anywhere."""

    @abstractmethod
    def finish(self) -> ParsedText:
        """End of the text: what was held back, as content where it is no call."""

    @classmethod
    @abstractmethod
    def forced_format(cls, tools: Sequence[Tool], *, parallel: bool) -> dict[str, Any]:
        """Structural-tag format of one call of one of `tools`; `parallel`: one or more calls."""

    @classmethod
    @abstractmethod
    def strict_format(cls, tools: Sequence[Tool]) -> dict[str, Any] | None:
        """Format of free text in which calls of strict tools follow their schema; None: no such."""
