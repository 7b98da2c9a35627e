"""Which replica each policy picks, and why."""

import random
from collections import Counter
from typing import get_args

import pytest

from octavo_protocol.resources.model_deployment import RoutingPolicyName
from octavo_router.policies import (
    ExpectedTTFT,
    PolicyWeights,
    ReplicaView,
    RoundRobin,
    RouteRequest,
    make_policy,
)
from octavo_router.policies.prefix_hash import prefix_key


def replica(
    name: str,
    *,
    cached: int = 0,
    queued: int = 0,
    recent: int = 0,
    running: int = 0,
    prefill: float = 1000.0,
    adapter_s: float = 0.0,
) -> ReplicaView:
    return ReplicaView(name, cached, queued, recent, running, prefill, 100.0, adapter_s)


def ttft() -> ExpectedTTFT:
    return ExpectedTTFT(random.Random(1))


@pytest.mark.parametrize("name", get_args(RoutingPolicyName))
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


def test_an_adapter_is_loaded_elsewhere_once_waiting_for_its_holder_costs_more() -> None:
    request, elsewhere = (
        RouteRequest(100, hashes=(b"x",), has_index=False),
        replica("b", adapter_s=1),
    )
    short, long = replica("a", queued=3900), replica("a", queued=4100)
    assert ttft().choose(request, [short, elsewhere]).replica.replica_id == "a"
    assert ttft().choose(request, [long, elsewhere]).replica.replica_id == "b"
    assert elsewhere.expected_s(100) == 1.1


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


def test_power_of_two_picks_the_less_loaded_of_its_draw_and_never_the_most_loaded() -> None:
    policy = make_policy("power-of-two", random.Random(1))
    replicas = [replica(name, queued=queued) for name, queued in zip("abcd", range(4), strict=True)]
    chosen = Counter(
        policy.choose(RouteRequest(1), replicas).replica.replica_id for _ in range(600)
    )
    assert set(chosen) == set("abc")
    assert chosen["a"] > chosen["b"] > chosen["c"] > 50  # expected: 300, 200, 100


def test_a_session_stays_where_it_is_until_that_replica_is_at_its_bound() -> None:
    policy = make_policy("session-affinity")
    request = RouteRequest(100, session="s1", hashes=[b"x" * 16], block_size=16)
    home = policy.choose(request, [replica(name) for name in "abcd"]).replica.replica_id
    turns = [
        policy.choose(
            RouteRequest(100 * turn, session="s1", hashes=[bytes([turn]) * 16], block_size=16),
            [replica(name, queued=100, running=1) for name in "dcba"],
        ).replica.replica_id
        for turn in range(1, 9)
    ]
    assert turns == [home] * 8

    busy = [replica(name, queued=130 if name == home else 0) for name in "abcd"]
    assert policy.choose(request, busy).replica.replica_id == home  # 130 <= 1.25 x 32.5 + 100
    busy = [replica(name, queued=150 if name == home else 0) for name in "abcd"]
    elsewhere = policy.choose(request, busy)
    assert elsewhere.replica.replica_id != home
    assert sum(cost >= 1 for cost in elsewhere.costs) == 1
    assert policy.choose(request, busy).replica == elsewhere.replica  # always the same next one


def test_sessions_and_prompts_spread_over_replicas() -> None:
    replicas = [replica(name) for name in "abcd"]
    sessions = Counter(
        make_policy("session-affinity")
        .choose(RouteRequest(9, session=f"session {number}"), replicas)
        .replica.replica_id
        for number in range(400)
    )
    assert set(sessions) == set("abcd")
    assert min(sessions.values()) > 60


def test_prompts_that_begin_alike_go_together_whatever_follows() -> None:
    policy = make_policy("prefix-hash")
    replicas = [replica(name) for name in "abcdefgh"]
    beginning = [bytes([block]) * 16 for block in range(4)]
    chosen = {
        policy.choose(
            RouteRequest(4096, hashes=[*beginning, bytes([100 + end]) * 16], block_size=512),
            replicas,
        ).replica.replica_id
        for end in range(20)
    }
    assert len(chosen) == 1


def test_a_growing_chat_changes_its_key_only_when_it_doubles() -> None:
    chain = [bytes([block]) * 16 for block in range(80)]
    keys = [
        prefix_key(RouteRequest(16 * end, hashes=chain[:end], block_size=16)) for end in range(81)
    ]
    lengths = [None if key is None else chain.index(key) + 1 for key in keys]
    assert lengths == [None, 1, 2, 2, *[4] * 4, *[8] * 8, *[16] * 16, *[32] * 32, *[64] * 17]


@pytest.mark.parametrize("name", ["prefix-hash", "session-affinity"])
def test_a_request_without_a_key_goes_by_load(name: RoutingPolicyName) -> None:
    replicas = [replica("a", queued=5), replica("b"), replica("c", queued=9)]
    choice = make_policy(name).choose(RouteRequest(10), replicas)
    assert choice.replica.replica_id == "b"


def test_without_an_index_expected_ttft_keeps_prompts_together_by_their_hash() -> None:
    """While nothing is known of caches, load alone would scatter what begins alike."""
    replicas = [replica(name) for name in "abcdefgh"]
    requests = [
        RouteRequest(64, hashes=[bytes([key]) * 16], block_size=64, has_index=False)
        for key in range(20)
    ]
    by_hash = make_policy("prefix-hash")
    for request in requests:
        assert ttft().choose(request, replicas) == by_hash.choose(request, replicas)


def test_weights_price_what_a_replica_lacks() -> None:
    replicas = [replica("holder", cached=1000, queued=1500), replica("idle")]
    request = RouteRequest(1000)
    dear = ExpectedTTFT(random.Random(1), PolicyWeights(uncached=2))
    cheap = ExpectedTTFT(random.Random(1), PolicyWeights(uncached=1))
    assert dear.choose(request, replicas).replica.replica_id == "holder"
    assert cheap.choose(request, replicas).replica.replica_id == "idle"
