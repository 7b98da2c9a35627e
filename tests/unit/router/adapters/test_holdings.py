"""What a router knows of adapters: records, what it has seen since, and what was refused."""

from tests.fakes.fake_presence import new_record

from octavo_protocol.records import AdapterSource, ReplicaRecord
from octavo_router.adapters.holdings import FIRST_PAUSE_S, MAX_PAUSE_S, AdapterHoldings

SQL = AdapterSource("sql", "hf://org/sql", on_demand=True)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def holdings(*records: ReplicaRecord, clock: Clock | None = None) -> AdapterHoldings:
    made = AdapterHoldings(clock or Clock())
    made.take_sources([SQL])
    made.take_records(records)
    return made


def test_what_was_seen_since_counts_until_a_record_can_tell_it() -> None:
    clock = Clock()
    a, b = new_record("a", max_adapters=2), new_record("b", max_adapters=2, adapters=["sql"])
    adapters = holdings(a, b, clock=clock)
    assert (adapters.has(a, "sql"), adapters.has(b, "sql")) == (False, True)

    adapters.note_loaded(a.incarnation, "sql")
    adapters.note_missing(b.incarnation, "sql")
    assert (adapters.has(a, "sql"), adapters.has(b, "sql")) == (True, False)

    clock.now += 4
    assert (adapters.has(a, "sql"), adapters.has(b, "sql")) == (False, True)


def test_a_replica_without_the_adapter_says_why_it_is_no_candidate() -> None:
    able, full = new_record("able", max_adapters=2), new_record("full")
    adapters = holdings(able, full)
    assert adapters.flaw(able, "sql") is None
    assert adapters.flaw(full, "sql") == "takes no adapters"
    assert adapters.flaw(able, "other") == "serves other models"


def test_a_refusal_is_kept_for_longer_each_time_and_forgotten_with_another_source() -> None:
    clock = Clock()
    record = new_record("a", max_adapters=2)
    adapters = holdings(record, clock=clock)
    pauses = []
    for _ in range(6):
        adapters.note_refused(record.incarnation, "sql", "rank 64 is too much")
        began = clock.now
        while adapters.flaw(record, "sql") is not None:
            assert adapters.flaw(record, "sql") == "did not load the adapter: rank 64 is too much"
            clock.now += 1
        pauses.append(clock.now - began)
    assert pauses == [FIRST_PAUSE_S, 10, 20, 40, MAX_PAUSE_S, MAX_PAUSE_S]

    adapters.note_refused(record.incarnation, "sql", "rank 64 is too much")
    error = adapters.error("sql")
    assert error is not None
    assert error.message == "the adapter 'sql' cannot be loaded: rank 64 is too much"
    adapters.take_sources([SQL])
    assert adapters.error("sql") is not None
    adapters.take_sources([AdapterSource("sql", "hf://org/repaired", on_demand=True)])
    assert (adapters.error("sql"), adapters.flaw(record, "sql")) == (None, None)


def test_the_seconds_of_a_load_are_the_replica_s_own_or_the_usual_ones() -> None:
    known = new_record("known", max_adapters=1, adapter_load_s=0.2)
    new = new_record("new", max_adapters=1)
    has = new_record("has", adapters=["sql"], loaded_adapters=["sql"])
    had = new_record("had", adapters=["sql"])
    adapters = holdings(known, new, has)
    assert adapters.load_seconds([known, new, has], "sql") == [0.2, 0.2, 0.0]
    assert adapters.load_seconds([new, has, had], "sql") == [1.0, 0.0, 1.0]
    assert adapters.load_seconds([known, new], "fake") == [0.0, 0.0]
    assert adapters.load_seconds([known, new], None) == [0.0, 0.0]


def test_blocks_bind_the_version_that_most_replicas_have() -> None:
    old = new_record("a", adapters=["sql"], adapter_versions={"sql": "1"})
    new = [new_record(x, adapters=["sql"], adapter_versions={"sql": "2"}) for x in "bc"]
    adapters = holdings(old, *new)
    assert adapters.identity([old, *new], "sql") == "sql@2"
    assert adapters.identity([new_record("d")], "sql") is None
    assert adapters.identity([old, *new], "fake") == ""


def test_what_is_known_of_replicas_that_are_gone_is_forgotten() -> None:
    record = new_record("a", max_adapters=1)
    adapters = holdings(record)
    adapters.note_refused(record.incarnation, "sql", "no")
    adapters.take_records([])
    assert adapters.error("sql") is None
