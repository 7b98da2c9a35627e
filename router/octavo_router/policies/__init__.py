"""Routing policies: one file each, pure and synchronous."""

import random

from octavo_protocol.resources.model_deployment import RoutingPolicyName
from octavo_router.policies.base import Choice, ReplicaView, RouteRequest, RoutingPolicy
from octavo_router.policies.expected_ttft import ExpectedTTFT
from octavo_router.policies.least_load import LeastLoad
from octavo_router.policies.power_of_two import PowerOfTwo
from octavo_router.policies.prefix_hash import PrefixHash
from octavo_router.policies.round_robin import RoundRobin
from octavo_router.policies.session_affinity import SessionAffinity
from octavo_router.policies.weights import DEFAULT_WEIGHTS, PolicyWeights

__all__ = [
    "Choice",
    "ExpectedTTFT",
    "LeastLoad",
    "PolicyWeights",
    "PowerOfTwo",
    "PrefixHash",
    "ReplicaView",
    "RoundRobin",
    "RouteRequest",
    "RoutingPolicy",
    "SessionAffinity",
    "make_policy",
]


def make_policy(
    name: RoutingPolicyName,
    rng: random.Random | None = None,
    weights: PolicyWeights = DEFAULT_WEIGHTS,
) -> RoutingPolicy:
    """A fresh policy by its name. rng: for its draws; None = a new one."""
    match name:
        case "expected-ttft":
            return ExpectedTTFT(rng, weights)
        case "least-load":
            return LeastLoad(rng)
        case "power-of-two":
            return PowerOfTwo(rng)
        case "prefix-hash":
            return PrefixHash(rng)
        case "round-robin":
            return RoundRobin()
        case "session-affinity":
            return SessionAffinity(rng)
