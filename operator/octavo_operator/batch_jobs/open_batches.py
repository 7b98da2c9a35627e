"""The open batches of BatchJobs, as Redis has them; those whose BatchJob is gone are cancelled.

One poll reads for all BatchJobs: the ids of the open batches, and the hashes of those that a
BatchJob has made, that are new, or that were open until now. Nobody tells to cancel: a batch that
says whose it is, and whose BatchJob is not there, is not wanted any more, also when no operator ran
while that was deleted.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import cast

import redis.asyncio
import redis.exceptions

from octavo_operator.queue import Key
from octavo_protocol.batch_record import TRANSITION, BatchRecord, cancellation
from octavo_protocol.batch_runs import BATCH_JOB_NOTE, KEY_NOTE
from octavo_protocol.errors import OctavoError
from octavo_protocol.keys import BATCHES_OPEN, batch_key

logger = logging.getLogger(__name__)

POLL_S = 5.0


class OpenBatches:
    """Use `run` as a background task.

    changed: called with each BatchJob whose batch is another than before. is_ours: whether we
    watch its namespace. exists: whether the BatchJob of that name has that uid; raises
    `OctavoError` where that cannot be said.
    """

    def __init__(
        self,
        client: "redis.asyncio.Redis",
        *,
        changed: Callable[[Key], None],
        is_ours: Callable[[Key], bool],
        exists: Callable[[Key, str], Awaitable[bool]],
    ) -> None:
        self._client = client
        self._changed = changed
        self._is_ours = is_ours
        self._exists = exists
        self._cancel = client.register_script(TRANSITION)
        self._batches: dict[str, BatchRecord] = {}  # by uid of the BatchJob
        self._others: set[str] = set()  # ids of batches that no BatchJob made

    def batch(self, uid: str) -> BatchRecord | None:
        """The batch of a BatchJob; one that has ended as it ended."""
        return self._batches.get(uid)

    def forget(self, uid: str) -> None:
        self._batches.pop(uid, None)

    async def run(self) -> None:
        """Polls until cancelled; Redis away is waited out."""
        while True:
            try:
                await self.poll()
            except (redis.exceptions.RedisError, OSError) as error:
                logger.debug("Redis does not answer: %s", error)
            await asyncio.sleep(POLL_S)

    async def poll(self) -> None:
        """One reading. Raises what the client raises."""
        members = cast(list[bytes], await self._client.zrange(BATCHES_OPEN, 0, -1))
        ids = {member.decode() for member in members}
        self._others &= ids
        closed = {each.id for each in self._batches.values() if not each.has_ended} - ids
        for batch in await self._read(sorted((ids - self._others) | closed)):
            await self._take(batch)

    async def _read(self, ids: list[str]) -> list[BatchRecord]:
        async with self._client.pipeline(transaction=False) as pipe:
            for each in ids:
                pipe.hgetall(batch_key(each))
            answers = await pipe.execute()
        found = []
        for batch_id, raw in zip(ids, answers, strict=True):
            if raw:
                fields = {name.decode(): value.decode() for name, value in raw.items()}
                found.append(BatchRecord(batch_id, fields))
        return found

    async def _take(self, batch: BatchRecord) -> None:
        key, uid = owner_of(batch)
        if key is None or not self._is_ours(key):
            self._others.add(batch.id)
            return
        if not await self._is_wanted(key, uid):
            self.forget(uid)
            if await self._cancel([batch_key(batch.id)], cancellation(time.time())):
                logger.info("%s: cancelled %s, as the BatchJob is gone", key, batch.id)
            return
        before, self._batches[uid] = self._batches.get(uid), batch
        if before is None or before.fields != batch.fields:
            self._changed(key)

    async def _is_wanted(self, key: Key, uid: str) -> bool:
        try:
            return await self._exists(key, uid)
        except OctavoError as error:
            logger.debug("%s: whether it is there is not known: %s", key, error.message)
            return True


def owner_of(batch: BatchRecord) -> tuple[Key | None, str]:
    """The BatchJob that a batch is for, and its uid; None where it is nobody's."""
    notes = batch.metadata
    namespace, slash, name = notes.get(BATCH_JOB_NOTE, "").partition("/")
    return (Key(namespace, name) if slash and name else None), notes.get(KEY_NOTE, "")
