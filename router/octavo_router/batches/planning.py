"""Cuts an uploaded file into chunks of lines, and finds the lines that are no requests. Pure.

Fed with the file piece by piece; memory is bounded by the longest line, some bytes for each
`custom_id` and chunk, and the refusals.
"""

from collections import Counter
from collections.abc import Iterator

from octavo_protocol.batch_lines import parse_line
from octavo_protocol.errors import ValidationError
from octavo_router.batches.digests import DigestSet
from octavo_router.batches.records import Chunk, Refusal

CHUNK_LINES = 64
_CHUNK_BYTES = 4 * 2**20
_MAX_MODELS = 1000


class BatchPlan:
    """lines: how many requests there are, bad ones too. Raises `ValidationError` from `feed` and
    `finish` for a file that cannot be a batch: too many lines, one that is too long, none at all.
    """

    def __init__(self, endpoint: str, *, max_lines: int, max_line_bytes: int) -> None:
        self.chunks: list[Chunk] = []
        self._endpoint = endpoint
        self._max_lines = max_lines
        self._max_line_bytes = max_line_bytes
        self._rest = b""
        self._start = 0  # of `_rest` in the file
        self._line_number = 0
        self._num_lines = 0
        self._open: list[tuple[int, int, int]] = []  # start, size, number
        self._refusals: list[Refusal] = []
        self._custom_ids = DigestSet()
        self._models: Counter[str] = Counter()

    @property
    def model(self) -> str:
        """The one that most lines ask for."""
        return self._models.most_common(1)[0][0] if self._models else ""

    def feed(self, piece: bytes) -> None:
        lines = (self._rest + piece).split(b"\n")
        for line in lines[:-1]:
            self._take(line, len(line) + 1)
        self._rest = lines[-1]
        if len(self._rest) > self._max_line_bytes:
            raise self._too_long(self._line_number + 1)

    def finish(self) -> None:
        if self._rest:
            self._take(self._rest, len(self._rest))
            self._rest = b""
        self._close_chunk()
        if not self._num_lines:
            raise ValidationError("the input file has no lines", code="empty_file")

    def _take(self, line: bytes, size: int) -> None:
        self._line_number += 1
        start, self._start = self._start, self._start + size
        if not line.strip():
            return
        if len(line) > self._max_line_bytes:
            raise self._too_long(self._line_number)
        if self._num_lines == self._max_lines:
            raise ValidationError(
                f"the input file has more than {self._max_lines} lines; split it into several "
                "batches",
                code="too_many_lines",
            )
        self._num_lines += 1
        if self._open and start + size - self._open[0][0] > _CHUNK_BYTES:
            self._close_chunk()
        self._open.append((start, size, self._line_number))
        self._check(line)
        if len(self._open) == CHUNK_LINES:
            self._close_chunk()

    def _check(self, line: bytes) -> None:
        try:
            request = parse_line(line, (self._endpoint,))
            if not self._custom_ids.add(request.custom_id):
                raise ValidationError(
                    f"custom_id {request.custom_id[:80]!r} is that of an earlier line",
                    parameter="custom_id",
                )
            if len(self._models) < _MAX_MODELS:
                self._models[request.model] += 1
        except ValidationError as error:
            text = f"line {self._line_number}: {error.message}"
            self._refusals.append(Refusal(len(self._open) - 1, "invalid_request", text))

    def _close_chunk(self) -> None:
        if not self._open:
            return
        (start, _, number), (last_start, last_size, _) = self._open[0], self._open[-1]
        self.chunks.append(
            Chunk(
                number=len(self.chunks),
                start=start,
                num_bytes=last_start + last_size - start,
                first_line=number,
                num_lines=len(self._open),
                refusals=self._refusals,
            )
        )
        self._open, self._refusals = [], []

    def _too_long(self, number: int) -> ValidationError:
        return ValidationError(
            f"line {number} is longer than {self._max_line_bytes} bytes",
            code="line_too_long",
        )


def lines_of(chunk: Chunk, data: bytes) -> Iterator[tuple[int, bytes]]:
    """(place in the chunk, line) of those that are requests; data: the chunk's bytes."""
    refused = {refusal.line for refusal in chunk.refusals}
    lines = (line for line in data.split(b"\n") if line.strip())
    for place, line in enumerate(lines):
        if place not in refused:
            yield place, line
