"""Log-probabilities in OpenAI's two forms."""

from collections.abc import Sequence

from octavo_protocol.openai.answers import (
    ChatLogprobs,
    CompletionLogprobs,
    TokenLogprob,
    TopLogprob,
)
from octavo_protocol.outputs import CompletionOutput, Logprob


def chat_logprobs(completion: CompletionOutput, num_top: int) -> ChatLogprobs | None:
    """num_top: alternatives per token; the sampled token itself is always there."""
    if completion.logprobs is None:
        return None
    content = []
    for token_id, entry in zip(completion.token_ids, completion.logprobs, strict=True):
        text = _text(entry[token_id])
        top = [
            TopLogprob(_text(each), each.logprob, list(_text(each).encode()))
            for each in _best(entry, num_top)
        ]
        content.append(TokenLogprob(text, entry[token_id].logprob, list(text.encode()), top))
    return ChatLogprobs(content)


def completion_logprobs(
    completion: CompletionOutput, num_top: int, first_offset: int
) -> CompletionLogprobs | None:
    """first_offset: characters of the tokens before this piece."""
    if completion.logprobs is None:
        return None
    result = CompletionLogprobs([], [], [], [])
    offset = first_offset
    for token_id, entry in zip(completion.token_ids, completion.logprobs, strict=True):
        sampled = entry[token_id]
        result.tokens.append(_text(sampled))
        result.token_logprobs.append(sampled.logprob)
        top = {_text(each): each.logprob for each in _best(entry, num_top)}
        result.top_logprobs.append(top | {_text(sampled): sampled.logprob})
        result.text_offset.append(offset)
        offset += len(_text(sampled))
    return result


def _best(entry: dict[int, Logprob], count: int) -> Sequence[Logprob]:
    return sorted(entry.values(), key=lambda each: each.rank or 0)[:count]


def _text(logprob: Logprob) -> str:
    return logprob.decoded_token or ""
