"""A batch as its hash in Redis has it: routers work on it, the operator shows and cancels it."""

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
_LATER_THAN_ANY_END = 10**10  # in Unix seconds
_MIN_PROGRESS = 10  # lines before their speed says anything

# A batch moves from one of several statuses to another. Any number of pairs of fields are set too.
# KEYS: batch. ARGV: to, now, number of statuses, the statuses, field, value, ...
TRANSITION = """
local status = redis.call('HGET', KEYS[1], 'status')
local count = tonumber(ARGV[3])
for i = 4, 3 + count do
  if ARGV[i] == status then
    redis.call('HSET', KEYS[1], 'status', ARGV[1], ARGV[1] .. '_at', ARGV[2])
    for j = 4 + count, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[j], ARGV[j + 1]) end
    return 1
  end
end
return 0
"""


def cancellation(now: float) -> list[str | int]:
    """Arguments of `TRANSITION` that end a batch early; one that has ended stays as it is."""
    allowed = (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS)
    return [
        BatchStatus.CANCELLING,
        int(now),
        len(allowed),
        *allowed,
        *("unfinished_code", "batch_cancelled"),
    ]


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
    def priority(self) -> int:
        return self._count("priority")

    @property
    def rank(self) -> int:
        """Batches of lower ranks go first: those of lower priority, then those that end first."""
        return self.priority * _LATER_THAN_ANY_END + self.expires_at

    @property
    def metadata(self) -> dict[str, str]:
        return msgspec.json.decode(self.fields["metadata"], type=dict[str, str] | None) or {}

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
            priority=self.priority,
            status=self.status,
            output_file_id=fields.get("output_file_id") or None,
            error_file_id=fields.get("error_file_id") or None,
            created_at=int(fields["created_at"]),
            expires_at=self.expires_at,
            request_counts=RequestCounts(
                self.total, self._count("completed"), self._count("failed")
            ),
            usage=self._usage(),
            metadata=self.metadata or None,
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
