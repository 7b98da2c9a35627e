"""Workers that die at any point: every line has one result, and who has one is not asked again."""

import asyncio
import random

import pytest
from tests.fakes.batch_platform import LEASE_S, BatchPlatform, completion
from tests.fakes.router_cluster import until

from octavo_protocol.tasks import stop_tasks

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("seed", range(4))
async def test_results_are_those_of_an_undisturbed_run(platform: BatchPlatform, seed: int) -> None:
    chance = random.Random(seed)
    asked = [f"prompt {i}" for i in range(150)]
    platform.room = 5
    platform.model.pause_s = 0.01
    batch_id = await platform.submit(*asked)
    running = [platform.worker(), platform.worker()]
    known_results = set()
    for _ in range(6):
        await asyncio.sleep(chance.uniform(0.02, 0.4))
        before = dict(platform.model.asked)
        victim = running.pop(chance.randrange(len(running)))
        await stop_tasks([victim])
        known_results |= await _with_result(platform, batch_id, asked, before)
        running.append(platform.worker())
    batch = await platform.ended(batch_id, seconds=120)
    assert (batch.status, batch.request_counts.completed) == ("completed", len(asked))
    output = await platform.lines(batch.output_file_id)
    assert [line["custom_id"] for line in output] == asked
    assert [line["response"]["body"] for line in output] == [completion(each) for each in asked]
    assert batch.usage.input_tokens == 3 * len(asked)
    for prompt, times in known_results:
        assert platform.model.asked[prompt] == times, f"{prompt} had its result and came again"


async def test_a_worker_that_sleeps_through_its_lease_changes_nothing(
    platform: BatchPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answers come when another worker has written the chunk, or even ended the batch."""
    platform.model.pause_s = 3 * LEASE_S
    monkeypatch.setattr("octavo_router.batches.worker.BatchWorker._renew", _sleep)
    batch_id = await platform.submit("a", "b", "c")
    platform.worker()
    await until(lambda: platform.model.num_open == 3)
    monkeypatch.setattr(platform.newest, "round", _nothing)
    platform.model.pause_s = 0
    platform.worker()
    batch = await platform.ended(batch_id)
    assert platform.model.asked == {"a": 2, "b": 2, "c": 2}
    await until(lambda: platform.model.num_open == 0)
    output = await platform.lines(batch.output_file_id)
    assert [line["custom_id"] for line in output] == ["a", "b", "c"]
    assert batch.request_counts.completed == 3
    assert await platform.redis.keys("octavo:batch:*:*") == []


async def _nothing() -> None: ...


async def _sleep(*_: object) -> None:
    await asyncio.sleep(3600)


async def _with_result(
    platform: BatchPlatform, batch_id: str, asked: list[str], times: dict[str, int]
) -> set[tuple[str, int]]:
    """Prompts that have their result, with how often they were asked until then."""
    store = platform.store
    found = set()
    for chunk in await store.finished(batch_id):
        found |= set(range(64 * chunk, min(64 * chunk + 64, len(asked))))
    for chunk in range(-(-len(asked) // 64)):
        found |= {64 * chunk + line for line in await store.results(batch_id, chunk)}
    return {
        (asked[line], platform.model.asked[asked[line]])
        for line in found
        if times.get(asked[line]) == platform.model.asked[asked[line]]
    }
