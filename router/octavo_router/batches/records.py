"""What Redis holds of a batch, as types."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from octavo_protocol.openai.batches import (
    ENDED,
    Batch,
    BatchErrors,
    BatchStatus,
    BatchUsage,
    InputDetails,
    OutputDetails,
    RequestCounts,
)

_TIMES = (
    *("in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at"),
    *("cancelling_at", "cancelled_at"),
)
_MIN_PROGRESS = 10  # lines before their speed says anything


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
class BatchRecord:
    """A batch as it stands. fields: those of its hash in Redis, as text."""

    id: str
    fields: Mapping[str, str] = field(repr=False)

    @property
    def owner(self) -> str:
        return self.fields["owner"]

    @property
    def status(self) -> BatchStatus:
        return BatchStatus(self.fields["status"])

    @property
    def has_ended(self) -> bool:
        return self.status in ENDED

    @property
    def endpoint(self) -> str:
        return self.fields["endpoint"]

    @property
    def input_file_id(self) -> str:
        return self.fields["input_file_id"]

    @property
    def expires_at(self) -> int:
        return int(self.fields["expires_at"])

    @property
    def num_chunks(self) -> int:
        return self._count("num_chunks")

    @property
    def num_done(self) -> int:
        """Lines that have their result."""
        return self._count("completed") + self._count("failed")

    @property
    def total(self) -> int:
        return self._count("total")

    @property
    def unfinished_code(self) -> str:
        """Why lines of a batch that is finalized have no result."""
        return self.fields.get("unfinished_code", "")

    @property
    def output_lifetime_s(self) -> int | None:
        seconds = self.fields.get("output_lifetime_s", "")
        return int(seconds) if seconds else None

    def as_answer(self, now: float | None = None) -> Batch:
        """As the API shows it."""
        fields = self.fields
        errors = fields.get("errors")
        answer = Batch(
            id=self.id,
            endpoint=self.endpoint,
            model=fields.get("model") or None,
            errors=msgspec.json.decode(errors, type=BatchErrors) if errors else None,
            input_file_id=self.input_file_id,
            completion_window=fields["completion_window"],
            status=self.status,
            output_file_id=fields.get("output_file_id") or None,
            error_file_id=fields.get("error_file_id") or None,
            created_at=int(fields["created_at"]),
            expires_at=self.expires_at,
            request_counts=RequestCounts(
                self.total, self._count("completed"), self._count("failed")
            ),
            usage=self._usage(),
            metadata=msgspec.json.decode(fields["metadata"], type=dict[str, str] | None),
            estimated_completion_at=self._estimate(time.time() if now is None else now),
            status_details=fields.get("status_details") or None,
        )
        for name in _TIMES:
            if name in fields:
                setattr(answer, name, int(fields[name]))
        return answer

    def _usage(self) -> BatchUsage | None:
        given, taken = self._count("input_tokens"), self._count("output_tokens")
        if not given:
            return None
        return BatchUsage(
            given,
            taken,
            given + taken,
            InputDetails(self._count("cached_tokens")),
            OutputDetails(self._count("reasoning_tokens")),
        )

    def _estimate(self, now: float) -> int | None:
        """At the mean speed so far."""
        done = self.num_done
        if self.status is not BatchStatus.IN_PROGRESS or done < _MIN_PROGRESS:
            return None
        seconds = max(0.0, now - int(self.fields["in_progress_at"]))
        return int(now + seconds / done * (self.total - done))

    def _count(self, name: str) -> int:
        return int(self.fields.get(name, 0))
