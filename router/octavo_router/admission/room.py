"""Whether a deployment's replicas can take another request now. Pure arithmetic.

A replica has room while all of this holds:
- fewer sequences are there, running and waiting, than it runs at once;
- less than `backlog_s` of prompt tokens is queued there, by the rate that it has measured;
- less than 95 % of its KV blocks are in use.

Background work takes no room from other requests: it gives them its places and its blocks.

What is not known (a rate before the first steps, anything of replicas at fixed addresses) holds
nobody back. The default backlog covers what a router cannot know yet: a record is up to two
heartbeats old, and of a whole answer only a record tells that its prompt is computed.

Every router judges for itself by the same records, and takes what they tell beyond its own requests
for others'. Each sees what others have sent only with the next record, so that R routers may send
up to R times what there is room for; the rest waits in the replicas' own queues.
"""

import math
from collections.abc import Iterable

from octavo_protocol.records import ReplicaRecord
from octavo_router.load_tracker import LoadTracker

DEFAULT_BACKLOG_S = 3.0
_FULL_KV = 0.95


def has_room(
    records: Iterable[ReplicaRecord],
    loads: LoadTracker,
    background_loads: LoadTracker | None = None,
    *,
    backlog_s: float = DEFAULT_BACKLOG_S,
    num_granted: int = 0,
    num_granted_tokens: int = 0,
) -> bool:
    """background_loads: for background work, which waits for its like too; None: for others.

    num_granted: requests that may go on and were not sent yet, of `num_granted_tokens`.
    """
    num_free = 0
    free_tokens = 0.0
    record = None
    for record in records:
        if not record.max_num_seqs:
            return True
        num_background = record.background_running + record.background_waiting
        busy = loads.num_busy(record.incarnation, record.running + record.waiting - num_background)
        num_queued = loads.num_queued_tokens(record.incarnation)
        if background_loads is not None:
            busy += background_loads.num_busy(record.incarnation, num_background)
            num_queued += background_loads.num_queued_tokens(record.incarnation)
        gives_blocks = background_loads is None and record.background_running > 0
        is_full = record.kv_usage >= _FULL_KV and not gives_blocks
        if is_full or busy >= record.max_num_seqs:
            continue
        room = math.inf
        if rate := record.prefill_tokens_per_s:
            room = rate * backlog_s - num_queued
        if room > 0:
            num_free += record.max_num_seqs - busy
            free_tokens += room
        if num_free > num_granted and free_tokens > num_granted_tokens:
            return True
    return record is None  # without replicas the request is to hear that
