"""Asks replicas to load and unload adapters, beside the turns of the queue.

One request per replica and adapter at a time. A refusal is kept as the replica's answer until an
attempt succeeds; attempts after a refusal are spaced by a delay that doubles.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import aiohttp

from octavo_operator.desired import AdapterAction
from octavo_operator.queue import Key

logger = logging.getLogger(__name__)

FIRST_RETRY_S = 5.0
MAX_RETRY_S = 300.0
_TIMEOUT = aiohttp.ClientTimeout(total=600, sock_connect=5)  # a replica may fetch the adapter first
_MAX_CONNECTIONS = 32

Place = tuple[str, str]  # replica id, adapter


@dataclass(slots=True)
class _Attempts:
    action: AdapterAction
    error: str = ""
    failures: int = 0
    next_at: float = 0.0
    task: asyncio.Task[None] | None = None


class AdaptersClient:
    """changed: called with a deployment's key when an answer came and when a retry is due. api_key:
    what replicas ask for; None: nothing.
    """

    def __init__(
        self,
        changed: Callable[[Key, float], None],
        clock: Callable[[], float] = time.monotonic,
        *,
        api_key: str | None = None,
    ) -> None:
        self._changed = changed
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None
        self._attempts: dict[Key, dict[Place, _Attempts]] = {}

    async def __aenter__(self) -> "AdaptersClient":
        connector = aiohttp.TCPConnector(limit=_MAX_CONNECTIONS)
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=_TIMEOUT, headers=self._headers
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        running = [
            each.task for places in self._attempts.values() for each in places.values() if each.task
        ]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def errors(self, key: Key) -> Mapping[Place, str]:
        """What replicas answered to the last attempt, where it failed."""
        places = self._attempts.get(key, {})
        return {place: each.error for place, each in places.items() if each.error}

    def ask(self, key: Key, actions: Sequence[AdapterAction]) -> None:
        """Starts what is not running and is due. What is no longer asked for is forgotten."""
        places = self._attempts.setdefault(key, {})
        wanted = {(action.replica_id, action.adapter) for action in actions}
        for place in [place for place in places if place not in wanted]:
            if (task := places.pop(place).task) is not None:
                task.cancel()
        for action in actions:
            attempts = self._attempts_at(places, action)
            if attempts.task is None and self._clock() >= attempts.next_at:
                attempts.task = asyncio.create_task(self._attempt(key, action, attempts))
        if not places:
            del self._attempts[key]

    def _attempts_at(self, places: dict[Place, _Attempts], action: AdapterAction) -> _Attempts:
        """Those at the same thing: another source has not failed yet."""
        place = action.replica_id, action.adapter
        attempts = places.get(place)
        if attempts is None or attempts.action != action:
            if attempts is not None and attempts.task is not None:
                attempts.task.cancel()
            attempts = places[place] = _Attempts(action)
        return attempts

    def forget(self, key: Key) -> None:
        self.ask(key, ())

    async def _attempt(self, key: Key, action: AdapterAction, attempts: _Attempts) -> None:
        error = await self._request(action)
        attempts.task = None
        attempts.error = error
        attempts.failures = attempts.failures + 1 if error else 0
        delay = min(MAX_RETRY_S, FIRST_RETRY_S * 2.0 ** min(attempts.failures - 1, 20))
        attempts.next_at = self._clock() + delay
        if error:
            logger.warning(
                "%s: replica %s, adapter %s: %s", key, action.replica_id, action.adapter, error
            )
            self._changed(key, delay)
        self._changed(key, 0.0)

    async def _request(self, action: AdapterAction) -> str:
        """What went wrong; empty where nothing did."""
        body: dict[str, Any] = {"lora_name": action.adapter}
        verb = "unload"
        if action.source is not None:
            verb = "load"
            body["lora_path"] = action.source.source
            if action.source.revision is not None:
                body["revision"] = action.source.revision
            if action.in_place:
                body["load_inplace"] = True
        if self._session is None:
            return "the operator is stopping"
        try:
            url = f"{action.url}/v1/{verb}_lora_adapter"
            async with self._session.post(url, json=body) as response:
                return "" if response.ok else _refusal(response.status, await response.read())
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return f"it does not answer: {str(error) or type(error).__name__}"


def _refusal(status: int, raw: bytes) -> str:
    """A replica's own words, which are an OpenAI error."""
    if status == HTTPStatus.UNAUTHORIZED:
        return (
            "it asks for an API key that the operator does not have: give operator and routers the "
            "replicas' key, as --replica-api-key (runtime.apiKey of the chart)"
        )
    try:
        return str(json.loads(raw)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {status}: {raw[:200].decode(errors='replace')}"
