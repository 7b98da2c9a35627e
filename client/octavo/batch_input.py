"""The requests of a run on their way up: read in pieces, each line with the model that is asked.

Memory grows with the longest line and not with the file.
"""

from collections.abc import Iterable, Iterator

import msgspec

from octavo_protocol.errors import ConfigError

_MAX_LINE_BYTES = 64 * 2**20


class PieceReader:
    """Pieces as a file that can be read once, from the start; all that an upload asks for."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)

    def read(self, size: int = -1) -> bytes:
        """The next piece, of whatever size; empty at the end."""
        return next((piece for piece in self._pieces if piece), b"")


def asked_of(model: str, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same lines, each of which asks `model`. What is no request stays as it is: the platform
    says what is wrong with it. Raises `ConfigError` for a line that has no end.
    """
    number, rest = 1, b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        if len(rest) > _MAX_LINE_BYTES:
            raise ConfigError(
                f"line {number + len(lines)} of the input is longer than "
                f"{_MAX_LINE_BYTES >> 20} MiB; write one request per line"
            )
        number += len(lines)
        yield b"".join(_asked_of(model, line) + b"\n" for line in lines)
    yield _asked_of(model, rest)


def _asked_of(model: str, line: bytes) -> bytes:
    try:
        request = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeError):
        return line
    if not isinstance(request, dict) or not isinstance(request.get("body"), dict):
        return line
    request["body"]["model"] = model
    return msgspec.json.encode(request)
