"""Every policy under random fleets and requests."""

import math
import random
from typing import get_args

import hypothesis.strategies as st
from hypothesis import given, settings

from octavo_protocol.resources.model_deployment import RoutingPolicyName
from octavo_router.policies import ReplicaView, RouteRequest, make_policy
from octavo_router.policies.bounded_hashing import LOAD_FACTOR, load_s

NAMES: tuple[RoutingPolicyName, ...] = get_args(RoutingPolicyName)
TOKENS = st.integers(0, 100_000)
RATES = st.floats(0.1, 1e6)


def fleets() -> st.SearchStrategy[list[ReplicaView]]:
    """Replicas of different names, loads, caches and speeds."""
    view = st.builds(
        ReplicaView,
        replica_id=st.text("abcdef", min_size=1, max_size=4),
        num_cached_tokens=TOKENS,
        num_queued_tokens=TOKENS,
        num_recent_tokens=TOKENS,
        num_running=st.integers(0, 300),
        prefill_tokens_per_s=RATES,
        decode_tokens_per_s=RATES,
    )
    return st.lists(view, min_size=1, max_size=12, unique_by=lambda each: each.replica_id)


def requests() -> st.SearchStrategy[RouteRequest]:
    return st.builds(
        RouteRequest,
        num_prompt_tokens=TOKENS,
        session=st.none() | st.text(min_size=1),
        hashes=st.lists(st.binary(min_size=16, max_size=16), max_size=6),
        block_size=st.sampled_from([16, 512, 4096]),
        has_index=st.booleans(),
    )


@given(st.sampled_from(NAMES), fleets(), requests(), st.integers(0, 9))
@settings(max_examples=300, deadline=None)
def test_every_policy_picks_a_candidate_and_the_same_one_with_the_same_draws(
    name: RoutingPolicyName, replicas: list[ReplicaView], request: RouteRequest, seed: int
) -> None:
    first, second = (make_policy(name, random.Random(seed)) for _ in range(2))
    choices = [first.choose(request, replicas) for _ in range(3)]
    assert choices == [second.choose(request, replicas) for _ in range(3)]
    for choice in choices:
        assert choice.replica in replicas
        assert len(choice.costs) == len(replicas)
        assert all(math.isfinite(cost) and cost >= 0 for cost in choice.costs)


@given(st.sampled_from(["prefix-hash", "session-affinity"]), fleets(), requests())
@settings(max_examples=300, deadline=None)
def test_hashing_policies_stay_within_a_quarter_and_the_request_above_the_mean(
    name: RoutingPolicyName, replicas: list[ReplicaView], request: RouteRequest
) -> None:
    chosen = make_policy(name, random.Random(0)).choose(request, replicas).replica
    if request.hashes or (name == "session-affinity" and request.session is not None):
        mean = sum(map(load_s, replicas)) / len(replicas)
        own = request.num_prompt_tokens / chosen.prefill_tokens_per_s
        assert load_s(chosen) <= LOAD_FACTOR * mean + own


@given(
    st.sampled_from(["prefix-hash", "session-affinity"]),
    st.integers(2, 12),
    st.lists(st.integers(0, 2), min_size=1, max_size=150),
)
@settings(max_examples=100, deadline=None)
def test_a_hot_key_does_not_overload_its_replica(
    name: RoutingPolicyName, num_replicas: int, keys: list[int]
) -> None:
    """Prompts of equal length that nobody computes: queues only grow."""
    policy = make_policy(name, random.Random(0))
    queued = {f"replica-{index}": 0 for index in range(num_replicas)}
    for key in keys:
        views = [ReplicaView(each, 0, tokens, 0, 0, 1.0, 1.0) for each, tokens in queued.items()]
        request = RouteRequest(64, session=f"s{key}", hashes=[bytes([key]) * 16], block_size=64)
        queued[policy.choose(request, views).replica.replica_id] += 64
        mean = sum(queued.values()) / num_replicas
        assert max(queued.values()) <= 1.25 * mean + 2 * 64


@given(fleets(), st.binary(min_size=16, max_size=16), st.integers(0, 11))
@settings(max_examples=200, deadline=None)
def test_a_replica_that_leaves_moves_only_its_own_keys(
    replicas: list[ReplicaView], block_hash: bytes, leaving: int
) -> None:
    idle = [ReplicaView(each.replica_id, 0, 0, 0, 0, 1.0, 1.0) for each in replicas]
    policy = make_policy("prefix-hash")
    request = RouteRequest(64, hashes=[block_hash], block_size=64)
    before = policy.choose(request, idle).replica
    gone = idle[leaving % len(idle)]
    rest = [each for each in idle if each is not gone]
    if rest and before is not gone:
        assert policy.choose(request, rest).replica == before
