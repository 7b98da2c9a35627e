"""Loads adapters for requests that arrive side by side, without stopping any other request.

One load at a time per name; whoever asks for the same adapter waits for it. Where the engine's host
memory is full of adapters in use, a load waits until one of them is free, and later requests that
want an adapter queue behind it, in the order in which they came: nobody waits for ever.
"""

import asyncio
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, TypeVar, overload

from octavo_protocol.errors import AdapterNotFoundError, OctavoError, UnavailableError
from octavo_protocol.lora import LoRARequest
from octavo_protocol.tasks import stop_tasks
from octavo_runtime.engine.adapters import AdapterBook, KnownAdapter, already_loaded
from octavo_runtime.engine.daemon_thread import in_daemon_thread
from octavo_runtime.models.adapter_source import resolve_adapter

Control = Callable[..., Awaitable[Any]]
_MAX_FETCHES = 4  # at a time
Wanted = LoRARequest | str | None  # a name: of an adapter that is known
_T = TypeVar("_T")


class AsyncAdapters:
    """control: calls a method of the engine by name, with keyword arguments. max_adapters: that it
    holds in host memory; None: not known yet.
    """

    def __init__(self, control: Control, max_adapters: int | None = None) -> None:
        self.book = AdapterBook()
        self.max_adapters = max_adapters
        self._control = control
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._fetches = asyncio.Semaphore(_MAX_FETCHES)
        self._line = asyncio.Lock()  # held by the load that waits for room
        self._users: Counter[str] = Counter()  # by name, those that wait for the load too
        self._loading: set[str] = set()
        self._newest_number = 0
        self._freed = asyncio.Event()

    def next_number(self) -> int:
        """A `lora_int_id` that no adapter has."""
        self._newest_number += 1
        while self.book.by_number(self._newest_number) is not None:
            self._newest_number += 1
        return self._newest_number

    @overload
    def request(self, wanted: LoRARequest | str) -> LoRARequest: ...
    @overload
    def request(self, wanted: None) -> None: ...
    def request(self, wanted: Wanted) -> LoRARequest | None:
        """What `wanted` means now. Raises `AdapterNotFoundError` for a name that is not known."""
        return self.book.find(wanted).request if isinstance(wanted, str) else wanted

    @asynccontextmanager
    async def using(self, wanted: Wanted) -> AsyncIterator[str]:
        """The identity of the version that a request which arrives now is to use; empty: none.

        Inside, the adapter counts as in use. Loads it where the engine does not have it; raises
        what `load` raises.
        """
        if wanted is None:
            yield ""
            return
        if self._line.locked():
            async with self._line:
                pass
        name = wanted if isinstance(wanted, str) else wanted.lora_name
        self._users[name] += 1
        try:
            known = self.book.usable(self.request(wanted))
            if known is None:
                known = await self._apart(self._loaded(name, wanted))
            yield known.identity
        finally:
            self._users[name] -= 1
            self._users += Counter()  # drops names without users
            self._freed.set()

    async def load(
        self, request: LoRARequest, *, revision: str | None = None, pinned: bool = False
    ) -> KnownAdapter:
        """Makes the adapter known and loads it. pinned: it is never evicted.

        Raises `ValidationError` for a name that is known (but with `load_inplace`) and for files
        that are no adapter for this model, `AdapterNotFoundError` where there are none, and
        `UnavailableError` where there is no room and none will come.
        """
        return await self._apart(self._load(request, revision, pinned))

    async def unload(self, name: str) -> None:
        """Forgets the adapter; requests that use it go on. Raises `AdapterNotFoundError`."""
        await self._apart(self._unload(name))

    async def pin(self, name: str) -> None:
        """Loads it if needed, and keeps it from eviction. Raises `AdapterNotFoundError`."""
        async with self.using(name):
            await self._control("pin_adapter", name=name)

    async def compare(self) -> None:
        """Asks the engine what it has. What it sent before has been received when this returns."""
        self.book.compare(await self._control("list_adapters"))

    async def close(self) -> None:
        """Ends all loads; whoever waits for one is cancelled."""
        await stop_tasks(self._tasks)

    async def _load(self, request: LoRARequest, revision: str | None, pinned: bool) -> KnownAdapter:
        async with self._lock(request.lora_name):
            self.book.check(request)
            if not request.load_inplace and self.book.get(request.lora_name) is not None:
                raise already_loaded(request.lora_name)
            return await self._fetch_and_load(request, revision, pinned)

    async def _loaded(self, name: str, wanted: LoRARequest | str) -> KnownAdapter:
        """Loads what a request needs; another one may have done it meanwhile, or unloaded it."""
        async with self._lock(name):
            request = self.request(wanted)
            if (usable := self.book.usable(request)) is not None:
                return usable
            known = self.book.get(name)
            revision = None if known is None else known.revision
            return await self._fetch_and_load(request, revision, pinned=False)

    async def _unload(self, name: str) -> None:
        async with self._lock(name):
            known = self.book.find(name)
            self.book.forget(name)
            if known.is_loaded:
                with suppress(AdapterNotFoundError):  # evicted by a load that is not answered yet
                    await self._control("unload_adapter", name=name)

    async def _fetch_and_load(
        self, request: LoRARequest, revision: str | None, pinned: bool
    ) -> KnownAdapter:
        try:
            return await self._fetched_and_loaded(request, revision, pinned)
        except OctavoError as error:
            self.book.note_error(request, revision, error.message)
            raise

    async def _fetched_and_loaded(
        self, request: LoRARequest, revision: str | None, pinned: bool
    ) -> KnownAdapter:
        async with self._fetches:
            folder = await in_daemon_thread(
                partial(resolve_adapter, request.lora_path, revision=revision), "adapter"
            )
        arguments = {
            "name": request.lora_name,
            "path": str(folder),
            # A name that is known may be in the engine still, whatever it has told.
            "load_inplace": request.load_inplace or self.book.get(request.lora_name) is not None,
            "pinned": pinned,
        }
        known = self.book.take(request, revision, await self._load_in_turn(arguments))
        if not self._users[request.lora_name]:  # else it becomes free when they end
            self._freed.set()
        return known

    async def _load_in_turn(self, arguments: dict[str, Any]) -> Any:
        """Asks the engine, at once or whenever an adapter may have become free.

        Raises `UnavailableError` when there is no room and none is in use.
        """
        name = arguments["name"]
        if not self._line.locked() and self._has_place(name):
            try:
                return await self._ask_engine(arguments)
            except BaseException as error:
                self._freed.set()  # the place that it would have taken
                if not isinstance(error, UnavailableError):
                    raise
        async with self._line:
            while True:
                self._freed.clear()
                others = self._in_use() - {name}
                if not others or self._has_place(name):
                    try:
                        return await self._ask_engine(arguments)
                    except UnavailableError:
                        if not others:
                            raise
                await self._freed.wait()

    async def _ask_engine(self, arguments: dict[str, Any]) -> Any:
        name = arguments["name"]
        self._loading.add(name)
        try:
            return await self._control("load_adapter", **arguments)
        finally:
            self._loading.discard(name)

    def _has_place(self, name: str) -> bool:
        """The engine need not evict what requests on their way to it are going to use."""
        return self.max_adapters is None or len(self._in_use() - {name}) < self.max_adapters

    def _in_use(self) -> set[str]:
        loaded = {each.name for each in self.book if each.is_loaded and self._users[each.name]}
        return loaded | self._loading

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    async def _apart(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Awaits `work`, which goes on when the caller leaves: the engine loads all the same, and
        what it answers has to be noted.
        """
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may have left
