"""Which replica each policy picks, and why."""

import random
from collections import Counter

import pytest

from octavo_protocol.resources.model_deployment import RoutingPolicyName
from octavo_router.policies import ExpectedTTFT, ReplicaView, RoundRobin, RouteRequest, make_policy


def replica(
    name: str,
    *,
    cached: int = 0,
    queued: int = 0,
    recent: int = 0,
    running: int = 0,
    prefill: float = 1000.0,
) -> ReplicaView:
    return ReplicaView(name, cached, queued, recent, running, prefill, 100.0)


def ttft() -> ExpectedTTFT:
    return ExpectedTTFT(random.Random(1))


@pytest.mark.parametrize("name", ["expected-ttft", "least-load", "round-robin"])
def test_a_single_replica_is_chosen_by_every_policy(name: RoutingPolicyName) -> None:
    policy = make_policy(name, random.Random(1))
    choice = policy.choose(RouteRequest(10), [replica("a")])
    assert policy.name == name
    assert choice.replica.replica_id == "a"
    assert len(choice.costs) == 1


def test_the_longer_cached_prefix_wins_among_idle_replicas() -> None:
    choice = ttft().choose(RouteRequest(1000), [replica("a", cached=16), replica("b", cached=512)])
    assert choice.replica.replica_id == "b"
    assert choice.costs == (4 * 0.984, 4 * 0.488)


def test_a_queue_that_costs_more_than_recomputing_sends_the_request_away() -> None:
    request = RouteRequest(1000)
    hot, hotter = replica("hot", cached=900, queued=3500), replica("hot", cached=900, queued=3700)
    assert ttft().choose(request, [hot, replica("cold")]).replica.replica_id == "hot"
    assert ttft().choose(request, [hotter, replica("cold")]).replica.replica_id == "cold"


def test_a_faster_replica_wins_over_a_slow_one_with_some_cache() -> None:
    replicas = [replica("slow", cached=400, prefill=100.0), replica("fast", prefill=10_000.0)]
    assert ttft().choose(RouteRequest(1000), replicas).replica.replica_id == "fast"


def test_running_sequences_cost_their_share_of_a_step() -> None:
    replicas = [replica("busy", running=32), replica("idle")]
    choice = ttft().choose(RouteRequest(100), replicas)
    assert choice.replica.replica_id == "idle"
    assert list(choice.costs) == pytest.approx([0.72, 0.4])


def test_a_short_shared_prefix_does_not_crowd_one_idle_replica() -> None:
    replicas = [replica("full", cached=16, recent=2000), replica("empty")]
    assert ttft().choose(RouteRequest(200), replicas).replica.replica_id == "empty"
    replicas = [replica("full", cached=160, recent=2000), replica("empty")]
    assert ttft().choose(RouteRequest(200), replicas).replica.replica_id == "full"


def test_ties_spread_at_random() -> None:
    policy = ttft()
    replicas = [replica(name) for name in "abcd"]
    chosen = Counter(
        policy.choose(RouteRequest(0), replicas).replica.replica_id for _ in range(400)
    )
    assert set(chosen) == set("abcd")
    assert min(chosen.values()) > 60


def test_a_first_block_shared_by_all_requests_does_not_send_all_to_one_replica() -> None:
    """Longest match wins would: the replica that served the first request has the block."""
    policy = ttft()
    queued = {"a": 0, "b": 0, "c": 0}
    for _ in range(60):
        replicas = [
            replica(name, cached=16 if name == "a" else 0, queued=tokens)
            for name, tokens in queued.items()
        ]
        chosen = policy.choose(RouteRequest(200), replicas).replica
        queued[chosen.replica_id] += 200 - chosen.num_cached_tokens
    assert max(queued.values()) - min(queued.values()) <= 200


def test_least_load_looks_at_the_queue_first_and_at_running_sequences_next() -> None:
    policy = make_policy("least-load", random.Random(1))
    replicas = [
        replica("a", running=3),
        replica("b", running=1, cached=0),
        replica("c", queued=50, cached=90),
    ]
    assert policy.choose(RouteRequest(100), replicas).replica.replica_id == "b"


def test_round_robin_takes_turns_while_replicas_come_and_go() -> None:
    policy = RoundRobin()

    def choose(names: str) -> str:
        return policy.choose(RouteRequest(1), [replica(name) for name in names]).replica.replica_id

    assert [choose("cab") for _ in range(4)] == ["a", "b", "c", "a"]
    assert [choose("acd"), choose("acd"), choose("bd")] == ["c", "d", "b"]
