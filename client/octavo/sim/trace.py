"""Requests as the simulator needs them: when, how long, and which blocks; never the text.

The file format is one JSON object per line, as Mooncake publishes its traces:

    {"timestamp": 27, "input_length": 6758, "output_length": 500, "hash_ids": [0, 14, 15]}

timestamp in milliseconds; hash_ids name the prompt's blocks, each id its whole prefix, the last
block even where it is not full (as in figures that are published for these traces). Lines without
hash_ids share nothing with others. session_id, where given, names the request's session.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import msgspec

from octavo_protocol.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """arrival_s: since the trace began. hashes: of the prompt's blocks, in order."""

    arrival_s: float
    num_prompt_tokens: int
    num_output_tokens: int
    hashes: tuple[bytes, ...]
    session: str | None = None


class _Line(msgspec.Struct):
    """One line of the file. Fields that are not named here are passed over."""

    timestamp: float
    input_length: Annotated[int, msgspec.Meta(ge=1)]
    output_length: Annotated[int, msgspec.Meta(ge=0)]
    hash_ids: list[int | str] | None = None
    session_id: int | str | None = None


_decoder = msgspec.json.Decoder(_Line)


def read_trace(path: Path, *, block_size: int, limit: int | None = None) -> list[TraceRequest]:
    """The file's requests by arrival. limit: only the first so many lines.

    Raises `ConfigError` that names the line.
    """
    try:
        with path.open(encoding="utf-8") as file:
            requests = list(_requests(file, path, block_size, limit))
    except OSError as error:
        raise ConfigError(f"cannot read the trace {path}: {error.strerror}") from error
    if not requests:
        raise ConfigError(f"the trace {path} holds no request")
    requests.sort(key=lambda request: request.arrival_s)
    return requests


def faster(requests: Sequence[TraceRequest], speed: float) -> list[TraceRequest]:
    """The same requests, arriving `speed` times as often."""
    return [replace(request, arrival_s=request.arrival_s / speed) for request in requests]


def _requests(
    lines: Iterator[str], path: Path, block_size: int, limit: int | None
) -> Iterator[TraceRequest]:
    for number, line in enumerate(lines, start=1):
        if limit is not None and number > limit:
            return
        try:
            yield _request(_decoder.decode(line), number, block_size)
        except msgspec.DecodeError as error:
            raise ConfigError(
                f"{path}, line {number}: {error}; expected an object with timestamp (ms), "
                "input_length, output_length and, where prefixes are shared, hash_ids"
            ) from error


def _request(line: _Line, number: int, block_size: int) -> TraceRequest:
    num_blocks = -(-line.input_length // block_size)
    ids = line.hash_ids
    if ids is None:
        ids = [f"{number}/{index}" for index in range(num_blocks)]
    return TraceRequest(
        arrival_s=line.timestamp / 1000,
        num_prompt_tokens=line.input_length,
        num_output_tokens=max(1, line.output_length),
        hashes=tuple(str(each).encode() for each in ids[:num_blocks]),
        session=None if line.session_id is None else str(line.session_id),
    )
