"""What one request used, as its answer tells it or, where a stream does not, as its trace does."""

from collections.abc import Iterator

import msgspec


class UsageRecord(msgspec.Struct, frozen=True):
    """A finished request. key: names the API key. model: that answered. status: HTTP, 499 where the
    client left. prompt_tokens count cached_tokens in. seconds: from its arrival to its end.
    """

    tenant: str
    key: str
    model: str
    request_id: str
    status: int
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0

    @property
    def num_tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens


class TokenCounts(msgspec.Struct, frozen=True):
    prompt: int = 0
    cached: int = 0
    output: int = 0

    @property
    def total(self) -> int:
        return self.prompt + self.output


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    """As OpenAI's and Anthropic's APIs write it."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    cache_read_input_tokens: int = 0

    def counts(self) -> TokenCounts:
        details = self.prompt_tokens_details or self.input_tokens_details or _Details()
        # Anthropic's input_tokens are those that the cache did not supply.
        return TokenCounts(
            self.prompt_tokens + self.input_tokens + self.cache_read_input_tokens,
            (details.cached_tokens or 0) + self.cache_read_input_tokens,
            self.completion_tokens + self.output_tokens,
        )


class _Holder(msgspec.Struct):
    usage: _Usage | None = None


class _Answer(msgspec.Struct):
    """A whole answer, or an event of a stream."""

    usage: _Usage | None = None
    response: _Holder | None = None
    message: _Holder | None = None


_decoder = msgspec.json.Decoder(_Answer)


def counts_of_answer(body: bytes) -> TokenCounts | None:
    """Of a whole answer; None where it tells nothing."""
    try:
        usage = _decoder.decode(body).usage
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return None if usage is None else usage.counts()


def counts_of_events(events: bytes) -> TokenCounts | None:
    """Of the events of a stream, the last of what they tell; None where they tell nothing."""
    found = None
    for usage in _usages(events):
        counts = usage.counts()
        found = counts if found is None else _newer(found, counts)
    return found


def _usages(events: bytes) -> Iterator[_Usage]:
    for line in events.split(b"\n"):
        if not line.startswith(b"data: {"):
            continue
        try:
            event = _decoder.decode(line[6:])
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        for holder in (event, event.response, event.message):
            if holder is not None and holder.usage is not None:
                yield holder.usage


def _newer(old: TokenCounts, new: TokenCounts) -> TokenCounts:
    """Anthropic's last event repeats the output and may leave out the prompt."""
    return TokenCounts(new.prompt or old.prompt, new.cached or old.cached, new.output or old.output)
