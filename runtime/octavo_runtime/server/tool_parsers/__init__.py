"""Tool parsers by the names of `--tool-call-parser`."""

from octavo_protocol.errors import ConfigError
from octavo_runtime.server.tool_parsers.base import ParsedText, ToolParser
from octavo_runtime.server.tool_parsers.hermes import HermesParser, InternLmParser
from octavo_runtime.server.tool_parsers.json_list import (
    GraniteParser,
    JambaParser,
    JsonListParser,
    Phi4MiniParser,
    XlamParser,
)
from octavo_runtime.server.tool_parsers.llama import Llama3JsonParser
from octavo_runtime.server.tool_parsers.mistral import MistralParser
from octavo_runtime.server.tool_parsers.named_call import (
    DeepSeekV3Parser,
    DeepSeekV31Parser,
    KimiK2Parser,
)
from octavo_runtime.server.tool_parsers.pythonic import Llama4PythonicParser, PythonicParser
from octavo_runtime.server.tool_parsers.xml_call import (
    Glm45Parser,
    MinimaxM2Parser,
    Qwen3CoderParser,
)

__all__ = ["TOOL_PARSERS", "ParsedText", "ToolParser", "tool_parser"]

TOOL_PARSERS: dict[str, type[ToolParser]] = {
    "deepseek_v3": DeepSeekV3Parser,
    "deepseek_v31": DeepSeekV31Parser,
    "glm45": Glm45Parser,
    "granite": GraniteParser,
    "granite4": HermesParser,
    "hermes": HermesParser,
    "internlm": InternLmParser,
    "jamba": JambaParser,
    "json": JsonListParser,
    "kimi_k2": KimiK2Parser,
    "llama3_json": Llama3JsonParser,
    "llama4_json": Llama3JsonParser,
    "llama4_pythonic": Llama4PythonicParser,
    "minimax_m2": MinimaxM2Parser,
    "mistral": MistralParser,
    "phi4_mini_json": Phi4MiniParser,
    "pythonic": PythonicParser,
    "qwen25": HermesParser,
    "qwen3_coder": Qwen3CoderParser,
    "qwen3_json": HermesParser,
    "qwen3_xml": Qwen3CoderParser,
    "xlam": XlamParser,
}


def tool_parser(name: str) -> type[ToolParser]:
    """The parser called `name`. Raises ConfigError."""
    try:
        return TOOL_PARSERS[name]
    except KeyError:
        known = ", ".join(sorted(TOOL_PARSERS))
        raise ConfigError(
            f"there is no tool parser {name!r}; choose one of {known}",
            parameter="tool_call_parser",
        ) from None
