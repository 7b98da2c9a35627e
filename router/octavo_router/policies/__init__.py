"""Routing policies: one file each, pure and synchronous."""

import random

from octavo_protocol.resources.model_deployment import RoutingPolicyName
from octavo_router.policies.base import Choice, ReplicaView, RouteRequest, RoutingPolicy
from octavo_router.policies.expected_ttft import ExpectedTTFT
from octavo_router.policies.least_load import LeastLoad
from octavo_router.policies.round_robin import RoundRobin

__all__ = [
    "Choice",
    "ExpectedTTFT",
    "LeastLoad",
    "ReplicaView",
    "RoundRobin",
    "RouteRequest",
    "RoutingPolicy",
    "make_policy",
]


def make_policy(name: RoutingPolicyName, rng: random.Random | None = None) -> RoutingPolicy:
    """A fresh policy by its name. rng: breaks ties; None = a new one."""
    match name:
        case "expected-ttft":
            return ExpectedTTFT(rng)
        case "least-load":
            return LeastLoad(rng)
        case "round-robin":
            return RoundRobin()
