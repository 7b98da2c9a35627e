"""Where reasoning ends in an output, for grammars and budgets that depend on it."""

from typing import Any, TypedDict

from octavo.prompts import RenderedPrompt
from octavo_protocol.tokenizer import Tokenizer
from octavo_runtime.server.reasoning_parsers import reasoning_parser


class ReasoningArguments(TypedDict, total=False):
    """What the engine is told with a request; see `EngineRequest`."""

    is_reasoning: bool
    reasoning_end_token_ids: list[int]


class ReasoningRules:
    """name: of a reasoning parser; empty: outputs are not searched for reasoning.

    enable_in_reasoning: grammars apply to reasoning too. Raises `ConfigError` for an unknown name.
    """

    def __init__(
        self, name: str, tokenizer: Tokenizer | None, *, enable_in_reasoning: bool = False
    ) -> None:
        self._parser: Any = reasoning_parser(name) if name else None
        self._tokenizer = tokenizer
        self._enable_in_reasoning = enable_in_reasoning

    def arguments(self, prompt: RenderedPrompt, *, has_ended: bool = False) -> ReasoningArguments:
        """has_ended: the prompt already holds the whole reasoning."""
        if self._parser is None or self._tokenizer is None:
            return {}
        text = prompt.text
        if text is None:
            text = self._tokenizer.decode(prompt.token_ids, skip_special_tokens=False)
        parser = self._parser(text)
        return {
            "is_reasoning": parser.starts_in_reasoning
            and not has_ended
            and not self._enable_in_reasoning,
            "reasoning_end_token_ids": self._tokenizer.encode(parser.end, add_special_tokens=False),
        }

    @classmethod
    def of(cls, structured: Any, tokenizer: Tokenizer | None) -> "ReasoningRules":
        """From a `StructuredOutputsConfig`."""
        return cls(
            structured.reasoning_parser,
            tokenizer,
            enable_in_reasoning=structured.enable_in_reasoning,
        )
