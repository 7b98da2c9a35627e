"""Has replicas load adapters: for a request that waits for one, and ahead of demand.

Each replica is asked once per adapter at a time, however many requests wait for it, and for a few
adapters at a time. A load goes on when those who wait for it have left: the next ones find it done.
"""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable
from http import HTTPStatus
from weakref import WeakValueDictionary

import msgspec

from octavo_protocol.records import AdapterSource, ReplicaRecord
from octavo_protocol.tasks import stop_tasks
from octavo_router.adapters.holdings import AdapterHoldings, Place
from octavo_router.metrics import RouterMetrics
from octavo_router.upstream import UpstreamClient

logger = logging.getLogger(__name__)

LOADS_PER_REPLICA = 2
LOAD_ADAPTER = "/v1/load_lora_adapter"
_TIMEOUT_S = 600.0  # a replica may fetch it first
_MAX_MESSAGE = 400


class AdapterLoader:
    """wait_s: how long a request waits for a load before it goes elsewhere."""

    def __init__(self, client: UpstreamClient, metrics: RouterMetrics, *, wait_s: float) -> None:
        self._client = client
        self._metrics = metrics
        self._wait_s = wait_s
        self._loads: dict[Place, asyncio.Task[bool]] = {}
        self._slots: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    def is_loading(self, incarnation: str, name: str) -> bool:
        return (incarnation, name) in self._loads

    async def ensure(
        self, adapters: AdapterHoldings, record: ReplicaRecord, name: str | None
    ) -> bool:
        """Returns when the replica can answer for `name`; False: it could not load the adapter,
        which `adapters` remembers.
        """
        source = adapters.sources.get(name or "")
        if source is None or name in record.served_names or adapters.has(record, source.name):
            return True
        load = self.start(adapters, record, source)
        done, _ = await asyncio.wait({load}, timeout=self._wait_s)
        if done:
            return load.result()
        message = f"the load takes longer than {self._wait_s:g} s; try again later"
        adapters.note_refused(record.incarnation, source.name, message)
        return False

    def start(
        self, adapters: AdapterHoldings, record: ReplicaRecord, source: AdapterSource
    ) -> asyncio.Task[bool]:
        """The load, which is begun unless it runs already."""
        place = record.incarnation, source.name
        if (load := self._loads.get(place)) is None:
            load = asyncio.create_task(self._load(adapters, record, source))
            self._loads[place] = load
            load.add_done_callback(lambda _: self._loads.pop(place, None))
        return load

    async def close(self) -> None:
        await stop_tasks(list(self._loads.values()))

    async def _load(
        self, adapters: AdapterHoldings, record: ReplicaRecord, source: AdapterSource
    ) -> bool:
        slots = self._slots.setdefault(record.incarnation, asyncio.Semaphore(LOADS_PER_REPLICA))
        async with slots:
            started = time.perf_counter()
            problem = await self._problem(self._ask(record, source))
            seconds = time.perf_counter() - started
        outcome = "failed" if problem else "loaded"
        self._metrics.adapter_loads.labels(outcome).inc()
        if problem is None:
            self._metrics.adapter_load_seconds.observe(seconds)
            adapters.note_loaded(record.incarnation, source.name)
            logger.info("%s loaded the adapter %s", record.replica_id, source.name)
            return True
        if adapters.sources.get(source.name) == source:  # else another one is to be tried
            adapters.note_refused(record.incarnation, source.name, problem)
        logger.warning("%s: adapter %s: %s", record.replica_id, source.name, problem)
        return False

    async def _problem(self, asking: Awaitable[str | None]) -> str | None:
        try:
            return await asking
        except OSError as error:
            return f"the replica does not answer: {str(error) or type(error).__name__}"

    async def _ask(self, record: ReplicaRecord, source: AdapterSource) -> str | None:
        """What went wrong; None: it is loaded."""
        body = {"lora_name": source.name, "lora_path": source.source}
        if source.revision is not None:
            body["revision"] = source.revision
        async with asyncio.timeout(_TIMEOUT_S):
            with await self._client.send(
                "POST",
                record.url,
                LOAD_ADAPTER,
                {"content-type": "application/json"},
                msgspec.json.encode(body),
            ) as answer:
                if answer.status < 400:
                    return None
                message = _message(answer.status, await answer.read())
        # Somebody else was quicker: the operator, another router.
        return None if "already been loaded" in message else message


def _message(status: int, raw: bytes) -> str:
    """A replica's own words, which are an OpenAI error."""
    if status == HTTPStatus.UNAUTHORIZED:
        return "the replica asks for an API key that the router does not have (--replica-api-key)"
    try:
        message = str(json.loads(raw)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"HTTP {status}: {raw[:200].decode(errors='replace')}"
    return message[:_MAX_MESSAGE]
