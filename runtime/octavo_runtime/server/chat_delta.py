"""What a chat generation says, piece by piece, before any API's format is put on it.

`chat_generation.py` makes these from engine outputs (reasoning split off, tool calls parsed);
chat completions, responses and messages are three ways to write them down.
"""

from dataclasses import dataclass, field

from octavo_protocol.outputs import Logprob, PromptLogprobs


@dataclass(slots=True)
class ToolCallDelta:
    """A piece of one tool call. The first piece of a call has `id` and `name`.

    index: position of the call in its choice. arguments: next piece of the JSON text.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(slots=True)
class ChatDelta:
    """What one choice said since its last delta.

    choice: index among the n choices. token_ids and logprobs: of the new tokens, also of those
    whose text is still held back; logprobs None when not asked for. finish_reason: "stop",
    "length", "tool_calls", "repetition" or "abort" on the choice's last delta. num_tokens: output
    tokens of the choice so far; num_reasoning_tokens: those of them that were reasoning.
    num_cached_tokens: prompt tokens that the prefix cache supplied.
    """

    choice: int
    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    num_tokens: int = 0
    num_reasoning_tokens: int = 0
    num_cached_tokens: int = 0
    prompt_logprobs: PromptLogprobs | None = None
