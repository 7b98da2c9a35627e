"""Requests as the simulator needs them: when, how long, and which blocks; never the text.

The file format is one JSON object per line, as Mooncake publishes its traces:

    {"timestamp": 27, "input_length": 6758, "output_length": 500, "hash_ids": [0, 14, 15]}

timestamp in milliseconds; hash_ids name the prompt's blocks, each id its whole prefix, the last
block even where it is not full (as in figures that are published for these traces). Lines without
hash_ids share nothing with others. session_id, where given, names the request's session; block_size
is what `octavo router --capture` writes: tokens of a block, 512 where no line says it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import msgspec

from octavo_protocol.errors import ConfigError

MOONCAKE_BLOCK = 512


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """arrival_s: since the trace began. hashes: of the prompt's blocks, in order. adapter: that it
    asks for in place of the model.
    """

    arrival_s: float
    num_prompt_tokens: int
    num_output_tokens: int
    hashes: tuple[bytes, ...]
    session: str | None = None
    adapter: str | None = None


class _Line(msgspec.Struct):
    """One line of the file. Fields that are not named here are passed over."""

    timestamp: float
    input_length: Annotated[int, msgspec.Meta(ge=1)]
    output_length: Annotated[int, msgspec.Meta(ge=0)]
    hash_ids: list[int | str] | None = None
    session_id: int | str | None = None
    block_size: Annotated[int, msgspec.Meta(ge=0)] = 0


_decoder = msgspec.json.Decoder(_Line)


def read_trace(path: Path, *, block_size: int, limit: int | None = None) -> list[TraceRequest]:
    """The file's requests by arrival, the first one at 0. limit: only the first so many lines.

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
    began = requests[0].arrival_s
    return [replace(request, arrival_s=request.arrival_s - began) for request in requests]


def load_trace(
    path: Path, *, block_size: int | None = None, speed: float = 1.0, limit: int | None = None
) -> tuple[list[TraceRequest], int]:
    """(requests, tokens of a block), as the commands take a trace.

    block_size: another than the trace's makes prompts and answers longer or shorter by as much.
    Raises `ConfigError`.
    """
    own_size = _block_size(path)
    requests = read_trace(path, block_size=own_size, limit=limit)
    if block_size is not None and block_size != own_size:
        requests = resized(requests, block_size / own_size)
    return faster(requests, speed), block_size or own_size


def _block_size(path: Path) -> int:
    try:
        with path.open("rb") as file:
            lines = (_decoder.decode(line) for line in file)
            first = next((line for line in lines if line.hash_ids), None)
    except OSError as error:
        raise ConfigError(f"cannot read the trace {path}: {error.strerror}") from error
    except msgspec.DecodeError:
        return MOONCAKE_BLOCK  # the reader tells which line it is
    return first.block_size or MOONCAKE_BLOCK if first is not None else MOONCAKE_BLOCK


def resized(requests: Sequence[TraceRequest], ratio: float) -> list[TraceRequest]:
    """The same requests with prompts, blocks and answers `ratio` times as long."""
    return [
        replace(
            request,
            num_prompt_tokens=max(1, round(request.num_prompt_tokens * ratio)),
            num_output_tokens=max(1, round(request.num_output_tokens * ratio)),
        )
        for request in requests
    ]


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
