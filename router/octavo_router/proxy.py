"""Sends a request to a replica and relays the answer; sends it to another one when that fails.

Nothing reaches the client before the first bytes of an answer's body are here, so that until then
any failure of a replica can be made good elsewhere. Whole (not streamed) answers are relayed when
they are complete, for the same reason. After the first byte of a stream another replica goes on
from the tokens so far; where none can, the failure becomes an error event in the stream.
"""

import asyncio
import http
import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from octavo_protocol.asgi import Message, Send
from octavo_protocol.continuation import CONTINUABLE, TRACE_HEADER
from octavo_protocol.errors import (
    DeadlineError,
    OctavoError,
    UnavailableError,
    envelope,
    error_body,
)
from octavo_protocol.overrides import RequestOverrides
from octavo_protocol.priorities import is_background
from octavo_protocol.records import ReplicaRecord
from octavo_protocol.wire_formats import wire_format
from octavo_router.adapters.loader import AdapterLoader
from octavo_router.admission.admission import Admission
from octavo_router.capture import TrafficCapture
from octavo_router.decisions import DEFAULT_TOKENS_PER_S, Decider, Decision, PromptKey
from octavo_router.deployment import Deployment
from octavo_router.health import Attempt, Cause
from octavo_router.metrics import RouterMetrics
from octavo_router.route_spans import attempt_span, note_admitted
from octavo_router.stream_trace import StreamTrace
from octavo_router.tenancy.terms import Terms
from octavo_router.upstream import Answer, UpstreamClient

logger = logging.getLogger(__name__)

# OpenAI's and Anthropic's name.
_CACHED_TOKENS = re.compile(rb'"(?:cached_tokens|cache_read_input_tokens)":\s*(\d+)')
_MODEL_NOT_FOUND = b'"model_not_found"'
ROUTE_HEADER = b"x-octavo-route"
# Bodies pass as they came, so their encoding must be told, and what the bytes of vectors mean
# (`metadata`); the rest of a replica's headers stays.
_RELAYED_HEADERS = (b"cache-control", b"content-encoding", b"retry-after", b"metadata")
_TRACE_HEADER = TRACE_HEADER.encode()
_POLL_S = 0.1
_BYTES_PER_TOKEN = 3
REPLICAS_FAILED = "replicas_failed"  # code of the error where replicas broke over the request


@dataclass(frozen=True, slots=True)
class ProxyRequest:
    """A client's request as it goes to a replica: the bytes that came.

    deployment: whose replicas may answer. key: what the choice among them goes by. headers: the
    client's that replicas read. terms: what its tenant and its headers add, with what replicas are
    to take in place of the body's.
    """

    deployment: Deployment
    request_id: str
    path: str
    body: bytes
    model: str | None
    key: PromptKey
    headers: Mapping[str, str] = field(default_factory=dict)
    is_stream: bool = False
    terms: Terms = field(default_factory=Terms)
    arrived: float = field(default_factory=time.perf_counter)

    @property
    def is_background(self) -> bool:
        return is_background(self.terms.priority)

    def overrides_for(self, record: ReplicaRecord) -> RequestOverrides:
        """With the prompt's token ids where the replica can use them."""
        tokens = self.key.tokens
        if (
            tokens is None
            or not record.takes_prompt_tokens
            or tokens.tokenizer_id != record.tokenizer_id
            or not tokens.fits(self.body)
        ):
            return self.terms.overrides
        return replace(self.terms.overrides, prompt_tokens=tokens)

    def sent_headers(self, overrides: RequestOverrides) -> dict[str, str]:
        headers = {
            **self.headers,
            **overrides.headers,
            "x-request-id": self.request_id,
        }
        if self.path in CONTINUABLE:
            headers[TRACE_HEADER] = "1"
        return headers


class _ReplicaFailed(Exception):
    """The answer is not complete, and the client does not know; another replica may try."""

    def __init__(
        self,
        message: str,
        cause: Cause | None,
        *,
        is_busy: bool = False,
        lacks_adapter: bool = False,
    ) -> None:
        super().__init__(message)
        self.cause = cause  # None: nothing is wrong with the replica
        self.is_busy = is_busy  # it had no room, or was about to stop
        self.lacks_adapter = lacks_adapter  # it had given it up

    @property
    def code(self) -> str | None:
        """Of the error where no replica is left: whether the request itself may be what breaks."""
        is_broken = self.cause in (Cause.BROKEN, Cause.ERRORS) and not self.is_busy
        return REPLICAS_FAILED if is_broken else None


class Proxy:
    """Relays requests. Belongs to one event loop.

    patience_s: how long a stream that has begun waits for a replica that can go on with it.
    """

    def __init__(
        self,
        *,
        client: UpstreamClient,
        decider: Decider,
        admission: Admission,
        adapters: AdapterLoader,
        metrics: RouterMetrics,
        max_attempts: int,
        patience_s: float,
        capture: TrafficCapture | None = None,
    ) -> None:
        self._client = client
        self._decider = decider
        self._admission = admission
        self._adapters = adapters
        self._metrics = metrics
        self._max_attempts = max_attempts
        self._patience_s = patience_s
        self._capture = capture

    async def relay(self, request: ProxyRequest, send: Send) -> None:
        """Answers the client. Raises `UnavailableError` when no replica could, before any byte."""
        stream = StreamTrace(wire_format(request.path))
        try:
            await self.generate(request, stream, send)
        except (UnavailableError, DeadlineError) as error:
            if not stream.has_begun:
                self._metrics.answered(request.deployment.name, error.status_code)
                raise
            await send(_body(broken_event(request.path, error), is_last=True))

    async def generate(self, request: ProxyRequest, stream: StreamTrace, send: Send) -> None:
        """Sends the answer from where `stream` is, once the request is admitted; what `send` raises
        ends it.

        Raises `UnavailableError` when no replica could give it or go on with it, and what
        `Admission.admitted` raises.
        """
        async with self._admission.admitted(request, stream, send) as watched:
            note_admitted(request)
            with request.deployment.adapter_request(request.model):
                await self._generate(request, stream, watched)

    async def _generate(self, request: ProxyRequest, stream: StreamTrace, send: Send) -> None:
        tried: list[str] = []
        names: list[str] = []
        reloaded: set[str] = set()
        deployment = request.deployment
        deployment.retries.request()
        # Background work is tried again by who sent it, so that poison costs one replica at a time.
        max_attempts = 1 if request.is_background else self._max_attempts
        while True:
            decision = await self._choose(request, stream, tried)
            decision.tried = names
            incarnation = decision.replica.incarnation
            num_passed = stream.num_passed
            try:
                moving = stream.has_begun
                with attempt_span(request, decision, is_continuation=moving) as sent:
                    await self._attempt(sent, decision, stream, send)
                return
            except _ReplicaFailed as error:
                failure = error
            self._note(failure, request, decision, stream)
            if stream.has_begun and stream.head is None:
                raise UnavailableError("the stream cannot go on elsewhere")
            if stream.num_passed > num_passed:  # a replica that helped does not count
                tried, names = [], []
            # All that one dead replica had may move at once: that multiplies no load.
            is_free = failure.cause is Cause.BROKEN and not tried
            is_paid = failure.cause is Cause.STALLED  # see `Deployment.move_stalled`
            if failure.lacks_adapter and incarnation not in reloaded:
                reloaded.add(incarnation)  # it is asked once more, with a load before
                continue
            tried = [*tried, incarnation]
            names = [*names, decision.replica.replica_id]
            may_retry = is_free or is_paid or deployment.retries.retry()
            if len(tried) >= max_attempts or not may_retry:
                raise UnavailableError(
                    f"{len(tried)} replicas failed to answer; try again", code=failure.code
                )
            self._metrics.retries.inc()

    async def _choose(
        self, request: ProxyRequest, stream: StreamTrace, tried: list[str]
    ) -> Decision:
        """A replica that was not tried and has the request's adapter; a stream that has begun waits
        for one.
        """
        deployment, num_refused = request.deployment, 0
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                decision = self._decider.choose(
                    deployment,
                    request.request_id,
                    request.model,
                    request.key,
                    tried=tried,
                    is_background=request.is_background,
                )
                adapters = deployment.replicas.adapters
                if await self._adapters.ensure(adapters, decision.replica, request.model):
                    return decision
                num_refused += 1  # it is no candidate for a while
                if num_refused >= self._max_attempts:
                    raise adapters.error(request.model) or UnavailableError("no replica is left")
                continue
            except UnavailableError:
                if not stream.has_begun or time.monotonic() >= deadline:
                    raise
            await asyncio.sleep(_POLL_S)

    async def _attempt(
        self, request: ProxyRequest, decision: Decision, stream: StreamTrace, send: Send
    ) -> None:
        """One replica's part in the answer, and what it says of that replica's health."""
        deployment, incarnation = request.deployment, decision.replica.incarnation
        health = deployment.replicas.health
        attempt = health.sent(
            incarnation, _expected_s(request, decision, stream), is_stream=request.is_stream
        )
        try:
            async with asyncio.timeout(None) as patience:
                # One that was tried elsewhere before stays: there may be no replica left for it.
                if request.key.replica is None and decision.attempt == 1:
                    deployment.stalls.wait(attempt, lambda: patience.reschedule(0))
                await self._ask(request, decision, attempt, stream, send)
            health.answered(attempt)
        except TimeoutError as error:
            self._count_ejection(health.failed(attempt, Cause.STALLED))
            raise _ReplicaFailed("no byte came for too long", Cause.STALLED) from error
        except _ReplicaFailed as failure:
            if failure.cause is not None:
                self._count_ejection(health.failed(attempt, failure.cause))
            raise
        finally:
            deployment.stalls.done(attempt)
            health.ended(attempt)

    async def _ask(
        self,
        request: ProxyRequest,
        decision: Decision,
        attempt: Attempt,
        stream: StreamTrace,
        send: Send,
    ) -> None:
        deployment, incarnation = request.deployment, decision.replica.incarnation
        loads = deployment.background_loads if request.is_background else deployment.loads
        num_uncached = max(0, decision.num_prompt_tokens - decision.num_cached_tokens)
        ticket = loads.sent(incarnation, num_uncached)
        overrides = request.overrides_for(decision.replica)
        path, body = request.path, request.body
        if stream.has_begun:
            path, body = stream.continuation(path, body)
        try:
            with await self._client.send(
                "POST",
                decision.replica.url,
                path,
                request.sent_headers(overrides),
                overrides.framed(body),
            ) as response:
                is_stream = response.media_type == b"text/event-stream"
                if response.status >= 500:
                    is_busy = response.status == http.HTTPStatus.SERVICE_UNAVAILABLE
                    message = f"status {response.status}"
                    raise _ReplicaFailed(message, Cause.ERRORS, is_busy=is_busy)
                if response.status == http.HTTPStatus.NOT_FOUND:
                    await self._check_adapter(request, decision, response)
                if stream.has_begun and not is_stream:
                    raise _ReplicaFailed(f"status {response.status}", None)
                if not is_stream:
                    await self._relay_whole(request, decision, response, send)
                    return
                first = await response.read_some()
                if not first:
                    raise _ReplicaFailed("the stream ended before its first byte", Cause.BROKEN)
                loads.first_token(incarnation, ticket)
                self._began(deployment, attempt)
                await self._relay_stream(request, decision, response, first, stream, send)
        except OSError as error:
            raise _ReplicaFailed(f"{type(error).__name__}: {error}", Cause.BROKEN) from error
        finally:
            loads.ended(incarnation, ticket)

    async def _check_adapter(
        self, request: ProxyRequest, decision: Decision, response: Answer
    ) -> None:
        """Raises `_ReplicaFailed` where a replica has given up the request's adapter, and another
        one, or this one after a load, can still answer.
        """
        replicas, model = request.deployment.replicas, request.model
        if model is None or model in decision.replica.served_names:
            return
        if _MODEL_NOT_FOUND not in await response.read():
            return
        replicas.adapters.note_missing(decision.replica.incarnation, model)
        if replicas.usable(model):
            raise _ReplicaFailed("it does not have the adapter", None, lacks_adapter=True)

    async def _relay_whole(
        self,
        request: ProxyRequest,
        decision: Decision,
        response: Answer,
        send: Send,
    ) -> None:
        body = await response.read()
        request.deployment.stalls.heard(decision.replica.incarnation)
        self._check_prediction(request.deployment, decision, body)
        self._metrics.answered(request.deployment.name, response.status)
        if response.status == 200:
            self._captured(request, body)
        await send(_start(response, decision))
        await send(_body(body, is_last=True))

    async def _relay_stream(
        self,
        request: ProxyRequest,
        decision: Decision,
        response: Answer,
        chunk: bytes,
        stream: StreamTrace,
        send: Send,
    ) -> None:
        """chunk: the first bytes."""
        is_first = not stream.has_begun
        trace_head = response.headers.get(_TRACE_HEADER)
        stream.begin(trace_head.decode("latin-1") if trace_head is not None else None)
        if is_first:
            self._metrics.ttft.observe(time.perf_counter() - request.arrived)
            self._metrics.answered(request.deployment.name, response.status)
            await send(_start(response, decision))
        else:
            self._metrics.continued_streams.inc()
        told = b""
        stalls = request.deployment.stalls
        while chunk:
            if passed := stream.feed(chunk):
                await send(_body(passed))
                if stream.head is None and _CACHED_TOKENS.search(passed):
                    told = passed
            chunk = await response.read_some()
            stalls.heard(decision.replica.incarnation)
        if not stream.is_whole:
            raise _ReplicaFailed("the stream ended before its last event", Cause.BROKEN)
        last = stream.finish()
        if is_first:  # of an answer that goes on, the first replica's tokens are told
            self._check_prediction(request.deployment, decision, told + last)
        self._captured(request, told + last, stream)
        await send(_body(last, is_last=True))

    def _note(
        self,
        failure: _ReplicaFailed,
        request: ProxyRequest,
        decision: Decision,
        stream: StreamTrace,
    ) -> None:
        logger.warning(
            "replica %s failed %s its answer: %s",
            decision.replica.replica_id,
            "in" if stream.has_begun else "before",
            failure,
            extra={"request_id": request.request_id},
        )
        if failure.cause is Cause.BROKEN and stream.has_begun:
            self._metrics.broken_streams.inc()

    def _began(self, deployment: Deployment, attempt: Attempt) -> None:
        """A stream's first byte came."""
        deployment.stalls.done(attempt)
        deployment.stalls.heard(attempt.incarnation)
        self._count_ejection(deployment.replicas.health.first_byte(attempt))

    def _count_ejection(self, cause: Cause | None) -> None:
        if cause is not None:
            self._metrics.ejections.labels(cause).inc()

    def _captured(
        self, request: ProxyRequest, answer: bytes, stream: StreamTrace | None = None
    ) -> None:
        """Notes a complete answer in the capture of traffic, where there is one."""
        if self._capture is None or request.path not in CONTINUABLE:
            return
        key = request.key
        self._capture.add(
            arrived=request.arrived,
            hashes=key.hashes,
            hash_tokens=key.block_size,
            num_prompt_tokens=key.num_tokens,
            session=key.session,
            answer=answer,
            num_output_tokens=stream.num_tokens if stream is not None else 0,
        )

    def _check_prediction(self, deployment: Deployment, decision: Decision, data: bytes) -> None:
        """Compares the answer's cached tokens, where it tells them, with what was predicted."""
        found = _CACHED_TOKENS.findall(data)
        if not found or not decision.num_prompt_tokens:
            return
        predicted, actual = decision.num_cached_tokens, int(found[-1])
        self._metrics.predicted_tokens.inc(predicted)
        self._metrics.actual_tokens.inc(actual)
        self._metrics.prediction_error.inc(abs(predicted - actual))
        if deployment.compare_prediction(decision.replica, predicted, actual):
            logger.warning("the cache entries of %s are wrong", decision.replica.replica_id)
            self._metrics.distrusted.inc()


def _expected_s(request: ProxyRequest, decision: Decision, stream: StreamTrace) -> float:
    """Until the first byte. What the decision does not count: the tokens of a prompt that was not
    tokenized, judged by its size, and those that a stream which goes on has already.
    """
    num_more = float(stream.num_tokens)
    if not decision.num_prompt_tokens:
        num_more += len(request.body) / _BYTES_PER_TOKEN
    return decision.expected_s + num_more / DEFAULT_TOKENS_PER_S


def broken_event(path: str, error: OctavoError) -> bytes:
    """Tells the client of a stream that its rest will not come, and why."""
    if isinstance(error, DeadlineError):
        status, body = envelope(error)
        return wire_format(path).event(status, body)
    broken = error_body(
        "the replica that generated this answer failed",
        error_type=OctavoError.error_type,
        code=502,
    )
    return wire_format(path).event(502, broken)


def _start(response: Answer, decision: Decision) -> Message:
    headers = [
        (b"content-type", response.headers.get(b"content-type", b"application/json")),
        (ROUTE_HEADER, decision.header.encode()),
    ]
    for name in _RELAYED_HEADERS:
        if name in response.headers:
            headers.append((name, response.headers[name]))
    return {"type": "http.response.start", "status": response.status, "headers": headers}


def _body(data: bytes, *, is_last: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": not is_last}
