"""The real model: what a client of a killed router gets is what an undisturbed one gets."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.platform import Platform
from tests.fakes.event_reader import EventReader
from tests.fakes.router_cluster import until
from tests.fakes.router_process import router_process

pytestmark = [pytest.mark.model, pytest.mark.integration, pytest.mark.timeout(600)]

ASKED = "Count from one to thirty in words."
_ANSWERS_OWN = re.compile(
    r'"(?:id|item_id)":"[^"]*"|"(?:created|created_at|completed_at)":[\d.]+'
    r'|"(?:cached_tokens|cache_read_input_tokens|input_tokens)":\d+'
)
GREEDY: dict[str, Any] = {"model": "smollm2", "stream": True, "temperature": 0}
REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": ASKED}], "max_tokens": 48},
    "/v1/completions": {"prompt": ASKED, "max_tokens": 48},
    "/v1/responses": {"input": ASKED, "max_output_tokens": 48},
    "/v1/messages": {"messages": [{"role": "user", "content": ASKED}], "max_tokens": 48},
}


@pytest.fixture(scope="module")
def platform(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with Platform(smollm2, tmp_path_factory.mktemp("platform")) as running:
        yield running


async def test_a_killed_router_is_a_pause_to_clients_that_come_back(platform: Platform) -> None:
    """All four APIs at once, each cut off at another event."""
    whole = [EventReader({**GREEDY, **REQUESTS[path]}, f"w{path}", path) for path in REQUESTS]
    cut = [EventReader(reader.body, f"c{reader.path}", reader.path) for reader in whole]
    async with aiohttp.ClientSession(platform.url) as second:
        await asyncio.gather(*(reader.read(second) for reader in whole))
        flags = ("--namespace", "default", "--deployment", "smollm2")
        async with router_process(platform.redis_url, *flags) as first:
            running = [asyncio.create_task(reader.read(first.client)) for reader in cut]
            await until(lambda: all(len(reader.events) > 8 for reader in cut), seconds=60)
            first.process.kill()
            results = await asyncio.gather(*running, return_exceptions=True)
            assert all(isinstance(each, aiohttp.ClientError) for each in results)
        assert all(len(a.events) < len(b.events) for a, b in zip(cut, whole, strict=True))
        await asyncio.gather(*(reader.read(second) for reader in cut))
    for before, after in zip(whole, cut, strict=True):
        assert len(before.events) == len(after.events)
        assert said(after) == said(before)
    assert len(cut[0].text) > 50


def said(reader: EventReader) -> list[str]:
    """The events without what differs from answer to answer."""
    return [_ANSWERS_OWN.sub("", event) for event in reader.events]
