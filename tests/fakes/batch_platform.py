"""Files and batches over HTTP on a real Redis and folder, with a fake model behind the workers."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import openai
import redis.asyncio
from starlette.requests import Request

from octavo_protocol.asgi import Message
from octavo_protocol.errors import error_body
from octavo_protocol.http_app import make_app
from octavo_protocol.serving import DrainingServer, bind
from octavo_protocol.tasks import stop_tasks
from octavo_router.batches.answering import Answer
from octavo_router.batches.routes import BatchRoutes
from octavo_router.batches.store import BatchStore
from octavo_router.batches.worker import BatchWorker
from octavo_router.files.file_store import FileStore
from octavo_router.files.routes import FileRoutes
from octavo_router.files.storage import FileStorage
from octavo_router.options import RouterOptions

LEASE_S = 1.0


def completion(prompt: str) -> dict[str, Any]:
    """What the fake model answers: a function of the prompt."""
    return {
        "object": "text_completion",
        "choices": [{"index": 0, "text": prompt[::-1], "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "prompt_tokens_details": {"cached_tokens": 1},
        },
    }


@dataclass
class FakeModel:
    """asked: how often each prompt came, by prompt. statuses: answered in place of 200, one after
    the other, by prompt. held: prompts that are not answered.
    """

    asked: Counter[str] = field(default_factory=Counter)
    order: list[str] = field(default_factory=list)
    statuses: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    pause_s: float = 0.0
    num_open: int = 0
    most_open: int = 0

    def post(self, owner: str) -> Callable[[str, bytes, dict[str, str]], Any]:
        async def answer(path: str, body: bytes, headers: dict[str, str]) -> Answer:
            prompt = json.loads(body)["prompt"]
            self.asked[prompt] += 1
            self.order.append(prompt)
            self.num_open += 1
            self.most_open = max(self.most_open, self.num_open)
            try:
                await asyncio.sleep(3600 if prompt in self.held else self.pause_s)
            finally:
                self.num_open -= 1
            planned = self.statuses.get(prompt)
            if planned:
                status, code = planned.pop(0)
                failed = error_body("no", error_type="error", code=code)
                return Answer(status, {}, json.dumps(failed).encode())
            return Answer(200, {}, json.dumps(completion(prompt)).encode())

        return answer


class _State:
    num_open = 0

    def answering(self, start: Message) -> None: ...


class BatchPlatform:
    """An async context manager: the API is served inside; `worker` starts workers.

    owner: whose files and batches the API shows. room, rooms: lines that may be under way for a
    model, by default and by name.
    """

    def __init__(self, client: redis.asyncio.Redis, folder: Path) -> None:
        self.redis = client
        self.folder = folder / "files"
        self.storage = FileStorage(str(self.folder))
        self.files = FileStore(client, self.storage, lambda: self.now())
        self.store = self.new_store()
        self.model = FakeModel()
        self.owner = "default"
        self.room = 16
        self.rooms: dict[str, int] = {}
        self.ahead_s = 0.0
        self.workers: list[asyncio.Task[None]] = []
        self._stack = AsyncExitStack()

    def now(self) -> float:
        return time.time() + self.ahead_s

    def new_store(self) -> BatchStore:
        return BatchStore(self.redis, lease_s=LEASE_S, clock=lambda: self.now())

    async def __aenter__(self) -> "BatchPlatform":
        sock = bind("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{sock.getsockname()[1]}"

        def owner_of(_: Request) -> str:
            return self.owner

        files = FileRoutes(self.files, owner_of, max_bytes=2**20)
        batches = BatchRoutes(self.store, self.files, owner_of)
        app = make_app([*files.routes(), *batches.routes()], _State())
        server = DrainingServer(app, RouterOptions(replica_urls=("http://none",)))
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        self.client = openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="-", max_retries=0)

        async def stop() -> None:
            await stop_tasks(self.workers)
            await self.client.close()
            server.should_exit = True
            await serving
            sock.close()

        self._stack.push_async_callback(stop)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    def worker(self, **fields: Any) -> asyncio.Task[None]:
        """A worker in this process; cancelling its task is its sudden end."""
        settings = {"max_lines": 10_000, "max_line_bytes": 10_000, **fields}
        worker = BatchWorker(
            self.new_store(),
            self.files,
            post=self.model.post,
            room=lambda model, num_open: self.rooms.get(model, self.room),
            clock=self.now,
            **settings,
        )
        self.newest = worker
        task = asyncio.create_task(worker.run())
        self.workers.append(task)
        return task

    async def upload(self, *lines: Any) -> str:
        """The id of a file with these lines: bodies' prompts, objects or raw text."""
        data = "".join(_line(each) + "\n" for each in lines).encode()
        file = await self.client.files.create(file=("in.jsonl", data), purpose="batch")
        return file.id

    async def submit(self, *lines: Any, window: str = "24h") -> str:
        file_id = await self.upload(*lines)
        batch = await self.client.batches.create(
            input_file_id=file_id,
            endpoint="/v1/completions",
            completion_window=window,  # type: ignore[arg-type]  # OpenAI knows 24h only
        )
        return batch.id

    async def ended(self, batch_id: str, *, seconds: float = 60.0) -> Any:
        """The batch, once it has ended and is cleaned up."""
        deadline = time.monotonic() + seconds
        while True:
            batch = await self.client.batches.retrieve(batch_id)
            is_cleaned = batch_id not in await self.store.open_ids()
            if batch.status in ("completed", "failed", "expired", "cancelled") and is_cleaned:
                return batch
            assert time.monotonic() < deadline, f"the batch is still {batch.status}"
            await asyncio.sleep(0.02)

    async def lines(self, file_id: str | None) -> list[dict[str, Any]]:
        """What an output or error file says."""
        if file_id is None:
            return []
        content = await self.client.files.content(file_id)
        return [json.loads(line) for line in content.text.splitlines()]


def request(prompt: str, **fields: Any) -> dict[str, Any]:
    """The line that asks for a completion of `prompt`."""
    body = {"model": "fake", "prompt": prompt}
    return {"custom_id": prompt, "method": "POST", "url": "/v1/completions", "body": body} | fields


def _line(given: Any) -> str:
    if isinstance(given, dict):
        return json.dumps(given)
    return str(given) if str(given).startswith("raw:") else json.dumps(request(str(given)))
