"""Traffic as a trace of block hashes: when, how long, and what prompts share; never what they say.

One JSON object per answered request, in the format of the Mooncake traces, which `octavo sim` and
`octavo replay` read:

    {"timestamp": 27, "input_length": 6758, "output_length": 500, "hash_ids": [8121, 440],
     "session_id": "5f0c…", "block_size": 128}

timestamp: milliseconds from the capture's begin to the request. hash_ids name prompt prefixes of
whole blocks of `block_size` tokens. Ids and sessions are hashed with a key that is drawn when the
capture begins and kept nowhere: nobody can find out from a trace whether it holds a given text, and
ids of two captures have nothing in common. output_length is 0 where the answer does not tell.
"""

import hashlib
import logging
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from octavo_protocol.errors import ConfigError

logger = logging.getLogger(__name__)

DEFAULT_BLOCK_SIZE = 128
DEFAULT_MAX_BYTES = 256 * 2**20
# OpenAI's and Anthropic's names; the last one in an answer counts.
_OUTPUT = re.compile(rb'"(?:completion_tokens|output_tokens)":\s*(\d+)')
_INPUT = re.compile(rb'"(?:prompt_tokens|input_tokens)":\s*(\d+)')
_ID_BITS = 53  # what a reader that knows only floats still tells apart
_encoder = msgspec.json.Encoder()


class _Line(msgspec.Struct, omit_defaults=True):
    timestamp: int
    input_length: int
    output_length: int
    hash_ids: list[int] | None = None
    session_id: str | None = None
    block_size: int = 0


class TrafficCapture:
    """Writes to `path` between `open` and `close`. What was there becomes `path`.1, as does a file
    that has reached half of `max_bytes`: both stay below it together.

    block_size: tokens; rounded to whole blocks of the replicas. A file that cannot be written any
    more ends the capture with a warning, and no request.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
        block_size: int = DEFAULT_BLOCK_SIZE,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._path = path
        self._max_file_bytes = max_bytes // 2
        self._block_size = block_size
        self._clock = clock
        self._key = secrets.token_bytes(32)

    def open(self) -> None:
        """Begins. Raises `ConfigError` for a file that cannot be written."""
        try:
            self._begin_file()
        except OSError as error:
            raise ConfigError(
                f"cannot capture to {self._path}: {error.strerror}; choose another file"
            ) from error
        self._began = self._clock()

    def close(self) -> None:
        self._file.close()

    def add(
        self,
        *,
        arrived: float,
        hashes: tuple[bytes, ...],
        hash_tokens: int,
        num_prompt_tokens: int,
        session: str | None,
        answer: bytes,
        num_output_tokens: int = 0,
    ) -> None:
        """A request was answered.

        arrived: on the clock. hashes: of the prompt's blocks of hash_tokens. answer: its end, with
        the usage where it tells that; num_output_tokens: else.
        """
        num_input = num_prompt_tokens or _last_number(_INPUT, answer)
        if not num_input or self._file.closed:
            return
        stride = max(1, self._block_size // hash_tokens) if hash_tokens else 1
        ids = [self._id(each) for each in hashes[stride - 1 :: stride]]
        line = _Line(
            timestamp=max(0, round((arrived - self._began) * 1000)),
            input_length=num_input,
            output_length=_last_number(_OUTPUT, answer) or num_output_tokens,
            hash_ids=ids if hash_tokens else None,
            session_id=None if session is None else f"{self._id(session.encode()):014x}",
            block_size=stride * hash_tokens,
        )
        self._write(_encoder.encode(line) + b"\n")

    def _id(self, value: bytes) -> int:
        digest = hashlib.blake2b(value, digest_size=8, key=self._key).digest()
        return int.from_bytes(digest) >> (64 - _ID_BITS)

    def _write(self, line: bytes) -> None:
        try:
            if self._num_bytes + len(line) > self._max_file_bytes:
                self._file.close()
                self._begin_file()
            self._file.write(line)
        except OSError as error:
            logger.warning("the capture to %s ends: %s", self._path, error)
            self._file.close()
            return
        self._num_bytes += len(line)

    def _begin_file(self) -> None:
        if self._path.exists() and self._path.stat().st_size:
            self._path.replace(self._path.with_name(self._path.name + ".1"))
        self._file = self._path.open("wb", buffering=0)
        self._num_bytes = 0


def _last_number(pattern: re.Pattern[bytes], text: bytes) -> int:
    found = pattern.findall(text)
    return int(found[-1]) if found else 0
