"""What every reasoning parser offers: a model's text in, reasoning and content out."""

from abc import ABC, abstractmethod
from typing import ClassVar


class ReasoningParser(ABC):
    """Splits the output of one choice; makes one pass over its text.

    start, end: the markers around reasoning. White space beside a marker belongs to neither side.
    """

    start: ClassVar[str]
    end: ClassVar[str]

    @abstractmethod
    def __init__(self, prompt: str) -> None:
        """prompt: the rendered prompt, whose end decides where the output begins."""

    @property
    @abstractmethod
    def starts_in_reasoning(self) -> bool:
        """Whether the output begins inside reasoning, with or without a start marker."""

    @property
    @abstractmethod
    def is_reasoning(self) -> bool:
        """Whether what comes next is reasoning, as far as the text has come."""

    @abstractmethod
    def feed(self, text: str) -> tuple[str, str]:
        """Parse the next piece of the text, cut anywhere: (reasoning, content)."""

    @abstractmethod
    def finish(self) -> tuple[str, str]:
        """End of the text: what was held back."""
