"""Routing policies: one file each, pure and synchronous."""

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


def make_policy(name: str) -> RoutingPolicy:
    """A policy by its name. Raises KeyError for an unknown one."""
    return {
        ExpectedTTFT.name: ExpectedTTFT,
        LeastLoad.name: LeastLoad,
        RoundRobin.name: RoundRobin,
    }[name]()
