"""The fleet on a real Redis: what is read, what leads to a turn, the registry of deployments."""

from collections.abc import AsyncIterator, Iterator
from typing import cast

import msgspec
import pytest
import redis.asyncio

from octavo.local.redis_server import EmbeddedRedis
from octavo_operator.cluster import ApiUnreachableError
from octavo_operator.fleet import AWAY_S, IDLE_POLLS, REGISTRY_POLLS, Fleet, Interest
from octavo_operator.queue import Key
from octavo_protocol.keys import DEPLOYMENTS, Keys
from octavo_protocol.records import (
    DeploymentRecord,
    DownloadRecord,
    ReplicaRecord,
    decode_deployment,
    encode,
)

pytestmark = pytest.mark.integration

CHAT, CODE = Key("team", "chat"), Key("team", "code")
RECORD = ReplicaRecord(
    replica_id="chat-1",
    incarnation="i",
    url="http://10.0.0.1:8000",
    model="chat",
    cache_model="chat",
    block_size=16,
    num_blocks=100,
    max_model_len=1024,
)


def registered(key: Key, policy: str = "least-load") -> DeploymentRecord:
    return DeploymentRecord(key.namespace, key.name, [key.name], policy, 1.0)


class World:
    """A fleet, the Redis that it reads, and what the rest of the operator would know."""

    def __init__(self, url: str) -> None:
        self.client = redis.asyncio.Redis.from_url(url)
        self.now = 0.0
        self.interests = [Interest(CHAT, is_urgent=True, sees_load=False)]
        self.existing = {CHAT, CODE}
        self.is_server_away = False
        self.turns: list[Key] = []
        self.fleet = self.make_fleet()

    def make_fleet(self) -> Fleet:
        return Fleet(
            self.client,
            interests=lambda: self.interests,
            changed=self.turns.append,
            is_ours=lambda key: key.namespace == "team",
            exists=self._exists,
            clock=lambda: self.now,
        )

    async def _exists(self, key: Key) -> bool:
        if self.is_server_away:
            raise ApiUnreachableError("away")
        return key in self.existing

    async def write(self, key: Key, record: ReplicaRecord | bytes, id: str = "chat-1") -> None:
        keys = Keys(key.namespace, key.name)
        raw = record if isinstance(record, bytes) else encode(record)
        await self.client.set(keys.replica(id), raw)
        seconds, _ = await self.client.time()
        await self.client.zadd(keys.replicas, {id: seconds})

    async def polled(self) -> list[Key]:
        """Whose turn it is after one poll."""
        self.turns.clear()
        await self.fleet.poll()
        return list(self.turns)

    async def registry(self) -> dict[str, DeploymentRecord]:
        raw = cast(dict[bytes, bytes], await self.client.hgetall(DEPLOYMENTS))
        return {field.decode(): decode_deployment(value) for field, value in raw.items()}


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis() as server:
        yield server


@pytest.fixture
async def world(server: EmbeddedRedis) -> AsyncIterator[World]:
    world = World(server.url)
    await world.client.flushall()
    yield world
    await world.client.aclose()


async def test_a_replica_that_comes_becomes_ready_and_goes_leads_to_a_turn_each(
    world: World,
) -> None:
    assert await world.polled() == []
    await world.write(CHAT, msgspec.structs.replace(RECORD, ready=False))
    assert await world.polled() == [CHAT]
    assert await world.polled() == []
    await world.write(CHAT, RECORD)
    assert await world.polled() == [CHAT]
    assert world.fleet.replicas(CHAT) == (RECORD,)
    await world.client.delete(Keys(*CHAT).replica("chat-1"))
    assert await world.polled() == [CHAT]
    assert world.fleet.replicas(CHAT) == ()


async def test_a_download_s_progress_is_read_while_it_goes_on(world: World) -> None:
    key, record = Keys(*CHAT).download, DownloadRecord("/models/m", "downloading m", 5, 10)
    await world.client.set(key, encode(record))
    await world.polled()
    assert world.fleet.download(CHAT) is None, "no pod downloads, so nobody looks"
    world.interests = [Interest(CHAT, True, sees_load=False, is_downloading=True)]
    assert await world.polled() == [CHAT]
    assert world.fleet.download(CHAT) == record
    assert await world.polled() == []
    await world.client.set(key, b"no record")
    assert await world.polled() == [CHAT]
    assert world.fleet.download(CHAT) is None


async def test_load_leads_to_a_turn_only_where_it_decides(world: World) -> None:
    await world.write(CHAT, RECORD)
    await world.polled()
    await world.write(CHAT, msgspec.structs.replace(RECORD, running=3, waiting_tokens=900))
    assert await world.polled() == []
    world.interests = [Interest(CHAT, is_urgent=True, sees_load=True)]
    assert await world.polled() == [CHAT]
    assert await world.polled() == []
    await world.write(CHAT, msgspec.structs.replace(RECORD, running=4, waiting_tokens=900))
    assert await world.polled() == [CHAT]


async def test_settled_deployments_are_read_in_turn_and_those_without_pods_never(
    world: World,
) -> None:
    world.interests = [
        Interest(CHAT, is_urgent=False, sees_load=False),
        Interest(CODE, is_urgent=True, sees_load=False),
    ]
    await world.polled()
    await world.write(CHAT, RECORD)
    await world.write(CODE, RECORD)
    seen = [await world.polled() for _ in range(IDLE_POLLS)]
    assert seen[0] == [CODE] or seen[0] == [CHAT, CODE]
    assert sum(CHAT in each for each in seen) == 1
    world.interests = []
    assert await world.polled() == []
    assert world.fleet.replicas(CHAT) == ()


async def test_what_cannot_be_read_is_passed_over(world: World) -> None:
    await world.write(CHAT, RECORD)
    await world.write(CHAT, b"not a record", id="chat-2")
    assert await world.polled() == [CHAT]
    assert world.fleet.replicas(CHAT) == (RECORD,)


async def test_registering_writes_at_once_and_unregistering_removes(world: World) -> None:
    await world.fleet.register(CHAT, registered(CHAT))
    assert await world.registry() == {"team/chat": registered(CHAT)}
    await world.fleet.register(CHAT, registered(CHAT, "round-robin"))
    assert await world.registry() == {"team/chat": registered(CHAT, "round-robin")}
    await world.fleet.unregister(CHAT)
    await world.fleet.unregister(CHAT)
    assert await world.registry() == {}


async def test_while_the_api_server_is_away_the_registry_stays_and_the_fleet_goes_on(
    world: World,
) -> None:
    stale = encode(registered(CODE))
    await world.client.hset(DEPLOYMENTS, "team/code", cast(str, stale))
    world.existing, world.is_server_away = {CHAT}, True
    await world.fleet.poll()
    assert (await world.registry()).keys() == {"team/code"}
    world.is_server_away = False
    for _ in range(REGISTRY_POLLS):
        await world.fleet.poll()
    assert await world.registry() == {}


async def test_a_registry_that_redis_lost_is_written_again(world: World) -> None:
    await world.fleet.register(CHAT, registered(CHAT))
    await world.client.flushall()
    for _ in range(REGISTRY_POLLS):
        await world.polled()
    assert await world.registry() == {"team/chat": registered(CHAT)}


async def test_a_new_process_keeps_what_it_cannot_decide_yet_and_sweeps_what_is_gone(
    world: World,
) -> None:
    gone, foreign = Key("team", "gone"), Key("elsewhere", "chat")
    for key in (CHAT, gone, foreign):
        raw = encode(registered(key))
        await world.client.hset(DEPLOYMENTS, f"{key.namespace}/{key.name}", raw)
    await world.polled()
    assert (await world.registry()).keys() == {"team/chat", "elsewhere/chat"}
    await world.client.flushall()
    for _ in range(REGISTRY_POLLS):
        await world.polled()
    assert await world.registry() == {"team/chat": registered(CHAT)}, "known from the first look"


async def test_redis_away_is_told_after_a_while_and_once_and_so_is_its_return(
    world: World,
) -> None:
    await world.write(CHAT, RECORD)
    await world.polled()
    world.turns.clear()
    world.fleet.note_known()
    assert (world.fleet.is_known, world.turns) == (True, [CHAT])
    world.now = AWAY_S - 0.1
    assert world.fleet.replicas(CHAT) == (RECORD,), "what was read last holds for a while"
    world.now = AWAY_S
    for _ in range(3):
        world.fleet.note_known()
    assert (world.fleet.is_known, world.fleet.replicas(CHAT)) == (False, ())
    assert world.turns == [CHAT, CHAT]
    await world.fleet.poll()
    world.fleet.note_known()
    assert world.fleet.is_known
    assert world.turns == [CHAT, CHAT, CHAT]


async def test_registering_while_redis_is_away_is_made_up_for() -> None:
    server = EmbeddedRedis()
    world = World(server.url)
    try:
        await world.fleet.register(CHAT, registered(CHAT))
        server.start()
        await world.fleet.poll()
        assert await world.registry() == {"team/chat": registered(CHAT)}
    finally:
        await world.client.aclose()
        server.stop()
