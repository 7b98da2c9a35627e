"""Follows deployments and their replicas' records, in Redis or at fixed addresses.

Redis away: what was known last stays.

A poll reads, in two round trips however many deployments there are, the replicas of those that had
a request lately and of some of the others, which take turns. So the work of a poll is bounded by
the deployments in use, and what a router knows of an idle one of thousands is a few seconds old.
The registry is read whole every other poll.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from heapq import nsmallest
from typing import Any, cast

import msgspec
import redis.asyncio
import redis.exceptions

from octavo_protocol.keys import DEPLOYMENTS
from octavo_protocol.records import DeploymentRecord, ReplicaRecord, decode_deployment
from octavo_router.deployment import Deployment
from octavo_router.deployments import Deployments
from octavo_router.upstream import UpstreamClient

logger = logging.getLogger(__name__)

POLL_S = 0.5
_FORGET_S = 3600  # ids in the sorted set without a heartbeat for so long are passed over
_IN_USE_S = 10.0  # a deployment is in use for so long after a request
_PROBE_S = 2.0
_IDLE_READS = 200  # other deployments read in one poll


class Discovery:
    """Keeps `deployments` true.

    is_degraded: Redis does not answer. has_answered: it did once.
    """

    def __init__(
        self, deployments: Deployments, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._deployments = deployments
        self._clock = clock
        self._registry: dict[bytes, bytes] = {}
        self._num_polls = 0
        self.is_degraded = False
        self.has_answered = False

    async def follow_redis(
        self, client: "redis.asyncio.Redis", *, with_registry: bool = False
    ) -> None:
        """Runs until cancelled."""
        while True:
            try:
                await self._poll(client, with_registry=with_registry)
                self._note(degraded=False)
            except (redis.exceptions.RedisError, OSError) as error:
                self._note(degraded=True, error=error)
            await asyncio.sleep(POLL_S)

    async def follow_urls(
        self, client: UpstreamClient, urls: Sequence[str], deployment: Deployment
    ) -> None:
        """Replicas at fixed addresses, known by what they answer. Runs until cancelled."""
        while True:
            records = await asyncio.gather(*(_probe(client, url) for url in urls))
            self._deployments.take_replicas(
                deployment,
                {record.replica_id: msgspec.msgpack.encode(record) for record in records if record},
            )
            await asyncio.sleep(POLL_S)

    async def _poll(self, client: "redis.asyncio.Redis", *, with_registry: bool) -> None:
        if with_registry and self._num_polls % 2 == 0:
            self._take_registry(cast(dict[bytes, bytes], await client.hgetall(DEPLOYMENTS)))
        self._num_polls += 1
        due = _due(self._deployments, self._clock())
        for deployment, raw in zip(due, await read_records(client, due), strict=True):
            self._deployments.take_replicas(deployment, raw)

    def _take_registry(self, raw: dict[bytes, bytes]) -> None:
        if raw == self._registry and raw:
            return
        self._registry = raw
        self._deployments.take_registry(_decoded(raw))

    def _note(self, *, degraded: bool, error: Exception | None = None) -> None:
        if degraded and not self.is_degraded:
            logger.warning("Redis is away, routing goes on with what is known: %s", error)
        elif self.is_degraded and not degraded:
            logger.info("Redis is back")
        self.is_degraded = degraded
        self.has_answered = self.has_answered or not degraded


async def read_records(
    client: "redis.asyncio.Redis", deployments: Sequence[Deployment]
) -> list[dict[str, bytes]]:
    """Every live record by replica id, of each deployment."""
    if not deployments:
        return []
    oldest = time.time() - _FORGET_S
    async with client.pipeline(transaction=False) as pipe:
        for deployment in deployments:
            pipe.zrangebyscore(deployment.keys.replicas, oldest, "+inf")
        ids = cast(list[list[bytes]], await pipe.execute())
    names = [[replica_id.decode(errors="replace") for replica_id in each] for each in ids]
    keys = [
        deployment.keys.replica(name)
        for deployment, each in zip(deployments, names, strict=True)
        for name in each
    ]
    values = iter(cast(list[Any], await client.mget(keys)) if keys else [])
    return [{name: value for name in each if (value := next(values)) is not None} for each in names]


def _due(deployments: Iterable[Deployment], now: float) -> list[Deployment]:
    """Those in use, and those of the others that were read longest ago."""
    in_use: list[Deployment] = []
    idle: list[Deployment] = []
    for deployment in deployments:
        (in_use if now - deployment.asked_at < _IN_USE_S else idle).append(deployment)
    return in_use + nsmallest(_IDLE_READS, idle, key=lambda each: each.read_at)


def _decoded(raw: dict[bytes, bytes]) -> Iterable[DeploymentRecord]:
    for field, value in raw.items():
        try:
            yield decode_deployment(value)
        except msgspec.DecodeError as error:
            logger.warning("the record of deployment %r cannot be read: %s", field, error)


async def _probe(client: UpstreamClient, url: str) -> ReplicaRecord | None:
    try:
        async with asyncio.timeout(_PROBE_S):
            with await client.send("GET", url, "/v1/models") as answer:
                models = msgspec.json.decode(await answer.read())["data"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    adapters = [model["id"] for model in models if model.get("parent")]
    names = [model["id"] for model in models if not model.get("parent")]
    if not names:
        return None
    return ReplicaRecord(
        replica_id=url,
        incarnation=url,
        url=url,
        model=names[0],
        served_names=names,
        adapters=adapters,
        cache_model="",
        block_size=0,  # unknown: no prediction, routing by load
        num_blocks=0,
        max_model_len=models[0].get("max_model_len") or 0,
    )
