"""A client of streams with numbered events that can stop anywhere and come back."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp


@dataclass
class EventReader:
    """Asks for one answer, again and again. events: what it has got, by number, in order.

    Fails on a number that does not follow the one before.
    """

    body: Mapping[str, Any]
    key: str
    path: str = "/v1/completions"
    headers: dict[str, str] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)

    async def read(self, client: aiohttp.ClientSession, *, until: int | None = None) -> int:
        """Reads on to event `until`, or to the end, and leaves. Returns the status."""
        headers = {**self.headers, "idempotency-key": self.key}
        if self.events:
            headers["last-event-id"] = str(len(self.events))
        async with client.post(self.path, json=self.body, headers=headers) as response:
            assert response.status != 200 or response.headers["x-octavo-resumable"] == "1"
            if response.status == 200:
                await self._take(response, until)
            response.close()
            return response.status

    async def _take(self, response: aiohttp.ClientResponse, until: int | None) -> None:
        lines: list[str] = []
        async for raw in response.content:
            line = raw.decode().rstrip("\n")
            if line:
                lines.append(line)
                continue
            self._add(lines)
            lines = []
            if len(self.events) == until:
                return

    def _add(self, lines: list[str]) -> None:
        if all(line.startswith(":") for line in lines):
            return
        assert lines[0] == f"id: {len(self.events) + 1}", lines
        self.events.append("\n".join(lines[1:]))

    @property
    def text(self) -> str:
        """Of a whole chat or text completion."""
        assert self.events[-1] == "data: [DONE]"
        chunks = [json.loads(event.removeprefix("data: ")) for event in self.events[:-1]]
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
        deltas = [choice.get("delta", choice) for choice in choices]
        return "".join(delta.get("content") or delta.get("text") or "" for delta in deltas)
