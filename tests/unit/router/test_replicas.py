"""Which replicas may be used, how many retries there are, and whose entries are believed."""

from tests.fakes.fake_presence import new_record

from octavo_router.health import Cause
from octavo_router.replicas import ReplicaSet
from octavo_router.retry_budget import RetryBudget
from octavo_router.trust import MAX_LIES, PredictionTrust


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def ids(replicas: ReplicaSet, model: str | None = None, **options: list[str]) -> list[str]:
    return sorted(record.replica_id for record in replicas.usable(model, **options))


def test_only_ready_replicas_of_the_model_are_usable() -> None:
    replicas = ReplicaSet(Clock())
    gone = replicas.replace(
        [
            new_record("a"),
            new_record("other", served_names=["other"]),
            new_record("loading", ready=False),
            new_record("leaving", draining=True),
        ]
    )
    assert gone == set()
    assert ids(replicas, "fake") == ["a"]
    assert ids(replicas) == ["a", "other"]


def test_replace_tells_which_incarnations_are_gone() -> None:
    replicas = ReplicaSet(Clock())
    old, new = new_record("a"), new_record("a")
    replicas.replace([old])
    assert replicas.replace([new]) == {old.incarnation}
    assert ids(replicas) == ["a"]


def test_a_failed_replica_is_left_out_until_a_request_tries_it() -> None:
    clock = Clock()
    replicas = ReplicaSet(clock)
    bad, good = new_record("bad"), new_record("good")
    replicas.replace([bad, good])

    replicas.health.failed(replicas.health.sent(bad.incarnation, 1.0), Cause.BROKEN)
    assert ids(replicas) == ["good"]
    clock.now = 0.6
    assert ids(replicas) == ["bad", "good"]
    trial = replicas.health.sent(bad.incarnation, 1.0)
    assert ids(replicas) == ["good"]
    replicas.health.answered(trial)
    assert ids(replicas) == ["bad", "good"]


def test_a_failed_replica_is_better_than_none() -> None:
    replicas = ReplicaSet(Clock())
    only = new_record("only")
    replicas.replace([only])
    replicas.health.failed(replicas.health.sent(only.incarnation, 1.0), Cause.BROKEN)
    assert ids(replicas) == ["only"]
    assert ids(replicas, without=[only.incarnation]) == []


def test_every_replica_that_is_left_out_has_its_reason() -> None:
    clock = Clock()
    replicas = ReplicaSet(clock)
    records = [
        new_record("good"),
        new_record("bad"),
        new_record("trying"),
        new_record("tried"),
        new_record("other", served_names=["other"]),
        new_record("loading", ready=False),
        new_record("leaving", draining=True),
    ]
    replicas.replace(records)
    _, bad, trying, tried, *_ = [record.incarnation for record in records]
    replicas.health.failed(replicas.health.sent(trying, 1.0), Cause.BROKEN)
    clock.now = 0.5
    replicas.health.sent(trying, 1.0)
    replicas.health.failed(replicas.health.sent(bad, 1.0), Cause.BROKEN)
    clock.now = 0.6
    usable = replicas.usable("fake", without=[tried])
    assert [record.replica_id for record in usable] == ["good"]
    assert replicas.left_out("fake", len(usable), without=[tried]) == {
        "bad": "ejected: broken, 0.4 s left",
        "trying": "ejected: broken, on trial",
        "tried": "tried before",
        "other": "serves other models",
        "loading": "not ready",
        "leaving": "draining",
    }
    assert replicas.left_out("fake", len(records)) == {}


def test_the_retry_budget_ends_and_comes_back_with_time_and_requests() -> None:
    clock = Clock()
    budget = RetryBudget(clock)
    assert [budget.retry() for _ in range(101)] == [True] * 100 + [False]
    clock.now = 0.15
    assert [budget.retry(), budget.retry()] == [True, False]
    for _ in range(5):
        budget.request()
    assert budget.retry()


def test_a_replica_is_distrusted_after_lies_in_a_row_only() -> None:
    trust = PredictionTrust()
    lies = [trust.report("i", 512, 0, 16) for _ in range(MAX_LIES - 1)]
    assert not any(lies)
    assert not trust.report("i", 512, 496, 16)  # one block less is no lie, and ends the row
    assert [trust.report("i", 512, 0, 16) for _ in range(MAX_LIES)][-1]
    assert not trust.report("i", 512, 0, 16)
