"""Every request passes here on its way to a replica: limits, its turn, its deadline, its bill."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from octavo_protocol.asgi import Send
from octavo_protocol.errors import (
    REASON_HEADER,
    DeadlineError,
    OctavoError,
    UnavailableError,
    refusal_headers,
)
from octavo_router.admission.expected import prefill_seconds
from octavo_router.admission.fair_queue import FairQueue, Waiter
from octavo_router.admission.gate import Gate
from octavo_router.admission.meter import Meter
from octavo_router.admission.metrics import AdmissionMetrics
from octavo_router.admission.queue_options import QueueOptions
from octavo_router.deployment import Deployment
from octavo_router.stream_trace import StreamTrace
from octavo_router.tenancy.ledger import Entry, Ledger
from octavo_router.tenancy.limiter import Limiter, Permit
from octavo_router.tenancy.terms import Terms
from octavo_router.tenancy.usage import TokenCounts, UsageRecord

if TYPE_CHECKING:
    from octavo_router.proxy import ProxyRequest

_CLIENT_LEFT = 499
_BYTES_PER_TOKEN = 4


class Admission:
    """limiter, ledger: None: there are no tenants, and nothing is counted."""

    def __init__(
        self,
        metrics: AdmissionMetrics,
        queues: QueueOptions,
        limiter: Limiter | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self._metrics = metrics
        self._queues = queues
        self._limiter = limiter
        self._ledger = ledger
        self._gates: WeakKeyDictionary[Deployment, Gate] = WeakKeyDictionary()

    @asynccontextmanager
    async def admitted(
        self, request: "ProxyRequest", stream: StreamTrace, send: Send
    ) -> AsyncIterator[Send]:
        """Inside it `request` may be sent; what it gives stands for `send`. stream: of its answer;
        one that has begun (another router had it) is not refused any more.

        Raises `RateLimitError`; `UnavailableError` where the queue is full or the deadline for the
        first token cannot be met; `DeadlineError` when the whole time is over, inside too.
        """
        if self._is_open_to(request.terms):
            yield send
            return
        tenant = request.terms.caller.tenant.name
        try:
            async with (
                self._billed(request, stream, send) as watched,
                _ended_in_time(request),
                self._turn(request, stream),
            ):
                self._metrics.admitted(tenant)
                yield watched
        except OctavoError as error:
            if (reason := error.headers.get(REASON_HEADER)) is not None:
                self._metrics.refused(tenant, reason)
            raise

    def _is_open_to(self, terms: Terms) -> bool:
        """Whether nothing is to be counted, waited for or kept to."""
        is_plain = self._limiter is None and not self._queues.max_requests
        return is_plain and terms.ttft_s is None and terms.timeout_s is None

    def measure(self) -> None:
        """Brings the gauges up to date."""
        self._metrics.queues(
            (gate.name, gate.queue.num_requests, gate.queue.num_tokens)
            for gate in self._gates.values()
        )
        if self._limiter is not None and self._ledger is not None:
            self._metrics.local.set(self._limiter.is_degraded)
            self._metrics.lost.set(self._ledger.num_lost)

    def close(self) -> None:
        for gate in self._gates.values():
            gate.close()

    @asynccontextmanager
    async def _turn(self, request: "ProxyRequest", stream: StreamTrace) -> AsyncIterator[None]:
        terms, queues = request.terms, self._queues
        if stream.has_begun or (not queues.max_requests and terms.ttft_s is None):
            yield
            return
        gate = self._gate(request.deployment)
        waiter = Waiter(
            terms.caller.tenant.name,
            _num_prompt_tokens(request) + terms.num_output_tokens,
            terms.caller.tenant.weight,
            terms.priority,
        )
        left_s = None
        if terms.ttft_s is not None:
            left_s = terms.ttft_s - _elapsed_s(request)
            _check_first_token(request, gate.expected_wait_s(waiter), left_s)
        if not queues.max_requests:
            yield
            return
        async with gate.turn(waiter, give_up_s=left_s):
            yield

    @asynccontextmanager
    async def _billed(
        self, request: "ProxyRequest", stream: StreamTrace, send: Send
    ) -> AsyncIterator[Send]:
        limiter, ledger, terms = self._limiter, self._ledger, request.terms
        if limiter is None or ledger is None:
            yield send
            return
        tenant = terms.caller.tenant
        if stream.has_begun:
            permit = limiter.resumed(tenant)
        else:
            num_prompt = _num_prompt_tokens(request) if terms.counts_tokens else 0
            permit = await limiter.admit(tenant, num_prompt + terms.num_output_tokens)
        meter = Meter(send, stream, permit.headers)
        status = _CLIENT_LEFT
        try:
            yield meter
            status = meter.status or _CLIENT_LEFT
        except OctavoError as error:
            status = error.status_code
            raise
        finally:
            limiter.ended(permit)
            self._bill(request, permit, meter, status, ledger)

    def _bill(
        self,
        request: "ProxyRequest",
        permit: Permit,
        meter: Meter,
        status: int,
        ledger: Ledger,
    ) -> None:
        terms = request.terms
        if not terms.counts_tokens:
            ledger.add(Entry(permit, 0, None))
            return
        caller = terms.caller
        counts = TokenCounts()
        if meter.status is not None or status == _CLIENT_LEFT:
            counts = meter.counts(_num_prompt_tokens(request))
        record = UsageRecord(
            tenant=caller.tenant.name,
            key=caller.key_id,
            model=request.model or "",
            request_id=request.request_id,
            status=status,
            prompt_tokens=counts.prompt,
            cached_tokens=counts.cached,
            output_tokens=counts.output,
            seconds=round(_elapsed_s(request), 3),
        )
        self._metrics.used(
            caller.tenant.name, prompt=counts.prompt, cached=counts.cached, output=counts.output
        )
        ledger.add(Entry(permit, counts.total, record))

    def _gate(self, deployment: Deployment) -> Gate:
        gate = self._gates.get(deployment)
        if gate is None:
            queues = self._queues
            gate = self._gates[deployment] = Gate(
                deployment.name,
                deployment.replicas,
                deployment.loads,
                deployment.background_loads,
                FairQueue(max_requests=queues.max_requests, max_tokens=queues.max_tokens),
                self._metrics,
                backlog_s=queues.backlog_s,
            )
        return gate


@asynccontextmanager
async def _ended_in_time(request: "ProxyRequest") -> AsyncIterator[None]:
    """Ends what is inside when the whole time that the client gave is over."""
    seconds = request.terms.timeout_s
    if seconds is None:
        yield
        return
    deadline = asyncio.timeout(seconds - _elapsed_s(request))
    try:
        async with deadline:
            yield
    except TimeoutError:
        if not deadline.expired():
            raise
        raise DeadlineError(
            f"the answer was not complete within the {seconds:g} s that x-octavo-timeout-ms gives;"
            " give it more, or ask for fewer tokens",
            headers=refusal_headers("timeout"),
        ) from None


def _check_first_token(request: "ProxyRequest", wait_s: float, left_s: float) -> None:
    """Raises `UnavailableError` where the first token is not to be expected in time."""
    prefill_s = prefill_seconds(request.deployment, request.model, request.key)
    expected_s = wait_s + (prefill_s or 0.0)
    if expected_s > left_s:
        raise UnavailableError(
            f"the first token is expected in {expected_s:.3f} s and due in {max(0.0, left_s):.3f} s"
            " (x-octavo-ttft-ms); give it more time, or send it again later",
            headers=refusal_headers("deadline", max(1.0, expected_s - left_s)),
        )


def _num_prompt_tokens(request: "ProxyRequest") -> int:
    """Where the prompt could not be tokenized, about what English text of that size has."""
    return request.key.num_all_tokens or len(request.body) // _BYTES_PER_TOKEN


def _elapsed_s(request: "ProxyRequest") -> float:
    return time.perf_counter() - request.arrived
