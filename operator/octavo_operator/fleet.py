"""What Redis says of replicas, and what it is told of deployments.

One loop reads for all deployments: two round trips per poll, whatever their number. Deployments
that autoscale or have unready pods are read every second, the others every `IDLE_POLLS` seconds in
turn, those without pods never. Only what `decide` can see differently leads to a turn in the queue:
load counts for deployments that autoscale alone.

The registry that routers read is written when it changes and compared with what it should be every
`REGISTRY_POLLS` seconds, which also repairs it after Redis has lost its memory.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any, TypeVar, cast

import msgspec
import redis.asyncio
import redis.exceptions

from octavo_operator.queue import Key
from octavo_protocol.errors import OctavoError
from octavo_protocol.keys import DEPLOYMENTS, Keys, deployment_field
from octavo_protocol.records import (
    DeploymentRecord,
    DownloadRecord,
    ReplicaRecord,
    decode_download,
    decode_record,
    encode,
)

logger = logging.getLogger(__name__)

POLL_S = 1.0
IDLE_POLLS = 5
REGISTRY_POLLS = 10
AWAY_S = 10.0
_INDEX_S = 60.0  # ids in the sorted set without a heartbeat for so long are passed over


@dataclass(frozen=True, slots=True)
class Interest:
    """A deployment that is to be read. is_urgent: in every poll. sees_load: it autoscales.
    is_downloading: a pod of its download Job runs.
    """

    key: Key
    is_urgent: bool
    sees_load: bool
    is_downloading: bool = False


Seen = tuple[object, ...]
Reading = tuple[tuple[ReplicaRecord, ...], tuple[DownloadRecord, ...]]
Record = TypeVar("Record")


class Fleet:
    """Use `run` as a background task.

    interests: what to read now. changed: called with each key that `decide` would see differently.
    is_ours: whether we watch its namespace. exists: whether a deployment of that name is there;
    raises `OctavoError` where that cannot be said. Entries of ours that do not exist are removed.
    """

    def __init__(
        self,
        client: "redis.asyncio.Redis",
        *,
        interests: Callable[[], Iterable[Interest]],
        changed: Callable[[Key], None],
        is_ours: Callable[[Key], bool],
        exists: Callable[[Key], Awaitable[bool]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._interests = interests
        self._changed = changed
        self._is_ours = is_ours
        self._exists = exists
        self._clock = clock
        self._answered_at: float | None = None
        self._was_known = False
        self._may_have_forgotten = False
        self._num_polls = 0
        self._records: dict[Key, tuple[ReplicaRecord, ...]] = {}
        self._downloads: dict[Key, DownloadRecord | None] = {}
        self._seen: dict[Key, Seen] = {}
        self._registry: dict[str, bytes] = {}

    @property
    def is_known(self) -> bool:
        """Redis answered lately; what is told of replicas is true."""
        return self._answered_at is not None and self._clock() - self._answered_at < AWAY_S

    def replicas(self, key: Key) -> Sequence[ReplicaRecord]:
        """Live records of a deployment as last read."""
        return self._records.get(key, ()) if self.is_known else ()

    def download(self, key: Key) -> DownloadRecord | None:
        """What the container that downloads the deployment's model said last, if one runs."""
        return self._downloads.get(key) if self.is_known else None

    async def run(self) -> None:
        """Polls until cancelled; Redis away is waited out."""
        while True:
            try:
                await self.poll()
            except (redis.exceptions.RedisError, OSError, TimeoutError) as error:
                logger.debug("Redis does not answer: %s", error)
                self._may_have_forgotten = True
            self.note_known()
            await asyncio.sleep(POLL_S)

    async def poll(self) -> None:
        """One reading. Raises what the client raises."""
        wanted = list(self._interests())
        self._forget_all_but({each.key for each in wanted})
        due = [each for each in wanted if each.is_urgent or self._is_turn_of(each.key)]
        for interest, reading in zip(due, await self._read(due), strict=True):
            self._take(interest, *reading)
        if self._num_polls % REGISTRY_POLLS == 0 or self._may_have_forgotten:
            await self._repair_registry()
            self._may_have_forgotten = False
        self._num_polls += 1
        self._answered_at = self._clock()

    async def register(self, key: Key, record: DeploymentRecord) -> None:
        """Routers learn of the deployment. Redis away: they do when it is back."""
        field, value = deployment_field(*key), encode(record)
        if self._registry.get(field) == value:
            return
        self._registry[field] = value
        await self._write(lambda: self._client.hset(DEPLOYMENTS, field, cast(str, value)))

    async def unregister(self, key: Key) -> None:
        """Routers forget the deployment."""
        field = deployment_field(*key)
        if self._registry.pop(field, None) is not None:
            await self._write(lambda: self._client.hdel(DEPLOYMENTS, field))

    def registered_names(self, key: Key) -> Sequence[str]:
        """What the routers were told last."""
        value = self._registry.get(deployment_field(*key))
        return (
            ()
            if value is None
            else msgspec.msgpack.decode(value, type=DeploymentRecord).served_names
        )

    async def _write(self, write: Callable[[], Any]) -> None:
        try:
            await write()
        except (redis.exceptions.RedisError, OSError, TimeoutError) as error:
            logger.warning("the registry of deployments will be written later: %s", error)

    async def _repair_registry(self) -> None:
        """Makes the hash what it should be; fields of deployments that are not ours stay.

        A deployment that exists and of which nothing has been decided keeps what a former process
        wrote: an invalid spec changes nothing.
        """
        raw = cast(dict[bytes, bytes], await self._client.hgetall(DEPLOYMENTS))
        found = {field.decode(errors="replace"): value for field, value in raw.items()}
        for field in found.keys() - self._registry.keys():
            key = Key(*field.partition("/")[::2])
            if not self._is_ours(key):
                continue
            try:
                is_there = await self._exists(key)
            except OctavoError as error:
                logger.warning("whether %s exists is asked again: %s", key, error.message)
                continue
            if is_there:
                self._registry[field] = found[field]
            else:
                await self._client.hdel(DEPLOYMENTS, field)
        missing = {f: value for f, value in self._registry.items() if found.get(f) != value}
        if missing:
            await self._client.hset(DEPLOYMENTS, mapping=cast(dict[Any, Any], missing))

    async def _read(self, due: Sequence[Interest]) -> list[Reading]:
        """Live records of each, replicas' in the order of their ids."""
        if not due:
            await cast(Any, self._client.ping())
            return []
        names = [Keys(each.key.namespace, each.key.name) for each in due]
        oldest = time.time() - _INDEX_S
        async with self._client.pipeline(transaction=False) as pipe:
            for each in names:
                pipe.zrangebyscore(each.replicas, oldest, "+inf")
            ids = cast(list[list[bytes]], await pipe.execute())
        wanted = [
            each.replica(replica_id.decode(errors="replace"))
            for each, members in zip(names, ids, strict=True)
            for replica_id in sorted(members)
        ]
        is_told = [each.is_downloading for each in due]
        wanted += [each.download for each in compress(names, is_told)]
        values = iter(cast(list[bytes | None], await self._client.mget(wanted)) if wanted else [])
        records = [
            tuple(_decoded((next(values) for _ in members), decode_record)) for members in ids
        ]
        told = [
            tuple(_decoded([next(values)] if each else [], decode_download)) for each in is_told
        ]
        return list(zip(records, told, strict=True))

    def _take(
        self,
        interest: Interest,
        records: tuple[ReplicaRecord, ...],
        downloads: tuple[DownloadRecord, ...],
    ) -> None:
        self._records[interest.key] = records
        self._downloads[interest.key] = next(iter(downloads), None)
        seen = *downloads, *(_visible(each, with_load=interest.sees_load) for each in records)
        if self._seen.get(interest.key, ()) != seen:
            self._seen[interest.key] = seen
            self._changed(interest.key)

    def _is_turn_of(self, key: Key) -> bool:
        return key not in self._records or hash(key) % IDLE_POLLS == self._num_polls % IDLE_POLLS

    def _forget_all_but(self, keys: Collection[Key]) -> None:
        for key in self._records.keys() - keys:
            del self._records[key]
            self._downloads.pop(key, None)
            self._seen.pop(key, None)

    def note_known(self) -> None:
        """All that have replicas are looked at again when Redis goes away and when it is back."""
        if self._was_known == self.is_known:
            return
        self._was_known = self.is_known
        logger.log(
            logging.INFO if self._was_known else logging.WARNING,
            "Redis answers" if self._was_known else "Redis does not answer",
        )
        for interest in self._interests():
            self._changed(interest.key)


def _visible(record: ReplicaRecord, *, with_load: bool) -> Seen:
    """What `decide` goes by."""
    state: Seen = (
        record.replica_id,
        record.incarnation,
        record.ready,
        record.draining,
        record.num_blocks,
        tuple(record.adapters),
        tuple(record.adapter_versions.items()),
        tuple(record.adapter_sources.items()),
    )
    load = (record.running, record.waiting, record.waiting_tokens, round(record.kv_usage, 2))
    return (*state, *load) if with_load else state


def _decoded(values: Iterable[bytes | None], decode: Callable[[bytes], Record]) -> Iterable[Record]:
    for value in values:
        if value is None:
            continue  # its time to live has ended
        try:
            yield decode(value)
        except msgspec.DecodeError as error:
            logger.warning("a record cannot be read: %s", error)
