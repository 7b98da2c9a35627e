"""Reasoning parsers by the names of `--reasoning-parser`."""

from octavo_protocol.errors import ConfigError
from octavo_runtime.server.reasoning_parsers.base import ReasoningParser
from octavo_runtime.server.reasoning_parsers.marked import (
    GraniteThinkParser,
    KimiK2Parser,
    MistralThinkParser,
    OptionalThinkParser,
    SeedOssParser,
    ThinkParser,
)

__all__ = ["REASONING_PARSERS", "ReasoningParser", "reasoning_parser"]

REASONING_PARSERS: dict[str, type[ReasoningParser]] = {
    "deepseek_r1": ThinkParser,
    "deepseek_v3": OptionalThinkParser,
    "glm45": ThinkParser,
    "granite": GraniteThinkParser,
    "kimi_k2": KimiK2Parser,
    "minimax_m2": ThinkParser,
    "mistral": MistralThinkParser,
    "nemotron_v3": ThinkParser,
    "olmo3": ThinkParser,
    "qwen3": ThinkParser,
    "seed_oss": SeedOssParser,
    "step3": ThinkParser,
}


def reasoning_parser(name: str) -> type[ReasoningParser]:
    """The parser called `name`. Raises ConfigError."""
    try:
        return REASONING_PARSERS[name]
    except KeyError:
        known = ", ".join(sorted(REASONING_PARSERS))
        raise ConfigError(
            f"there is no reasoning parser {name!r}; choose one of {known}",
            parameter="reasoning_parser",
        ) from None
