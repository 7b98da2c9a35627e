"""Both forms of the journal keep the same rules."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.fakes.router_cluster import until

from octavo.local.redis_server import EmbeddedRedis
from octavo_protocol.keys import Keys
from octavo_router.resumption.events import AnswerHead, Batch
from octavo_router.resumption.journal import (
    Claim,
    Journal,
    JournalAwayError,
    JournalLimits,
    Kept,
    Reading,
    Standing,
    StreamName,
)
from octavo_router.resumption.memory_journal import MemoryJournal
from octavo_router.resumption.redis_journal import RedisJournal

pytestmark = pytest.mark.integration

KEYS = Keys("default", "default")
NAME = StreamName(KEYS, "one")
HEAD = AnswerHead(200, ((b"content-type", b"text/event-stream"),), True, "1-0")
LIMITS = JournalLimits(lease_s=0.3, ttl_s=30, max_stream_bytes=100, max_total_bytes=150)
NOTHING = Reading(False, False, None, ())


def batch(last: int, *events: bytes) -> Batch:
    return Batch(last, events, b"[0,[%d]]," % last)


@pytest.fixture(params=["memory", "redis"])
async def journal(
    request: pytest.FixtureRequest, redis_server: EmbeddedRedis
) -> AsyncIterator[Journal]:
    if request.param == "memory":
        yield MemoryJournal(LIMITS)
        return
    async with RedisJournal(redis_server.url, LIMITS) as journal:
        yield journal


async def claimed(
    journal: Journal, token: str = "a", *, name: StreamName = NAME, must_exist: bool = False
) -> Claim:
    return await journal.claim(name, token, "body", must_exist=must_exist)


async def test_of_claims_at_the_same_time_one_wins(journal: Journal) -> None:
    claims = await asyncio.gather(*(claimed(journal, token) for token in "abcdef"))
    assert sorted(claim.standing for claim in claims) == [Standing.NEW] + [Standing.RUNNING] * 5


async def test_a_stream_is_read_as_it_was_appended_from_anywhere(journal: Journal) -> None:
    await claimed(journal)
    first, second = batch(2, b"x", b"y"), batch(3, b"z")
    assert (await journal.append(NAME, "a", first, HEAD)).kept is Kept.YES
    assert (await journal.append(NAME, "a", second)).kept is Kept.YES
    assert await journal.read(NAME, 0) == Reading(False, True, HEAD, (first, second))
    assert await journal.read(NAME, 1) == Reading(False, True, HEAD, (first, second))
    assert await journal.read(NAME, 2) == Reading(False, True, HEAD, (second,))
    await journal.append(NAME, "a", Batch(3), is_end=True)
    assert await journal.read(NAME, 3) == Reading(True, False, HEAD, ())
    assert await claimed(journal, "b", must_exist=True) == Claim(Standing.ENDED, 3)


async def test_the_same_batch_twice_is_there_once(journal: Journal) -> None:
    await claimed(journal)
    for _ in range(2):
        assert (await journal.append(NAME, "a", batch(1, b"x"), HEAD)).kept is Kept.YES
    assert (await journal.read(NAME, 0)).batches == (batch(1, b"x"),)


async def test_appends_at_the_same_time_are_judged_each_for_itself(journal: Journal) -> None:
    names = [StreamName(KEYS, name) for name in ("good", "other", "large", "late", "unknown")]
    for name in names[:4]:
        await claimed(journal, name=name)
    appended = await asyncio.gather(
        journal.append(names[0], "a", batch(1, b"x"), HEAD),
        journal.append(names[1], "b", batch(1, b"x"), HEAD),
        journal.append(names[2], "a", batch(1, b"x" * 101), HEAD),
        journal.append(names[3], "a", batch(1, b"y"), HEAD),
        journal.append(names[3], "a", batch(2, b"z"), is_end=True),
        journal.append(names[4], "a", batch(1, b"x"), HEAD),
    )
    assert [each.kept for each in appended] == [
        *(Kept.YES, Kept.FENCED, Kept.FULL),
        *(Kept.YES, Kept.YES, Kept.MISSING),
    ]
    readings = [await journal.read(name, 0) for name in names]
    assert [[each.last for each in reading.batches] for reading in readings] == [
        *([1], [], []),
        *([1, 2], []),
    ]
    assert [reading.is_ended for reading in readings] == [False, False, False, True, False]


async def test_another_request_cannot_take_the_name(journal: Journal) -> None:
    await claimed(journal)
    claim = await journal.claim(NAME, "b", "other body", must_exist=False)
    assert claim.standing is Standing.OTHER_REQUEST


async def test_what_does_not_exist_is_missing_and_not_begun(journal: Journal) -> None:
    assert await claimed(journal, must_exist=True) == Claim(Standing.MISSING)
    assert await journal.read(NAME, 0) == NOTHING
    assert (await journal.append(NAME, "a", batch(1, b"x"), HEAD)).kept is Kept.MISSING


async def test_a_lease_that_ran_out_is_taken_over_and_the_old_owner_is_fenced(
    journal: Journal,
) -> None:
    await claimed(journal)
    await journal.append(NAME, "a", batch(1, b"x"), HEAD)
    assert await claimed(journal, "b") == Claim(Standing.RUNNING, 1)

    async def is_over() -> bool:
        return (await claimed(journal, "b")).standing is Standing.TAKEN_OVER

    await until(is_over)
    assert (await journal.append(NAME, "a", batch(2, b"old"))).kept is Kept.FENCED
    assert (await journal.append(NAME, "b", batch(2, b"new"))).kept is Kept.YES
    await journal.release(NAME, "a")
    await journal.drop(NAME, "a")
    reading = await journal.read(NAME, 0)
    assert reading == Reading(False, True, HEAD, (batch(1, b"x"), batch(2, b"new")))


async def test_an_owner_whose_lease_ran_out_unnoticed_goes_on(journal: Journal) -> None:
    await claimed(journal)

    async def has_run_out() -> bool:
        return not (await journal.read(NAME, 0)).is_running

    await until(has_run_out)
    assert (await journal.append(NAME, "a", batch(1, b"x"), HEAD)).kept is Kept.YES
    assert (await journal.read(NAME, 0)).is_running


async def test_appends_renew_the_lease(journal: Journal) -> None:
    await claimed(journal)
    loop = asyncio.get_running_loop()
    end = loop.time() + 3 * LIMITS.lease_s
    while loop.time() < end:
        await journal.append(NAME, "a", Batch(0))
        assert (await journal.read(NAME, 0)).is_running
        await asyncio.sleep(0.02)


async def test_a_released_stream_is_anybodys_at_once(journal: Journal) -> None:
    await claimed(journal)
    await journal.release(NAME, "a")
    assert await claimed(journal, "b") == Claim(Standing.NEW, 0)
    await journal.append(NAME, "b", batch(1, b"x"), HEAD)
    await journal.release(NAME, "b")
    assert await claimed(journal, "c") == Claim(Standing.TAKEN_OVER, 1)


async def test_a_stream_without_a_trace_is_lost_with_its_owner(journal: Journal) -> None:
    await claimed(journal)
    await journal.append(NAME, "a", batch(1, b"x"), AnswerHead(200, (), True))
    await journal.release(NAME, "a")
    assert (await claimed(journal, "b")).standing is Standing.LOST


async def test_a_dropped_stream_is_new_again_and_takes_no_room(journal: Journal) -> None:
    for _ in range(4):
        assert (await claimed(journal)).standing is Standing.NEW
        assert (await journal.append(NAME, "a", batch(1, b"x" * 80), HEAD)).kept is Kept.YES
        await journal.drop(NAME, "a")
    assert await journal.read(NAME, 0) == NOTHING


async def test_a_stream_that_outgrows_its_bound_is_lost(journal: Journal) -> None:
    await claimed(journal)
    assert (await journal.append(NAME, "a", batch(1, b"x" * 60), HEAD)).kept is Kept.YES
    assert (await journal.append(NAME, "a", batch(2, b"x" * 60))).kept is Kept.FULL
    assert (await claimed(journal, "b")).standing is Standing.LOST
    reading = await journal.read(NAME, 0)
    assert (reading.is_ended, reading.is_running, reading.batches) == (False, False, ())


async def test_all_streams_of_a_deployment_share_a_bound(journal: Journal) -> None:
    names = [StreamName(KEYS, str(number)) for number in range(3)]
    other = StreamName(Keys("default", "other"), "0")
    for name in (names[0], names[1], other):
        await claimed(journal, name=name)
    assert (await journal.append(names[0], "a", batch(1, b"x" * 80), HEAD)).kept is Kept.YES
    assert (await journal.append(other, "a", batch(1, b"x" * 80), HEAD)).kept is Kept.YES
    assert (await journal.append(names[1], "a", batch(1, b"x" * 80), HEAD)).kept is Kept.FULL
    assert (await journal.append(names[0], "a", batch(2, b"y"))).kept is Kept.YES
    assert (await claimed(journal, name=names[2])).standing is Standing.NEW  # room is left


async def test_what_expires_is_forgotten_and_gives_its_room_back(
    redis_server: EmbeddedRedis,
) -> None:
    limits = JournalLimits(lease_s=0.1, ttl_s=0.3, max_stream_bytes=100, max_total_bytes=100)
    async with RedisJournal(redis_server.url, limits) as kept:
        for journal in (kept, MemoryJournal(limits)):
            names = [StreamName(KEYS, str(number)) for number in range(2)]
            await claimed(journal, name=names[0])
            appended = await journal.append(names[0], "a", batch(1, b"x" * 92), HEAD)
            assert appended.kept is Kept.YES
            assert (await claimed(journal, name=names[1])).standing is Standing.FULL

            async def is_forgotten(journal: Journal = journal, name: StreamName = names[0]) -> bool:
                return (await claimed(journal, name=name, must_exist=True)) == Claim(
                    Standing.MISSING
                )

            await until(is_forgotten)
            assert (await claimed(journal, name=names[1])).standing is Standing.NEW


async def test_readers_are_told_of_changes(journal: Journal) -> None:
    await claimed(journal)
    async with journal.watch(NAME) as changed:
        if isinstance(journal, RedisJournal):  # it tells that it listens
            await asyncio.wait_for(changed.wait(), 30)
        for step in (
            journal.append(NAME, "a", batch(1, b"x"), HEAD),
            journal.release(NAME, "a"),
        ):
            changed.clear()
            await step
            await asyncio.wait_for(changed.wait(), 30)


async def test_an_owner_learns_for_how_long_nobody_has_read(journal: Journal) -> None:
    await claimed(journal)

    async def unread_s() -> float:
        return (await journal.append(NAME, "a", Batch(0))).unread_s

    async def is_unread() -> bool:
        return await unread_s() > 0.05

    await until(is_unread)
    await journal.read(NAME, 0)
    assert await unread_s() < 0.05


async def test_without_redis_every_call_says_so_soon_and_later_ones_work() -> None:
    server = EmbeddedRedis()
    async with RedisJournal(server.url, LIMITS) as journal:
        with pytest.raises(JournalAwayError):
            await claimed(journal)
        server.start()
        try:
            assert (await claimed(journal)).standing is Standing.NEW
        finally:
            server.stop()


async def test_a_redis_that_was_restarted_is_used_at_once() -> None:
    """The connection is broken, and it knows none of the scripts."""
    server = EmbeddedRedis()
    server.start()
    async with RedisJournal(server.url, LIMITS) as journal:
        for _ in range(2):
            assert (await claimed(journal)).standing is Standing.NEW
            assert (await journal.append(NAME, "a", batch(1, b"x"), HEAD)).kept is Kept.YES
            server.child.kill()
            server.start()
        server.stop()
