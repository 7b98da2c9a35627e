"""Open batches of BatchJobs in a real Redis: read, told of, cancelled when nobody wants them."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest
import redis.asyncio

from octavo.local.redis_server import EmbeddedRedis
from octavo_operator.batch_jobs.open_batches import OpenBatches
from octavo_operator.queue import Key
from octavo_protocol.batch_runs import BATCH_JOB_NOTE, KEY_NOTE
from octavo_protocol.errors import OctavoError
from octavo_protocol.openai.batches import BatchStatus, CreateBatchRequest
from octavo_router.batches.store import BatchStore

pytestmark = pytest.mark.integration

KEY = Key("team", "nightly")


class World:
    """Batches as routers make them, and an operator that looks at them."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self.client = client
        self.store = BatchStore(client)
        self.there: dict[Key, str] = {KEY: "uid-1"}
        self.is_answering = True
        self.changed: list[Key] = []
        self.open = OpenBatches(
            client,
            changed=self.changed.append,
            is_ours=lambda key: key.namespace == "team",
            exists=self._exists,
        )

    async def _exists(self, key: Key, uid: str) -> bool:
        if not self.is_answering:
            raise OctavoError("the API server is away")
        return self.there.get(key) == uid

    async def create(self, uid: str, of: str) -> str:
        request = CreateBatchRequest(
            input_file_id="file-1",
            endpoint="/v1/completions",
            metadata={KEY_NOTE: uid, BATCH_JOB_NOTE: of} if of else None,
        )
        return (await self.store.create("default", request, key=uid)).id

    async def status(self, batch_id: str) -> BatchStatus:
        return (await self.store.get(batch_id)).status


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis() as started:
        yield started


@pytest.fixture
async def world(server: EmbeddedRedis) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        client = redis.asyncio.Redis.from_url(server.url)
        stack.push_async_callback(client.aclose)
        await client.flushall()
        yield World(client)


async def test_a_batch_is_told_of_when_it_changes_and_only_then(world: World) -> None:
    batch_id = await world.create("uid-1", "team/nightly")
    await world.open.poll()
    await world.open.poll()
    assert world.changed == [KEY]
    await world.store.move(batch_id, BatchStatus.IN_PROGRESS, {BatchStatus.VALIDATING})
    await world.open.poll()
    found = world.open.batch("uid-1")
    assert found is not None
    assert (found.id, found.status, world.changed) == (batch_id, "in_progress", [KEY, KEY])


async def test_a_batch_that_was_closed_is_known_as_it_ended(world: World) -> None:
    batch_id = await world.create("uid-1", "team/nightly")
    await world.open.poll()
    await world.store.fail(batch_id, "empty_file", "there is no line in it")
    await world.store.close(await world.store.get(batch_id))
    await world.open.poll()
    await world.open.poll()
    found = world.open.batch("uid-1")
    assert found is not None
    assert (found.status, world.changed) == ("failed", [KEY, KEY])
    world.open.forget("uid-1")
    await world.open.poll()
    assert world.open.batch("uid-1") is None


async def test_a_batch_whose_batch_job_is_gone_is_cancelled(world: World) -> None:
    gone = await world.create("uid-0", "team/nightly")  # another of that name is there now
    deleted = await world.create("uid-2", "team/deleted")
    kept = await world.create("uid-1", "team/nightly")
    elsewhere = await world.create("uid-3", "other/deleted")
    private = await world.create("uid-4", "")
    await world.open.poll()
    assert [await world.status(each) for each in (gone, deleted)] == ["cancelling", "cancelling"]
    untouched = (kept, elsewhere, private)
    assert {await world.status(each) for each in untouched} == {"validating"}
    record = await world.store.get(gone)
    assert (record.unfinished_code, "cancelling_at" in record.fields) == ("batch_cancelled", True)


async def test_nothing_is_cancelled_while_the_api_server_is_away(world: World) -> None:
    batch_id = await world.create("uid-0", "team/nightly")
    world.is_answering = False
    await world.open.poll()
    assert await world.status(batch_id) == "validating"


async def test_batches_of_others_are_not_read_again(world: World) -> None:
    await world.create("uid-4", "")
    await world.open.poll()
    before = (await world.client.info("commandstats"))["cmdstat_hgetall"]["calls"]
    await world.open.poll()
    after = (await world.client.info("commandstats"))["cmdstat_hgetall"]["calls"]
    assert after == before
