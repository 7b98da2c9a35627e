"""What a router changes in a client's request without writing its body again.

It travels beside the unchanged body: small values as headers, which replace the body's own fields,
and the prompts' token ids after the body:

    content-type: application/x-octavo-request
    x-octavo-set-model: name            percent-encoded, as is the salt
    x-octavo-set-cache-salt: …
    x-octavo-set-priority: -3
    x-octavo-set-max-tokens: 500
    x-octavo-prompt-tokens: 0123456789abcdef/120,7        tokenizer's id / ids of each prompt
    x-octavo-shared-prefix: 96/0123456789abcdef…/salt     tokens / their digest / their salt

    {"model": …}<ids of all prompts, little-endian uint32>

That is the form in which a router has them (`packed_ids.py`), so that they cost it nothing more;
100,000 are 0.4 MB, which a replica reads in 2.9 ms. As JSON it would be 3.6 ms and 0.6 MB, and the
body would have to be parsed and written again. Replicas take the ids only where the tokenizer is
their own.
"""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar
from urllib.parse import quote, unquote

from octavo_protocol.errors import ValidationError
from octavo_protocol.hashing import SharedPrefix
from octavo_protocol.packed_ids import ID_BYTES, pack, unpack

MEDIA_TYPE = "application/x-octavo-request"
MODEL_HEADER = "x-octavo-set-model"
SALT_HEADER = "x-octavo-set-cache-salt"
PRIORITY_HEADER = "x-octavo-set-priority"
MAX_TOKENS_HEADER = "x-octavo-set-max-tokens"
TOKENS_HEADER = "x-octavo-prompt-tokens"
PREFIX_HEADER = "x-octavo-shared-prefix"
# The ids of a request take at most this many times the bytes of its body: see `PromptTokens.fits`.
MAX_TOKEN_BYTES_RATIO = 4

_TOKENS = re.compile(r"([0-9a-f]{1,64})/(\d{1,10}(?:,\d{1,10})*)")
_PREFIX = re.compile(r"(\d{1,10})/([0-9a-f]{32})/(.*)")
_INTEGER = re.compile(r"-?\d{1,19}")
# Names of one thing: how many tokens an answer may have, by API.
_MAX_TOKENS_FIELDS = ("max_tokens", "max_output_tokens")


class _Named(Protocol):
    model: str | None


_B = TypeVar("_B", bound=_Named)


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """A request's prompts as the router tokenized them, before any truncation.

    tokenizer_id: of the `TokenizerBundle`. packed: the ids of each prompt, as `pack` writes them.
    shared: what those that begin with it share with others, after any truncation.
    """

    tokenizer_id: str
    packed: tuple[bytes, ...]
    shared: SharedPrefix | None = None

    @classmethod
    def of(cls, tokenizer_id: str, prompts: Iterable[Sequence[int]]) -> "PromptTokens":
        return cls(tokenizer_id, tuple(map(pack, prompts)))

    def fits(self, body: bytes) -> bool:
        """Whether replicas that take `body` take the ids with it: a token is a byte of text at
        least, so that only templates much longer than what they are filled with do not.
        """
        return sum(map(len, self.packed)) <= MAX_TOKEN_BYTES_RATIO * len(body)

    def prompts(self, num_prompts: int) -> list[list[int]]:
        """Ids of each prompt. Raises `ValidationError` where there are not `num_prompts`."""
        if len(self.packed) != num_prompts:
            raise ValidationError(
                f"the token ids after the body are of {len(self.packed)} prompts, the body has "
                f"{num_prompts}"
            )
        return [unpack(each) for each in self.packed]


@dataclass(frozen=True, slots=True)
class RequestOverrides:
    """None: as the client's body says. Values replace those of the body.

    max_tokens: for bodies that name no such limit.
    """

    model: str | None = None
    cache_salt: str | None = None
    priority: int | None = None
    prompt_tokens: PromptTokens | None = None
    max_tokens: int | None = None

    @property
    def headers(self) -> dict[str, str]:
        """With the content type of what `framed` gives."""
        headers = {"content-type": "application/json"}
        if self.model is not None:
            headers[MODEL_HEADER] = quote(self.model)
        if self.cache_salt is not None:
            headers[SALT_HEADER] = quote(self.cache_salt)
        if self.priority is not None:
            headers[PRIORITY_HEADER] = str(self.priority)
        if self.max_tokens is not None:
            headers[MAX_TOKENS_HEADER] = str(self.max_tokens)
        if (tokens := self.prompt_tokens) is not None:
            headers["content-type"] = MEDIA_TYPE
            counts = ",".join(str(len(each) // ID_BYTES) for each in tokens.packed)
            headers[TOKENS_HEADER] = f"{tokens.tokenizer_id}/{counts}"
            if (shared := tokens.shared) is not None:
                salt = quote(shared.cache_salt)
                headers[PREFIX_HEADER] = f"{shared.num_tokens}/{shared.digest}/{salt}"
        return headers

    def framed(self, body: bytes) -> bytes:
        """`body` with what travels after it."""
        if self.prompt_tokens is None:
            return body
        return b"".join([body, *self.prompt_tokens.packed])

    def applied_to(self, request: _B) -> _B:
        """`request`, a parsed body, with the values in place of its own."""
        for name in ("model", "cache_salt", "priority"):
            value = getattr(self, name)
            if value is not None and hasattr(request, name):
                setattr(request, name, value)
        for name in _MAX_TOKENS_FIELDS:
            if self.max_tokens is not None and hasattr(request, name):
                setattr(request, name, self.max_tokens)
        return request


NO_OVERRIDES = RequestOverrides()


def split_overrides(headers: Mapping[str, str], raw: bytes) -> tuple[bytes, RequestOverrides]:
    """The client's body, and what a router wants changed in it. headers: by their names in small
    letters. Raises `ValidationError` for what no router writes.
    """
    overrides = RequestOverrides(
        model=_text(headers.get(MODEL_HEADER)),
        cache_salt=_text(headers.get(SALT_HEADER)),
        priority=_integer(PRIORITY_HEADER, headers),
        max_tokens=_integer(MAX_TOKENS_HEADER, headers),
    )
    told = headers.get(TOKENS_HEADER)
    if told is None:
        return raw, overrides
    match = _TOKENS.fullmatch(told)
    sizes = [ID_BYTES * int(count) for count in match[2].split(",")] if match else []
    if match is None or sum(sizes) > len(raw):
        raise ValidationError(
            f"{TOKENS_HEADER} must be a tokenizer's id and how many token ids of each prompt are "
            f"after the body, as in 0123456789abcdef/120,7; got {told[:80]!r} with {len(raw)} bytes"
        )
    ends = list(itertools.accumulate(sizes, initial=len(raw) - sum(sizes)))
    packed = tuple(raw[start:end] for start, end in itertools.pairwise(ends))
    tokens = PromptTokens(match[1], packed, _shared(headers.get(PREFIX_HEADER)))
    return raw[: ends[0]], replace(overrides, prompt_tokens=tokens)


def _shared(told: str | None) -> SharedPrefix | None:
    if told is None:
        return None
    if (match := _PREFIX.fullmatch(told)) is None:
        raise ValidationError(
            f"{PREFIX_HEADER} must be a number of tokens, the digest of their ids and a salt, as in"
            f" 96/{'0' * 32}/salt; got {told[:80]!r}"
        )
    return SharedPrefix(int(match[1]), match[2], unquote(match[3]))


def _text(value: str | None) -> str | None:
    return None if value is None else unquote(value)


def _integer(name: str, headers: Mapping[str, str]) -> int | None:
    value = headers.get(name)
    if value is None:
        return None
    if _INTEGER.fullmatch(value) is None:
        raise ValidationError(f"{name} must be an integer, got {value[:80]!r}")
    return int(value)
