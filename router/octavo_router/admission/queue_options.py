"""Bounds of the queues of one router."""

from dataclasses import dataclass

from octavo_router.admission.room import DEFAULT_BACKLOG_S


@dataclass(frozen=True, slots=True)
class QueueOptions:
    """max_requests, max_tokens: of each deployment's queue; no requests: nothing waits here, all is
    sent on at once. backlog_s: seconds of work that replicas get in advance (`room.py`).
    """

    max_requests: int = 0
    max_tokens: int = 4_000_000
    backlog_s: float = DEFAULT_BACKLOG_S
