"""What one router is made of; opened and closed as a whole, so that two fit in one process."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any

import redis.asyncio

from octavo_protocol.asgi import App, Message
from octavo_protocol.bounded_memo import BoundedMemo
from octavo_protocol.keys import Keys
from octavo_protocol.sampling_params import SamplingParams
from octavo_protocol.tasks import stop_tasks
from octavo_protocol.tracing import open_tracing
from octavo_router.adapters.loader import AdapterLoader
from octavo_router.adapters.spreading import AdapterSpreading
from octavo_router.admission.admission import Admission
from octavo_router.batches.service import BatchService
from octavo_router.capture import TrafficCapture
from octavo_router.decisions import Decider
from octavo_router.deployments import Deployments
from octavo_router.discovery import Discovery
from octavo_router.kv_follower import KVFollower
from octavo_router.metrics import RouterMetrics
from octavo_router.options import RouterOptions
from octavo_router.prefix_index import IndexBudget
from octavo_router.proxy import ROUTE_HEADER, Proxy
from octavo_router.resumption import Resumption
from octavo_router.resumption.journal import Journal, JournalLimits
from octavo_router.resumption.memory_journal import MemoryJournal
from octavo_router.resumption.redis_journal import RedisJournal
from octavo_router.tenancy.ledger import Ledger
from octavo_router.tenancy.limiter import Limiter
from octavo_router.tenancy.limits import MemoryLimits
from octavo_router.tenancy.redis_limits import RedisLimits, limits_client
from octavo_router.tenancy.source import TenantSource
from octavo_router.tokenizers import TokenizerCache
from octavo_router.upstream import UpstreamClient

logger = logging.getLogger(__name__)

_REDIS_TIMEOUT_S = 2.0
_STALL_CHECK_S = 0.5


class RouterState:
    """An async context manager: inside it the router follows its replicas.

    num_open: requests being answered. is_leaving: new ones are still taken, but should go to
    another router. is_draining: no new ones are taken.
    """

    def __init__(self, options: RouterOptions, clock: Callable[[], float] = time.monotonic) -> None:
        self.options = options
        self.max_body_bytes = options.max_body_bytes
        self.defaults = SamplingParams()
        self.started_at = int(time.time())
        self.metrics = RouterMetrics()
        self.index_budget = IndexBudget(options.index_budget_bytes)
        self.deployments = Deployments(
            budget=self.index_budget,
            namespaces=options.namespaces,
            weights=options.policy_weights,
            max_ejected_share=options.max_ejected_share,
            clock=clock,
        )
        self.discovery = Discovery(self.deployments, clock)
        self.tracing = open_tracing(options.otlp_traces_endpoint, "octavo-router")
        self.num_open = 0
        self.is_leaving = False
        self.is_draining = False
        self.tenants = TenantSource(options.tenants) if options.tenants is not None else None
        self.batches: BatchService | None = None
        self._ledger: Ledger | None = None
        self._limits: redis.asyncio.Redis | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._redis: redis.asyncio.Redis | None = None
        self._journals = AsyncExitStack()
        self.capture: TrafficCapture | None = None

    @property
    def stage(self) -> str:
        """What the router is doing, for /ready: "ready" when requests can be served."""
        if self.is_leaving or self.is_draining:
            return "draining"
        if self.options.all_deployments:
            return "ready" if self.discovery.has_answered else "waiting for Redis"
        if not any(deployment.replicas.usable(None) for deployment in self.deployments):
            return "waiting for a replica"
        return "ready"

    @property
    def is_healthy(self) -> bool:
        """False once a background task has ended by a defect: what is known grows old."""
        return not any(task.done() for task in self._tasks)

    def answering(self, start: Message) -> None:
        """Counts an answer; those that no replica gave say so in `x-octavo-route`."""
        self.metrics.requests.labels(str(start["status"])).inc()
        if not any(name == ROUTE_HEADER for name, _ in start["headers"]):
            start["headers"] = [*start["headers"], (ROUTE_HEADER, b"router")]

    def measure(self) -> None:
        """Brings the gauges up to date."""
        num_replicas = {each.name: len(each.replicas) for each in self.deployments}
        self.metrics.measure_deployments(num_replicas)
        self.metrics.replicas.set(sum(num_replicas.values()))
        self.metrics.degraded.set(self.discovery.is_degraded)
        self.metrics.index_entries.set(self.index_budget.num_entries)
        self.metrics.index_bytes.set(self.index_budget.num_bytes)
        self.metrics.index_refused.set(self.index_budget.num_refused)
        self.admission.measure()
        if self.tenants is not None:
            self.metrics.admission.stale.set(self.tenants.is_stale)

    async def __aenter__(self) -> "RouterState":
        options = self.options
        if options.capture is not None:
            self.capture = TrafficCapture(
                options.capture,
                max_bytes=options.capture_bytes,
                block_size=options.capture_block_size,
            )
            self.capture.open()
        self._client = _client(options)
        self._follow()
        self.admission = self._make_admission()
        memo: BoundedMemo[bytes] = BoundedMemo(options.token_memo_bytes)
        self._tokenizers = TokenizerCache(self._client, memo)
        self.decider = Decider(self._tokenizers, self.metrics, memo)
        self._adapters = AdapterLoader(self._client, self.metrics, wait_s=options.adapter_wait_s)
        self._start(AdapterSpreading(lambda: self.deployments, self._adapters).run())
        self.proxy = Proxy(
            client=self._client,
            decider=self.decider,
            admission=self.admission,
            adapters=self._adapters,
            metrics=self.metrics,
            max_attempts=options.max_attempts,
            patience_s=options.continue_patience_s,
            capture=self.capture,
        )
        self.resumption = await self._make_resumption()
        self._start(self._move_stalled())
        self.batches = self._make_batches()
        return self

    def work_on_batches(self, app: App) -> None:
        """`app`, this router's own, answers the lines of batches from now on."""
        if self.batches is not None:
            self._start(self.batches.work(app))

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.resumption.close()
        await self._journals.aclose()
        await stop_tasks(self._tasks)
        if self.batches is not None:
            await self.batches.close()
        self.admission.close()
        if self._ledger is not None:
            await self._ledger.flush()
        await self._adapters.close()
        await self._tokenizers.close()
        self._client.close()
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)
        if self.capture is not None:
            self.capture.close()
        for client in filter(None, (self._redis, self._limits)):
            await client.aclose()

    def _make_admission(self) -> Admission:
        """Starts what keeps tenants and their limits true."""
        metrics, queues = self.metrics.admission, self.options.queues
        if self.tenants is None:
            return Admission(metrics, queues)
        if (url := self.options.redis_url) is not None:
            self._limits = limits_client(url)
        shared = RedisLimits(self._limits) if self._limits is not None else None
        limiter = Limiter(shared, MemoryLimits())
        self._ledger = Ledger(
            self._limits,
            max_records=self.options.usage_records,
            on_settled=limiter.settled,
        )
        self._start(self.tenants.follow())
        self._start(limiter.renew())
        self._start(self._ledger.follow())
        return Admission(metrics, queues, limiter, self._ledger)

    async def _make_resumption(self) -> Resumption:
        options = self.options
        limits = JournalLimits(
            ttl_s=options.resume_ttl_s,
            max_stream_bytes=options.resume_stream_bytes,
            max_total_bytes=options.resume_total_bytes,
        )
        journal: Journal = MemoryJournal(limits)
        if options.redis_url is not None:
            opened = RedisJournal(options.redis_url, limits)
            journal = await self._journals.enter_async_context(opened)
        return Resumption(
            proxy=self.proxy,
            journal=journal,
            limits=limits,
            grace_s=options.resume_grace_s,
            metrics=self.metrics,
        )

    def _make_batches(self) -> BatchService | None:
        options = self.options
        if (batches := options.batches) is None or options.redis_url is None:
            return None
        return BatchService(
            batches,
            redis_url=options.redis_url,
            deployments=self.deployments,
            tenants=self.tenants,
        )

    def _follow(self) -> None:
        """Starts what keeps the deployments true."""
        options = self.options
        if not options.all_deployments:
            deployment = self.deployments.add(Keys(options.namespace, options.deployment))
            deployment.set_policy(options.policy)
        if options.redis_url is None:
            urls = [url.rstrip("/") for url in options.replica_urls]
            self._start(self.discovery.follow_urls(self._client, urls, deployment))
            return
        client = self._redis = redis.asyncio.Redis.from_url(
            options.redis_url,
            socket_timeout=_REDIS_TIMEOUT_S,
            socket_connect_timeout=_REDIS_TIMEOUT_S,
        )
        self._start(self.discovery.follow_redis(client, with_registry=options.all_deployments))
        self._start(KVFollower(lambda: self.deployments).follow(client))

    async def _move_stalled(self) -> None:
        while True:
            await asyncio.sleep(_STALL_CHECK_S)
            for deployment in self.deployments:
                deployment.move_stalled()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        task.add_done_callback(_log_end)
        self._tasks.append(task)


def _client(options: RouterOptions) -> UpstreamClient:
    headers = {}
    if (key := options.replica_api_key) is not None:
        headers["authorization"] = f"Bearer {key}".encode().decode("latin-1")
    return UpstreamClient(
        connect_s=options.connect_timeout_s, read_s=options.read_timeout_s, headers=headers
    )


def _log_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("a background task ended", exc_info=error)
