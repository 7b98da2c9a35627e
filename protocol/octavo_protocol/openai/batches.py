"""OpenAI's Batch API: the request that creates a batch, and the object that tells of one."""

import re
from enum import StrEnum
from typing import Any, Literal

import msgspec
from pydantic import Field, field_validator

from octavo_protocol.openai.strict import Strict

_UNITS = {"m": 60, "h": 3600, "d": 86400}
_MAX_WINDOW_S = 30 * 86400
MAX_PRIORITY = 1000
_MAX_METADATA, _MAX_KEY_CHARS, _MAX_VALUE_CHARS = 16, 64, 512


class BatchStatus(StrEnum):
    """Where a batch stands. Those of `ENDED` are final."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


ENDED = frozenset(
    {BatchStatus.FAILED, BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED}
)


class ExpiresAfter(Strict):
    """How long an output file is kept."""

    anchor: Literal["created_at"] = "created_at"
    seconds: int = Field(ge=3600, le=2592000)


# Where the lines of a batch may go; score, rerank and those without /v1 are beyond OpenAI's.
BatchEndpoint = Literal[
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/score",
    "/score",
    "/v1/rerank",
    "/rerank",
    "/classify",
    "/pooling",
]


class CreateBatchRequest(Strict):
    """Body of POST /v1/batches.

    completion_window: until when lines are worked on: "24h", or any number of m, h or d up to 30d.
    priority: batches of lower numbers go first, before all that end sooner; Octavo's own.
    """

    input_file_id: str = Field(max_length=128)
    endpoint: BatchEndpoint
    completion_window: str = "24h"
    metadata: dict[str, str] | None = None
    output_expires_after: ExpiresAfter | None = None
    priority: int = Field(default=0, ge=-MAX_PRIORITY, le=MAX_PRIORITY)

    @field_validator("completion_window")
    @classmethod
    def _window(cls, value: str) -> str:
        window_seconds(value)
        return value

    @field_validator("metadata")
    @classmethod
    def _metadata(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        if value is None:
            return None
        if len(value) > _MAX_METADATA:
            raise ValueError(f"at most {_MAX_METADATA} pairs, got {len(value)}")
        for key, text in value.items():
            if len(key) > _MAX_KEY_CHARS or len(text) > _MAX_VALUE_CHARS:
                raise ValueError(
                    f"keys have at most {_MAX_KEY_CHARS} characters, values {_MAX_VALUE_CHARS}"
                )
        return value


def window_seconds(window: str) -> int:
    """Seconds of a completion window such as "24h". Raises ValueError that says what to write."""
    found = re.fullmatch(r"([1-9]\d{0,5})([mhd])", window)
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 0 < seconds <= _MAX_WINDOW_S:
        raise ValueError(f'write it as "24h", "30m" or "7d", at most "30d"; got {window[:40]!r}')
    return seconds


class RequestCounts(msgspec.Struct):
    """Lines: all of them, and those that have their result. total is 0 until validation is over."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class BatchError(msgspec.Struct):
    """Why the batch as a whole failed."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchErrors(msgspec.Struct):
    data: list[BatchError]
    object: str = "list"


class InputDetails(msgspec.Struct):
    cached_tokens: int = 0


class OutputDetails(msgspec.Struct):
    reasoning_tokens: int = 0


class BatchUsage(msgspec.Struct):
    """Tokens of all lines that are done."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputDetails
    output_tokens_details: OutputDetails


class Batch(msgspec.Struct, kw_only=True):
    """One batch. Times are Unix seconds.

    estimated_completion_at: at the speed so far; status_details: what it waits for; priority: lower
    numbers go first. These are Octavo's own.
    """

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None = None
    errors: BatchErrors | None = None
    input_file_id: str
    completion_window: str
    priority: int = 0
    status: str
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts
    usage: BatchUsage | None = None
    metadata: dict[str, str] | None = None
    estimated_completion_at: int | None = None
    status_details: str | None = None


class BatchList(msgspec.Struct, kw_only=True):
    """One page, the newest first."""

    object: str = "list"
    data: list[Batch]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


def page_fields(data: list[Any]) -> dict[str, Any]:
    """`first_id` and `last_id` of a page."""
    return {"first_id": data[0].id, "last_id": data[-1].id} if data else {}
