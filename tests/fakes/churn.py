"""A day of change in a cluster, compressed, through the router's own objects; no I/O, no clock.

Deployments come and go, replicas are replaced (some while they answer), fill and evict their
caches, lose events, break connections and lie about what they cached; every request has an id and
a session of its own; tenants come without end and wait in the fair queue. Half of the deployments
stay, so that what a replica leaves behind in them adds up. `Sample`s are taken at rest, when all
requests have ended and all replicas have left: whatever memory is taken then is left over, and is
to be flat; no name of what was there may be found any more in anything that is kept.

Each tick is a minute of the day. The numbers of one tick do not grow with the day.
"""

import gc
import inspect
import random
import re
import tracemalloc
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

from octavo_protocol.hashing import HASH_BYTES
from octavo_protocol.keys import EVENT_FIELD, RECORD_TTL_S
from octavo_protocol.records import (
    BlocksRemoved,
    BlocksStored,
    DeploymentRecord,
    KVEventBatch,
    KVSnapshot,
    ReplicaRecord,
    encode,
)
from octavo_router.admission.fair_queue import FairQueue, QueueFullError, Waiter
from octavo_router.decisions import Decider, Decision, PromptKey
from octavo_router.deployment import Deployment
from octavo_router.deployments import Deployments
from octavo_router.health import Attempt, Cause
from octavo_router.metrics import RouterMetrics
from octavo_router.prefix_index import IndexBudget

TICK_S = 60.0
_BLOCK = 16
_NAME = re.compile(r"(replica|session|request|tenant)-\d+")
_POLICIES = ("expected-ttft", "prefix-hash", "session-affinity", "least-load")


@dataclass(frozen=True, slots=True)
class Sample:
    """At rest. num_bytes: as tracemalloc counts, 0 where it is off. num_series: of the metrics.
    num_left: names of replicas, sessions and requests that the deployments still refer to.
    num_entries: of the prefix index, before.
    """

    tick: int
    num_bytes: int
    num_objects: int
    num_series: int
    num_left: int
    num_entries: int


class _Clock:
    """Callable: seconds."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(slots=True)
class _Replica:
    record: ReplicaRecord
    seq: int = 0
    cached: dict[bytes, None] = field(default_factory=dict)


@dataclass(slots=True)
class _InFlight:
    """A request on its way. ends_at: the tick in which its answer ends or breaks."""

    deployment: Deployment
    decision: Decision
    attempt: Attempt
    ticket: int
    ends_at: int


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of one tick, and of what there is at a time."""

    num_deployments: int = 6
    num_replicas: int = 4
    num_requests: int = 40
    max_cached: int = 400
    prompt_blocks: int = 24


class Churn:
    """`run` goes through ticks; `sample` tells what is kept."""

    def __init__(self, seed: int = 0, size: Size = Size()) -> None:
        self._rng = random.Random(seed)
        self._size = size
        self._clock = _Clock()
        self._tick = 0
        self._next_number = 0
        self._budget = IndexBudget(64 * 2**20)
        self.metrics = RouterMetrics()
        self.deployments = Deployments(budget=self._budget, clock=self._clock)
        self._queue = FairQueue(max_requests=20, max_tokens=20_000)
        self._decider = Decider(cast(Any, None), self.metrics)  # it tokenizes nothing here
        self._registry: dict[str, DeploymentRecord] = {}
        self._replicas: dict[str, dict[str, _Replica]] = {}
        self._in_flight: deque[_InFlight] = deque()

    def run(self, num_ticks: int) -> None:
        for _ in range(num_ticks):
            self._tick += 1
            self._clock.now += TICK_S
            self._change_deployments()
            for name in list(self._registry):
                self._change_replicas(name)
                self._change_caches(name)
            self._requests()
            self._scrape()

    def sample(self) -> Sample:
        num_entries = self._budget.num_entries
        self._rest()
        assert not self._budget.num_entries
        gc.collect()
        text = self.metrics.render().decode()
        return Sample(
            tick=self._tick,
            num_bytes=tracemalloc.get_traced_memory()[0],
            num_objects=len(gc.get_objects()),
            num_series=sum(not line.startswith("#") for line in text.splitlines()),
            num_left=_num_names([self.deployments, self._queue]),
            num_entries=num_entries,
        )

    def check(self) -> None:
        """Asserts what the objects say of themselves."""
        self._queue.check()
        for deployment in self.deployments:
            deployment.index.check()

    def _new_name(self, what: str) -> str:
        self._next_number += 1
        return f"{what}-{self._next_number}"

    def _change_deployments(self) -> None:
        """One of the newer half leaves every ten minutes, another comes."""
        if self._tick % 10 == 0:
            gone = self._rng.choice(list(self._registry)[self._size.num_deployments // 2 :])
            del self._registry[gone], self._replicas[gone]
        while len(self._registry) < self._size.num_deployments:
            name = self._new_name("model")
            self._registry[name] = DeploymentRecord(
                "default", name, [name], self._rng.choice(_POLICIES), self._clock.now
            )
            self._replicas[name] = {}
        self.deployments.take_registry(self._registry.values())

    def _change_replicas(self, name: str) -> None:
        replicas = self._replicas[name]
        if replicas and self._rng.random() < 0.2:
            del replicas[self._rng.choice(list(replicas))]
        while len(replicas) < self._size.num_replicas:
            made = self._new_name("replica")
            replicas[made] = _Replica(_record(made, name))
        for each in replicas.values():
            each.record.waiting_tokens = self._rng.randrange(5000)
        deployment = self._deployment(name)
        self.deployments.take_replicas(
            deployment, {key: encode(each.record) for key, each in replicas.items()}
        )
        deployment.follow_caches()
        for incarnation in deployment.blocks.waiting():
            replica = replicas[incarnation]
            snapshot = encode(KVSnapshot(replica.seq, list(replica.cached)))
            deployment.blocks.take_snapshot(incarnation, snapshot)

    def _change_caches(self, name: str) -> None:
        """New blocks, evicted ones, and now and then a batch that is lost."""
        blocks = self._deployment(name).blocks
        for incarnation, replica in self._replicas[name].items():
            stored = [self._rng.randbytes(HASH_BYTES) for _ in range(self._size.prompt_blocks)]
            replica.cached.update(dict.fromkeys(stored))
            num_over = max(0, len(replica.cached) - self._size.max_cached)
            evicted = list(replica.cached)[:num_over]
            for each in evicted:
                del replica.cached[each]
            replica.seq += 1
            batch = KVEventBatch(replica.seq, [BlocksStored(None, stored), BlocksRemoved(evicted)])
            if self._rng.random() > 0.01:
                blocks.take_batch(incarnation, {EVENT_FIELD: encode(batch)})

    def _requests(self) -> None:
        names = list(self._registry)
        for number in range(self._size.num_requests):
            self._wait_in_line()
            self._clock.now += TICK_S / self._size.num_requests / 2
            self._send(self._rng.choice(names))
            if number % 4 == 0:
                self._end_due()
        self._end_due()

    def _wait_in_line(self) -> None:
        """A request of a new tenant joins the queue, which may have no room; another goes on."""
        tokens, priority = self._rng.randrange(2000), self._rng.randrange(3)
        with suppress(QueueFullError):
            self._queue.push(Waiter(self._new_name("tenant"), tokens, priority=priority))
        if self._queue.num_requests > self._rng.randrange(20):
            self._queue.pop()

    def _send(self, name: str) -> None:
        deployment = self._deployment(name)
        replicas = list(self._replicas[name].values())
        prompt = self._prompt(self._rng.choice(replicas))
        decision = self._decider.choose(deployment, self._new_name("request"), name, prompt)
        ticket = deployment.loads.sent(decision.replica.incarnation, prompt.num_tokens)
        attempt = deployment.replicas.health.sent(decision.replica.incarnation, decision.expected_s)
        deployment.stalls.wait(attempt, lambda: None)
        ends_at = self._tick + self._rng.choice((0, 0, 1, 3))
        self._in_flight.append(_InFlight(deployment, decision, attempt, ticket, ends_at))

    def _prompt(self, replica: _Replica) -> PromptKey:
        """Half of it cached somewhere, half new."""
        num_each = self._size.prompt_blocks // 2
        known = list(replica.cached)[:num_each]
        new = [self._rng.randbytes(HASH_BYTES) for _ in range(num_each)]
        return PromptKey(
            hashes=(*known, *new),
            num_tokens=(len(known) + num_each) * _BLOCK,
            block_size=_BLOCK,
            session=self._new_name("session"),
        )

    def _end_due(self) -> None:
        """Answers that end, also of replicas and deployments that have left meanwhile."""
        for _ in range(len(self._in_flight)):
            each = self._in_flight.popleft()
            if each.ends_at > self._tick:
                self._in_flight.append(each)
            else:
                self._end(each)

    def _end(self, each: _InFlight) -> None:
        deployment, incarnation = each.deployment, each.decision.replica.incarnation
        deployment.loads.first_token(incarnation, each.ticket)
        deployment.retries.request()
        luck = self._rng.random()
        is_gone = incarnation not in self._replicas.get(deployment.keys.deployment, {})
        health = deployment.replicas.health
        deployment.stalls.done(each.attempt)
        deployment.stalls.heard(incarnation)
        if is_gone or luck < 0.05:
            health.failed(each.attempt, Cause.BROKEN)
        else:
            health.first_byte(each.attempt)
            health.answered(each.attempt)
        health.ended(each.attempt)
        if luck >= 0.05:
            predicted = each.decision.num_cached_tokens
            actual = 0 if luck < 0.3 else predicted
            deployment.compare_prediction(each.decision.replica, predicted, actual)
        self.metrics.answered(deployment.name, 200 if luck >= 0.05 else 503)
        deployment.loads.ended(incarnation, each.ticket)

    def _rest(self) -> None:
        """All requests end, all replicas leave; they come again in the next tick."""
        for replicas in self._replicas.values():
            replicas.clear()
        while self._queue.pop() is not None:
            pass
        while self._in_flight:
            self._end(self._in_flight.popleft())
        for _ in range(2):
            self._clock.now += RECORD_TTL_S
            for deployment in self.deployments:
                self.deployments.take_replicas(deployment, {})
                deployment.follow_caches()
        self._scrape()

    def _scrape(self) -> None:
        self.metrics.measure_deployments(
            {each.name: len(each.replicas) for each in self.deployments}
        )

    def _deployment(self, name: str) -> Deployment:
        return self.deployments.find(name)


def _record(name: str, model: str) -> ReplicaRecord:
    return ReplicaRecord(
        replica_id=name,
        incarnation=name,
        url="",
        model=model,
        served_names=[model],
        cache_model=model,
        block_size=_BLOCK,
        num_blocks=1000,
        max_model_len=4096,
        prefill_tokens_per_s=5000.0,
        decode_tokens_per_s=500.0,
    )


def _num_names(root: object) -> int:
    """Names of replicas, sessions and requests among all that can be reached from `root`."""
    seen = {id(root)}
    level, names = [root], set()
    while level:
        keys = [key for each in level if isinstance(each, dict) for key in each]
        level = [each for each in (*gc.get_referents(*level), *keys) if id(each) not in seen]
        level = [each for each in level if not (inspect.isroutine(each) or inspect.isclass(each))]
        level = [each for each in level if not inspect.ismodule(each)]
        seen.update(map(id, level))
        names |= {each for each in level if isinstance(each, str) and _NAME.fullmatch(each)}
    return len(names)


def growth(figures: Sequence[float]) -> float:
    """The last third's median over that of the third before it, less one."""
    third = len(figures) // 3
    before, last = (sorted(part)[third // 2] for part in (figures[third:-third], figures[-third:]))
    return last / before - 1


def sampled(churn: Churn, num_ticks: int, num_samples: int) -> Iterator[Sample]:
    """Runs, and stops for samples on the way."""
    for _ in range(num_samples):
        churn.run(num_ticks // num_samples)
        yield churn.sample()
