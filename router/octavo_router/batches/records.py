"""What Redis holds of the parts of a batch, as types; the batch itself is a `BatchRecord`."""

from dataclasses import dataclass

import msgspec


class Refusal(msgspec.Struct, array_like=True):
    """A line that is no request. line: its place in the chunk, from 0."""

    line: int
    code: str
    message: str


class Chunk(msgspec.Struct, array_like=True):
    """Lines that are worked on together: `num_lines` in `num_bytes` from `start` of the file.

    number: from 0. first_line: number of its first line in the file, from 1, as editors count.
    """

    number: int
    start: int
    num_bytes: int
    first_line: int
    num_lines: int
    refusals: list[Refusal] = []


class Result(msgspec.Struct, array_like=True):
    """The output line of one request. is_error: it belongs into the error file."""

    is_error: bool
    line: bytes


class Sizes(msgspec.Struct, array_like=True):
    """Bytes of what a finished chunk has in the storage; 0 = there is no such file."""

    output: int
    errors: int


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Of one answer."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class LineResult:
    """What became of line `place` (from 0) of chunk `number`."""

    batch_id: str
    number: int
    place: int
    result: Result
    tokens: TokenCounts = TokenCounts()
