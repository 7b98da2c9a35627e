"""Log-probabilities in OpenAI's forms.

JSON has no infinity: what is impossible is written as -9999, as vLLM does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from octavo_protocol.openai.answers import (
    ChatLogprobs,
    CompletionLogprobs,
    PromptLogprob,
    TokenLogprob,
    TopLogprob,
    WirePromptLogprobs,
)
from octavo_protocol.outputs import Logprob, PromptLogprobs

_LOWEST = -9999.0
Position = dict[int, Logprob]


@dataclass(frozen=True, slots=True)
class LogprobStyle:
    """num_top: alternatives per token; -1: all there are. as_ids: tokens are written as
    `token_id:N`, which tells those apart whose text is the same.
    """

    num_top: int
    as_ids: bool = False

    def text(self, token_id: int, logprob: Logprob) -> str:
        return f"token_id:{token_id}" if self.as_ids else logprob.decoded_token or ""

    def best(self, position: Position) -> list[tuple[int, Logprob]]:
        """The likeliest `num_top`, best first."""
        ranked = sorted(position.items(), key=lambda item: -item[1].logprob)
        return ranked if self.num_top == -1 else ranked[: self.num_top]


def chat_logprobs(
    token_ids: Sequence[int], positions: Sequence[Position] | None, style: LogprobStyle
) -> ChatLogprobs | None:
    """The form of chat completions; None where none were asked for."""
    if positions is None:
        return None
    content = []
    for token_id, position in zip(token_ids, positions, strict=True):
        top = [_top_logprob(each_id, each, style) for each_id, each in style.best(position)]
        chosen = _top_logprob(token_id, position[token_id], style)
        content.append(TokenLogprob(chosen.token, chosen.logprob, chosen.bytes, top))
    return ChatLogprobs(content)


def completion_logprobs(
    token_ids: Sequence[int],
    positions: Sequence[Position | None],
    style: LogprobStyle,
    *,
    first_offset: int,
    first_text: str = "",
) -> CompletionLogprobs:
    """The form of text completions.

    first_offset: characters of the tokens before these. first_text: text of a token without a
    position, which only the first of an echoed prompt is.
    """
    result = CompletionLogprobs([], [], [], [])
    offset = first_offset
    for token_id, position in zip(token_ids, positions, strict=True):
        if position is None:
            text = f"token_id:{token_id}" if style.as_ids else first_text
            value, top = None, None
        else:
            chosen = position[token_id]
            text = style.text(token_id, chosen)
            value = _finite(chosen.logprob)
            top = {text: value} | {
                style.text(each_id, each): _finite(each.logprob)
                for each_id, each in style.best(position)
            }
        result.tokens.append(text)
        result.token_logprobs.append(value)
        result.top_logprobs.append(top)
        result.text_offset.append(offset)
        offset += len(text)
    return result


def prompt_logprobs(positions: PromptLogprobs | None) -> WirePromptLogprobs | None:
    """vLLM's form of a prompt's log-probabilities, whose keys are token ids as text."""
    if positions is None:
        return None
    return [None if position is None else _by_token_id(position) for position in positions]


def output_logprobs(positions: Sequence[Position] | None) -> WirePromptLogprobs | msgspec.UnsetType:
    """The same form for what was generated, as the engine gave it."""
    if positions is None:
        return msgspec.UNSET
    return [_by_token_id(position) for position in positions]


def _by_token_id(position: Position) -> dict[str, PromptLogprob]:
    return {
        str(token_id): PromptLogprob(_finite(each.logprob), each.rank, each.decoded_token)
        for token_id, each in position.items()
    }


def _top_logprob(token_id: int, logprob: Logprob, style: LogprobStyle) -> TopLogprob:
    text = style.text(token_id, logprob)
    return TopLogprob(text, _finite(logprob.logprob), list(text.encode()))


def _finite(logprob: float) -> float:
    return max(logprob, _LOWEST)
