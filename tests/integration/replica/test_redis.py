"""A replica's presence in Redis, while Redis comes and goes."""

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest
import redis
from tests.fakes.tiny_model import tiny_tokenizer
from tests.integration.replica.conftest import StartReplica
from tests.integration.replica.harness import MAX_MODEL_LEN, MODEL, Replica, eventually

from octavo.local.redis_server import EmbeddedRedis
from octavo_protocol.hashing import HashIdentity, block_hashes
from octavo_protocol.keys import EVENT_FIELD, RECORD_TTL_S, Keys
from octavo_protocol.records import (
    BlocksStored,
    KVEventBatch,
    KVSnapshot,
    ReplicaRecord,
    decode_batch,
    decode_record,
    decode_snapshot,
)

pytestmark = [pytest.mark.integration]

KEYS = Keys("default", "default")
COMPLETIONS = "/v1/completions"
BLOCK_SIZE = 16


class Store:
    """The embedded server and what the replica wrote into it."""

    def __init__(self, server: EmbeddedRedis) -> None:
        self.server = server
        self.client = redis.Redis.from_url(server.url)

    def record(self) -> ReplicaRecord | None:
        try:
            raw = cast(bytes | None, self.client.get(KEYS.replica("replica")))
        except redis.exceptions.ConnectionError:
            return None
        return decode_record(raw) if raw else None

    def keys(self) -> set[bytes]:
        return set(cast(list[bytes], self.client.keys("*")))

    def batches(self, incarnation: str) -> list[KVEventBatch]:
        entries = cast(list[tuple[bytes, Any]], self.client.xrange(KEYS.events(incarnation)))
        return [decode_batch(fields[EVENT_FIELD]) for _, fields in entries]

    def snapshot(self, incarnation: str) -> KVSnapshot | None:
        raw = cast(bytes | None, self.client.get(KEYS.snapshot(incarnation)))
        return decode_snapshot(raw) if raw else None

    def known_hashes(self, incarnation: str) -> set[bytes]:
        """What a consumer knows that reads the snapshot and the batches after it."""
        snapshot = self.snapshot(incarnation)
        if snapshot is None:
            return set()
        hashes = set(snapshot.hashes)
        for batch in self.batches(incarnation):
            for event in batch.events if batch.seq > snapshot.seq else []:
                assert isinstance(event, BlocksStored)
                hashes |= set(event.hashes)
        return hashes

    def kill(self) -> None:
        pid = self.server.child.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert self.server.child.wait(10)


@pytest.fixture
def store() -> Iterator[Store]:
    with EmbeddedRedis() as server:
        yield Store(server)


def ask(replica: Replica, prompt: str, max_tokens: int = 4) -> list[bytes]:
    """Asks, and returns the hashes of the prompt's full blocks as a router computes them."""
    body = {"prompt": prompt, "max_tokens": max_tokens}
    answer = replica.http.post(COMPLETIONS, json=body)
    assert answer.status_code == 200, answer.text
    extra = HashIdentity(f"{MODEL}@fake").extra()
    return block_hashes(tiny_tokenizer().encode(prompt), BLOCK_SIZE, extra)


def test_record_stream_and_snapshot_appear(start_replica: StartReplica, store: Store) -> None:
    replica = start_replica(redis_url=store.server.url).wait_ready()

    record = store.record()
    assert record is not None
    assert record.url == replica.url
    assert (record.replica_id, record.model) == ("replica", MODEL)
    assert record.served_names == [MODEL, "tiny-alias"]
    assert (record.block_size, record.max_model_len) == (BLOCK_SIZE, MAX_MODEL_LEN)
    assert record.cache_model == f"{MODEL}@fake"
    assert record.tokenizer_id == tiny_tokenizer().bundle.id
    assert (record.ready, record.draining) == (True, False)
    assert 0 < store.client.ttl(KEYS.replica("replica")) <= RECORD_TTL_S
    assert store.client.zrange(KEYS.replicas, 0, -1) == [b"replica"]
    incarnation = record.incarnation
    snapshot = eventually(lambda: store.snapshot(incarnation), "the snapshot is there")
    assert snapshot.hashes == []
    assert store.batches(incarnation)[-1].seq >= snapshot.seq


def test_cached_blocks_are_told_with_the_router_s_hashes(
    start_replica: StartReplica, store: Store
) -> None:
    replica = start_replica(redis_url=store.server.url).wait_ready()
    record = store.record()
    assert record is not None

    hashes = ask(replica, "told " * 20) + ask(replica, "other " * 20)

    assert len(hashes) > 2
    eventually(
        lambda: set(hashes) <= store.known_hashes(record.incarnation), "all blocks are known"
    )
    numbers = [batch.seq for batch in store.batches(record.incarnation)]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_record_follows_the_load(start_replica: StartReplica, store: Store) -> None:
    replica = start_replica(redis_url=store.server.url, step_s=0.05).wait_ready()
    body = {"prompt": "the dog", "max_tokens": 200, "stream": True, "n": 2}

    def running() -> int:
        record = store.record()
        return record.running if record else -1

    with replica.http.stream("POST", COMPLETIONS, json=body):
        eventually(lambda: running() == 2, "the record shows two sequences")
    eventually(lambda: running() == 0, "the record shows none")


def test_wanted_snapshot_is_written(start_replica: StartReplica, store: Store) -> None:
    replica = start_replica(redis_url=store.server.url).wait_ready()
    record = store.record()
    assert record is not None
    hashes = ask(replica, "wanted " * 20)
    wanted = KEYS.snapshot_wanted(record.incarnation)

    store.client.set(wanted, b"1")

    def has_all() -> bool:
        snapshot = store.snapshot(record.incarnation)
        return snapshot is not None and set(hashes) <= set(snapshot.hashes)

    eventually(has_all, "the snapshot has all blocks")
    assert not store.client.exists(wanted)


def test_serving_goes_on_while_redis_is_away_and_its_loss_is_made_good(
    start_replica: StartReplica, store: Store
) -> None:
    replica = start_replica(redis_url=store.server.url).wait_ready()
    record = store.record()
    assert record is not None
    hashes = ask(replica, "before " * 20)
    stop, failures, num_asked = threading.Event(), [], 0

    def keep_asking() -> None:
        nonlocal num_asked
        while not stop.is_set():
            try:
                ask(replica, f"meanwhile {num_asked} ")
            except AssertionError as error:
                failures.append(error)
            num_asked += 1

    thread = threading.Thread(target=keep_asking)
    thread.start()
    try:
        store.kill()
        hashes += ask(replica, "while away " * 15)
        eventually(lambda: "Redis is away" in replica.log, "the loss is noticed")
        assert replica.http.get("/ready").status_code == 200
        store.server.start()
        eventually(store.record, "the record is back")
        eventually(
            lambda: set(hashes) <= store.known_hashes(record.incarnation),
            "what was cached before and meanwhile is known",
        )
        eventually(lambda: num_asked > 10, "requests are answered all the while")
    finally:
        stop.set()
        thread.join()

    assert failures == []
    again = store.record()
    assert again is not None
    assert again.incarnation == record.incarnation
    hashes = ask(replica, "after " * 20)
    eventually(lambda: set(hashes) <= store.known_hashes(record.incarnation), "events flow again")


def test_flushed_redis_is_filled_again(start_replica: StartReplica, store: Store) -> None:
    replica = start_replica(redis_url=store.server.url).wait_ready()
    record = store.record()
    assert record is not None
    hashes = ask(replica, "flushed " * 20)

    store.client.flushall()

    eventually(lambda: set(hashes) <= store.known_hashes(record.incarnation), "all is back")
    eventually(store.record, "the record is back")


def test_graceful_stop_removes_the_keys(start_replica: StartReplica, store: Store) -> None:
    replica = start_replica(redis_url=store.server.url).wait_ready()
    ask(replica, "stopped " * 20)
    assert store.keys()

    replica.terminate()

    assert replica.wait_exit() == 0
    assert store.keys() == set()


def test_draining_is_in_the_record_before_the_stop(
    start_replica: StartReplica, store: Store
) -> None:
    replica = start_replica(redis_url=store.server.url, step_s=0.1).wait_ready()
    body = {"prompt": "the dog", "max_tokens": 30, "stream": True}
    with replica.http.stream("POST", COMPLETIONS, json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        replica.terminate()
        eventually(
            lambda: (record := store.record()) is not None and record.draining,
            "the record says draining",
        )
        assert list(lines)[-2] == "data: [DONE]"

    assert replica.wait_exit() == 0
    assert store.keys() == set()


def test_stop_does_not_wait_for_a_redis_that_is_away(
    start_replica: StartReplica, store: Store
) -> None:
    replica = start_replica(redis_url=store.server.url).wait_ready()
    store.kill()
    eventually(lambda: "Redis is away" in replica.log, "the loss is noticed")

    replica.terminate()

    assert replica.wait_exit() == 0
    assert "Traceback" not in replica.log


def test_killed_replica_fades_from_redis(start_replica: StartReplica, store: Store) -> None:
    replica = start_replica(redis_url=store.server.url).wait_ready()

    replica.process.kill()
    replica.wait_exit()

    assert store.record() is not None
    eventually(lambda: store.record() is None, "the record expires", RECORD_TTL_S + 60)


def test_death_of_the_engine_removes_the_replica(start_replica: StartReplica, store: Store) -> None:
    replica = start_replica(redis_url=store.server.url).wait_ready()

    replica.kill_engine()

    assert replica.wait_exit() == 1
    assert store.keys() == set()


def test_replica_waits_for_redis_to_be_ready_but_serves(
    start_replica: StartReplica, store: Store
) -> None:
    store.kill()
    replica = start_replica(redis_url=store.server.url)
    eventually(lambda: "Redis is away" in replica.log, "the replica looks for Redis")
    assert replica.http.get("/ready").json()["stage"] == "registering"
    ask(replica, "unregistered")

    store.server.start()

    replica.wait_ready()
    assert store.record() is not None


def test_death_of_the_engine_is_noticed_without_redis_too(
    start_replica: StartReplica, store: Store
) -> None:
    store.kill()
    replica = start_replica(redis_url=store.server.url)
    eventually(lambda: "Redis is away" in replica.log, "the replica looks for Redis")

    replica.kill_engine()

    assert replica.wait_exit() == 1


def test_stop_while_loading_leaves_no_trace(start_replica: StartReplica, store: Store) -> None:
    replica = start_replica(redis_url=store.server.url, start_s=2.0)
    eventually(lambda: replica.status("/health") == 200, "the replica listens")

    replica.terminate()

    assert replica.wait_exit() == 0
    assert store.keys() == set()
    assert "Traceback" not in replica.log


def test_failed_start_with_redis_says_why(start_replica: StartReplica, store: Store) -> None:
    replica = start_replica(redis_url=store.server.url, failure="the model does not fit")

    assert replica.wait_exit() == 1
    assert "ConfigError: the model does not fit" in replica.log
    assert store.keys() == set()
