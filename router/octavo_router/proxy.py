"""Sends a request to a replica and relays the answer; sends it to another one when that fails.

Nothing reaches the client before the first bytes of an answer's body are here, so that until then
any failure of a replica can be made good elsewhere. Whole (not streamed) answers are relayed when
they are complete, for the same reason. After the first byte of a stream, a failure becomes an error
event in the stream.
"""

import asyncio
import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import aiohttp

from octavo_protocol.asgi import Message, Send
from octavo_protocol.errors import OctavoError, UnavailableError, error_body
from octavo_protocol.wire_formats import wire_format
from octavo_router.decisions import Decider, Decision, PromptKey
from octavo_router.deployment import Deployment
from octavo_router.metrics import RouterMetrics

logger = logging.getLogger(__name__)

# OpenAI's and Anthropic's name.
_CACHED_TOKENS = re.compile(rb'"(?:cached_tokens|cache_read_input_tokens)":\s*(\d+)')
_FAILURES = (aiohttp.ClientError, TimeoutError, OSError)
ROUTE_HEADER = b"x-octavo-route"
# Bodies pass as they came, so their encoding must be told; the rest of a replica's headers stays.
_RELAYED_HEADERS = ("cache-control", "content-encoding", "retry-after")


@dataclass(frozen=True, slots=True)
class ProxyRequest:
    """A client's request as it goes to a replica: the bytes that came.

    deployment: whose replicas may answer. key: what the choice among them goes by. headers: the
    client's that replicas read.
    """

    deployment: Deployment
    request_id: str
    path: str
    body: bytes
    model: str | None
    key: PromptKey
    headers: Mapping[str, str] = field(default_factory=dict)
    arrived: float = field(default_factory=time.perf_counter)


class _ReplicaFailed(Exception):
    """Nothing of the answer has reached the client; another replica may try."""

    def __init__(self, cause: str, *, is_broken: bool) -> None:
        super().__init__(cause)
        self.is_broken = is_broken  # the connection failed; else the replica said no


class Proxy:
    """Relays requests. Belongs to one event loop."""

    def __init__(
        self,
        *,
        session: aiohttp.ClientSession,
        decider: Decider,
        metrics: RouterMetrics,
        max_attempts: int,
    ) -> None:
        self._session = session
        self._decider = decider
        self._metrics = metrics
        self._max_attempts = max_attempts

    async def relay(self, request: ProxyRequest, send: Send) -> None:
        """Answers the client. Raises `UnavailableError` when no replica could, before any byte."""
        tried: list[str] = []
        names: list[str] = []
        deployment = request.deployment
        deployment.retries.request()
        while True:
            decision = self._decider.choose(
                deployment, request.request_id, request.model, request.key, tried=tried
            )
            decision.tried = names
            incarnation = decision.replica.incarnation
            try:
                await self._attempt(request, decision, send)
                return
            except _ReplicaFailed as failure:
                logger.warning(
                    "replica %s failed before its answer: %s",
                    decision.replica.replica_id,
                    failure,
                    extra={"request_id": request.request_id},
                )
                if failure.is_broken:
                    deployment.replicas.failed(incarnation)
                tried.append(incarnation)
                names.append(decision.replica.replica_id)
            if len(tried) >= self._max_attempts or not deployment.retries.retry():
                self._metrics.answered(deployment.name, UnavailableError.status_code)
                raise UnavailableError(f"{len(tried)} replicas failed to answer; try again")
            self._metrics.retries.inc()

    async def _attempt(self, request: ProxyRequest, decision: Decision, send: Send) -> None:
        incarnation = decision.replica.incarnation
        num_uncached = max(0, decision.num_prompt_tokens - decision.num_cached_tokens)
        ticket = request.deployment.loads.sent(incarnation, num_uncached)
        headers = {
            **request.headers,
            "content-type": "application/json",
            "x-request-id": request.request_id,
        }
        try:
            try:
                async with self._session.post(
                    decision.replica.url + request.path, data=request.body, headers=headers
                ) as response:
                    if response.status >= 500:
                        raise _ReplicaFailed(f"status {response.status}", is_broken=False)
                    if response.content_type == "text/event-stream":
                        await self._relay_stream(request, decision, response, ticket, send)
                    else:
                        await self._relay_whole(request, decision, response, send)
            except _FAILURES as error:
                raise _ReplicaFailed(f"{type(error).__name__}: {error}", is_broken=True) from error
        finally:
            request.deployment.loads.ended(incarnation, ticket)

    async def _relay_whole(
        self,
        request: ProxyRequest,
        decision: Decision,
        response: aiohttp.ClientResponse,
        send: Send,
    ) -> None:
        body = await response.read()
        request.deployment.replicas.succeeded(decision.replica.incarnation)
        self._check_prediction(request.deployment, decision, body)
        self._metrics.answered(request.deployment.name, response.status)
        await send(_start(response, decision))
        await send({"type": "http.response.body", "body": body})

    async def _relay_stream(
        self,
        request: ProxyRequest,
        decision: Decision,
        response: aiohttp.ClientResponse,
        ticket: int,
        send: Send,
    ) -> None:
        content = response.content
        chunk = await content.readany()
        if not chunk:
            raise _ReplicaFailed("the stream ended before its first byte", is_broken=True)
        request.deployment.loads.first_token(decision.replica.incarnation, ticket)
        self._metrics.ttft.observe(time.perf_counter() - request.arrived)
        self._metrics.answered(request.deployment.name, response.status)
        await send(_start(response, decision))
        format = wire_format(request.path)
        tail, told, is_whole = b"", b"", False
        try:
            while chunk:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                window = tail + chunk  # an ending may come in two pieces
                is_whole = is_whole or format.is_ended(window)
                tail = window[-format.longest_ending :]
                if _CACHED_TOKENS.search(chunk):
                    told = chunk
                chunk = await content.readany()
            if not is_whole:
                raise aiohttp.ClientPayloadError("the stream ended before its last event")
        except _FAILURES as error:
            logger.warning(
                "replica %s broke a stream: %s",
                decision.replica.replica_id,
                error,
                extra={"request_id": request.request_id},
            )
            self._metrics.broken_streams.inc()
            request.deployment.replicas.failed(decision.replica.incarnation)
            broken = error_body(
                "the replica that generated this answer failed",
                error_type=OctavoError.error_type,
                code=502,
            )
            last = format.event(502, broken)
            await send({"type": "http.response.body", "body": last, "more_body": False})
            return
        request.deployment.replicas.succeeded(decision.replica.incarnation)
        self._check_prediction(request.deployment, decision, told)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _check_prediction(self, deployment: Deployment, decision: Decision, data: bytes) -> None:
        """Compares the answer's cached tokens, where it tells them, with what was predicted."""
        found = _CACHED_TOKENS.findall(data)
        if not found or not decision.num_prompt_tokens:
            return
        predicted, actual = decision.num_cached_tokens, int(found[-1])
        self._metrics.predicted_tokens.inc(predicted)
        self._metrics.actual_tokens.inc(actual)
        self._metrics.prediction_error.inc(abs(predicted - actual))
        record = decision.replica
        if deployment.trust.report(record.incarnation, predicted, actual, record.block_size):
            logger.warning("the cache entries of %s are wrong", record.replica_id)
            self._metrics.distrusted.inc()
            deployment.blocks.distrust(record.incarnation)


def _start(response: aiohttp.ClientResponse, decision: Decision) -> Message:
    headers = [
        (b"content-type", response.headers.get("content-type", "application/json").encode()),
        (ROUTE_HEADER, decision.header.encode()),
    ]
    for name in _RELAYED_HEADERS:
        if name in response.headers:
            headers.append((name.encode(), response.headers[name].encode()))
    return {"type": "http.response.start", "status": response.status, "headers": headers}


def make_session(
    *, connect_s: float, read_s: float, api_key: str | None = None
) -> aiohttp.ClientSession:
    """The client for all replicas. read_s bounds the wait for the next bytes, not the answer.

    api_key: sent where a request brings none of its own.
    """
    return aiohttp.ClientSession(
        headers={"authorization": f"Bearer {api_key}"} if api_key else None,
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_s, sock_read=read_s),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),  # one client's cookies are not another's
        loop=asyncio.get_running_loop(),
    )
