"""Facts about models of the Hugging Face hub, for the fit check: config.json and weights' index.

Read over HTTPS in the background and kept; a decision never waits for them. A model that cannot be
read (private, elsewhere, no way out of the cluster) has no facts, and is tried again after an hour.
"""

import asyncio
import json
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiohttp

from octavo_operator.fit import facts_from_config
from octavo_operator.observed import KubernetesObject, ModelFacts
from octavo_operator.queue import Key

logger = logging.getLogger(__name__)

RETRY_S = 3600.0
_TIMEOUT = aiohttp.ClientTimeout(total=20, sock_connect=5)
_MAX_BYTES = 16 * 2**20
_MAX_MODELS = 500
_HUB = "https://huggingface.co"

Model = tuple[str, str]  # repository, revision


@dataclass(slots=True)
class _Known:
    facts: ModelFacts | None = None
    retry_at: float = 0.0
    task: asyncio.Task[None] | None = None


class ModelConfigs:
    """changed: called with the deployments that wait for facts when these have come."""

    def __init__(
        self,
        changed: Callable[[Key], None],
        endpoint: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._changed = changed
        self._endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or _HUB).rstrip("/")
        self._clock = clock
        self._known: OrderedDict[Model, _Known] = OrderedDict()
        self._waiting: dict[Key, Model] = {}

    def facts(self, key: Key, deployment: KubernetesObject) -> ModelFacts | None:
        """What is known now; more is asked for."""
        model = hub_model(deployment)
        if model is None:
            self._waiting.pop(key, None)
            return None
        self._waiting[key] = model
        known = self._known.setdefault(model, _Known())
        self._known.move_to_end(model)
        if known.facts is None and known.task is None and self._clock() >= known.retry_at:
            known.task = asyncio.create_task(self._read(model, known))
        if len(self._known) > _MAX_MODELS:
            self._known.popitem(last=False)
        return known.facts

    def forget(self, key: Key) -> None:
        self._waiting.pop(key, None)

    async def close(self) -> None:
        tasks = [known.task for known in self._known.values() if known.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def is_reading(self) -> bool:
        return any(known.task is not None for known in self._known.values())

    async def _read(self, model: Model, known: _Known) -> None:
        known.retry_at = self._clock() + RETRY_S
        try:
            known.facts = await self._fetch(model)
        except (
            aiohttp.ClientError,
            TimeoutError,
            OSError,
            ValueError,
            KeyError,
            TypeError,
        ) as error:
            logger.info("no facts about %s@%s: %s", *model, str(error) or type(error).__name__)
            return
        finally:
            known.task = None
        for key in [key for key, wanted in self._waiting.items() if wanted == model]:
            self._changed(key)

    async def _fetch(self, model: Model) -> ModelFacts | None:
        async with aiohttp.ClientSession(timeout=_TIMEOUT, trust_env=True) as session:
            config = await self._file(session, model, "config.json")
            if config is None:
                raise ValueError("it has no config.json, or is private")
            index = await self._file(session, model, "model.safetensors.index.json")
        return facts_from_config(config, index)

    async def _file(
        self, session: aiohttp.ClientSession, model: Model, name: str
    ) -> dict[str, Any] | None:
        """None where there is none, or none for us. Raises `ValueError` for what is no table."""
        repository, revision = model
        url = f"{self._endpoint}/{repository}/resolve/{quote(revision, safe='')}/{name}"
        async with session.get(url) as response:
            if response.status in (401, 403, 404):
                return None
            response.raise_for_status()
            if (response.content_length or 0) > _MAX_BYTES:
                raise ValueError(f"{name} is larger than {_MAX_BYTES} bytes")
            value = json.loads(await response.read())
        if not isinstance(value, dict):
            raise ValueError(f"{name} is not a table")
        return value


def hub_model(deployment: KubernetesObject) -> Model | None:
    """Repository and revision of a model on the hub; None for other sources."""
    spec = deployment.get("spec")
    model = spec.get("model") if isinstance(spec, Mapping) else None
    source = model.get("source") if isinstance(model, Mapping) else None
    if not isinstance(model, Mapping) or not isinstance(source, str):
        return None
    repository = source.removeprefix("hf://")
    if (repository == source and "://" in source) or repository.count("/") != 1:
        return None
    revision = model.get("revision")
    return repository, revision if isinstance(revision, str) else "main"
