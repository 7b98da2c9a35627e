"""One deployment as this router knows it: its replicas, their loads and caches, its policy."""

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import get_args

import msgspec

from octavo_protocol.errors import UnavailableError
from octavo_protocol.keys import RECORD_TTL_S, Keys, deployment_field
from octavo_protocol.records import ReplicaRecord, decode_record
from octavo_protocol.resources.model_deployment import RoutingPolicyName
from octavo_router.adapters.demand import AdapterDemand
from octavo_router.cached_blocks import CachedBlocks
from octavo_router.health import MAX_EJECTED_SHARE
from octavo_router.load_tracker import LoadTracker
from octavo_router.policies import RoutingPolicy, make_policy
from octavo_router.policies.weights import DEFAULT_WEIGHTS, PolicyWeights
from octavo_router.prefix_index import IndexBudget, MemoryPrefixIndex
from octavo_router.replicas import ReplicaSet
from octavo_router.retry_budget import RetryBudget
from octavo_router.stalls import StallWatch
from octavo_router.trust import PredictionTrust

logger = logging.getLogger(__name__)

DEFAULT_POLICY: RoutingPolicyName = "expected-ttft"


class Deployment:
    """Filled by discovery, read for every request.

    served_names: as registered; replicas may tell of more (adapters). created_at: Unix time.
    loads: of requests that are no background work, which never wait for any; background_loads: of
    that. asked_at, read_at: when a request last came for it and when its records were last read.
    """

    def __init__(
        self,
        keys: Keys,
        *,
        budget: IndexBudget,
        weights: PolicyWeights = DEFAULT_WEIGHTS,
        max_ejected_share: float = MAX_EJECTED_SHARE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.keys = keys
        self.name = deployment_field(keys.namespace, keys.deployment)
        self.served_names: tuple[str, ...] = ()
        self.created_at = 0.0
        self.replicas = ReplicaSet(clock, max_ejected_share=max_ejected_share)
        self.stalls = StallWatch(clock)
        self.loads = LoadTracker(clock)
        self.background_loads = LoadTracker(clock)
        self.demand = AdapterDemand(clock)
        self.index = MemoryPrefixIndex(budget=budget, clock=clock)
        self.blocks = CachedBlocks(self.index)
        self.policy = make_policy(DEFAULT_POLICY, weights=weights)
        self.retries = RetryBudget(clock)
        self.trust = PredictionTrust()
        self.asked_at = self.read_at = float("-inf")
        self._weights = weights
        self._clock = clock
        self._empty_since: float | None = None
        self._seen: dict[str, bytes] = {}
        self._asked_policies: dict[str, RoutingPolicy] = {}

    def set_policy(self, name: str) -> None:
        """The policy of that name, from now on. One that this release does not know is passed over
        with a warning: the operator may be newer.
        """
        if name == self.policy.name:
            return
        for known in get_args(RoutingPolicyName):
            if name == known:
                self.policy = make_policy(known, weights=self._weights)
                return
        logger.warning("deployment %s asks for the unknown policy %r", self.name, name)

    def policy_for(self, name: RoutingPolicyName | None) -> RoutingPolicy:
        """The policy that a request asks for by name; None: the deployment's."""
        if name is None or name == self.policy.name:
            return self.policy
        if name not in self._asked_policies:
            self._asked_policies[name] = make_policy(name, weights=self._weights)
        return self._asked_policies[name]

    def check(self, model: str | None) -> None:
        """Notes that a request came. Raises `UnavailableError` without a replica that is ready."""
        self.asked_at = self._clock()
        if not self.replicas.is_any_usable(model):
            if (error := self.replicas.adapters.error(model)) is not None:
                raise error
            what = f"no replica of the model {model!r} is ready" if model else "no replica is ready"
            raise UnavailableError(f"{what}; try again in a moment")

    def adapter_request(self, model: str | None) -> AbstractContextManager[None]:
        """While a request for `model` is in flight, which counts where that is an adapter."""
        if model is None or model not in self.replicas.adapters:
            return nullcontext()
        return self.demand.request(model)

    def take(self, raw: dict[str, bytes]) -> None:
        """Takes in all records of replicas there are, by replica id.

        When there is none at all the last known ones stay for one time to live: a Redis that was
        restarted empty looks like that until the replicas' next heartbeats, and a replica that is
        really gone refuses connections, which the proxy notices.
        """
        self.read_at = self._clock()
        if raw or not len(self.replicas):
            self._empty_since = None
        elif self._empty_since is None:
            self._empty_since = self.read_at
        if self._empty_since is not None and self.read_at - self._empty_since < RECORD_TTL_S:
            return
        records = []
        for replica_id, value in raw.items():
            try:
                record = decode_record(value)
            except msgspec.DecodeError as error:
                logger.warning("the record of %s cannot be read: %s", replica_id, error)
                continue
            records.append(record)
            if self._seen.get(replica_id) != value:
                self._take_loads(record)
        self._seen = raw
        for incarnation in self.replicas.replace(records):
            self.loads.drop(incarnation)
            self.background_loads.drop(incarnation)
            self.trust.drop(incarnation)
        self.stalls.keep(frozenset(record.incarnation for record in self.replicas.records))

    def _take_loads(self, record: ReplicaRecord) -> None:
        self.loads.record(
            record.incarnation,
            waiting_tokens=record.waiting_tokens - record.background_waiting_tokens,
            running=record.running - record.background_running,
        )
        self.background_loads.record(
            record.incarnation,
            waiting_tokens=record.background_waiting_tokens,
            running=record.background_running,
        )

    def loads_before(self, *, is_background: bool) -> tuple[LoadTracker, ...]:
        """Those whose work goes before a new request's; they add up."""
        return (self.loads, self.background_loads) if is_background else (self.loads,)

    def move_stalled(self) -> None:
        """Requests that wait for a silent replica go elsewhere, within the retry budget."""
        if not self.stalls.num_waiting:
            return
        usable = {record.incarnation for record in self.replicas.usable(None)}
        for attempt in self.stalls.stalled(usable):
            if self.retries.retry():
                self.stalls.give_up(attempt)

    def compare_prediction(self, record: ReplicaRecord, predicted: int, actual: int) -> bool:
        """A replica told how many tokens it had cached. True when it fell short so often that its
        entries were forgotten.
        """
        incarnation = record.incarnation
        if incarnation not in self.replicas:  # it left while it answered
            return False
        if not self.trust.report(incarnation, predicted, actual, record.block_size):
            return False
        self.blocks.distrust(incarnation)
        return True

    def follow_caches(self) -> None:
        """The index is of the replicas known now."""
        self.blocks.follow(
            record.incarnation for record in self.replicas.records if record.block_size
        )

    def close(self) -> None:
        """It is gone: its index gives the room back. Requests that run may end."""
        self.blocks.follow(())
