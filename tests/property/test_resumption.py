"""Whatever leaves, comes back, halts or dies: a client sees every event once, in order.

Routers here are `Resumption`s over one journal; replicas are a function that says the next word.
Hypothesis chooses which router is asked, how far the client reads, and who dies, halts or wakes up.
"""

import asyncio
import json
from dataclasses import dataclass
from typing import Any, cast

from hypothesis import example, given
from hypothesis import strategies as st
from tests.fakes.virtual_time import run_in_virtual_time

from octavo_protocol.asgi import Message, Send
from octavo_protocol.continuation import ContinuationRequest, TraceEntry
from octavo_protocol.keys import Keys
from octavo_router.metrics import RouterMetrics
from octavo_router.proxy import Proxy, ProxyRequest
from octavo_router.resumption import Asked, Resumption
from octavo_router.resumption.journal import Journal, JournalAwayError, JournalLimits
from octavo_router.resumption.memory_journal import MemoryJournal
from octavo_router.stream_trace import StreamTrace

NUM_ROUTERS = 3
NUM_WORDS = 12
PATIENCE_S = 30.0
WORD_S = 0.5
LIMITS = JournalLimits(lease_s=3.0, ttl_s=1000.0)
BODY = b'{"stream":true}'
DONE = b"data: [DONE]\n\n"
WHOLE = list(range(NUM_WORDS))


class Link:
    """One router's way to the journal. is_open: a router that is halted, or dead, gets no answer.
    is_cut: it gets an error.
    """

    def __init__(self, journal: MemoryJournal) -> None:
        self._journal = journal
        self.is_open = asyncio.Event()
        self.is_open.set()
        self.is_cut = False

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._journal, name)

        async def called(*args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(0.01)
            await self.is_open.wait()
            if self.is_cut:
                raise JournalAwayError("cut")
            return await method(*args, **kwargs)

        return method if name == "watch" else called


@dataclass
class Replicas:
    """The proxy of one router. Two runs never give the same events for the same words.

    sizes: words of one event, in turn, for ever. log: words already said when each run began.
    """

    sizes: list[int]
    log: list[int]

    async def generate(self, request: ProxyRequest, trace: StreamTrace, send: Send) -> None:
        said = 0
        if trace.has_begun:
            raw = trace.continuation(request.path, request.body)[1]
            entries = ContinuationRequest.model_validate_json(raw).trace
            said = sum(len(entry.token_ids) for entry in entries)
            trace.begin("1-" + "0" * 32)
        else:
            trace.begin("1-" + "0" * 32)
            headers = [(b"content-type", b"text/event-stream")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        run = len(self.log)
        self.log.append(said)
        turn = run
        while said < NUM_WORDS:
            await asyncio.sleep(WORD_S)
            events, begin = b"", said
            for _ in range(1 + turn % 2):
                end = min(said + self.sizes[turn % len(self.sizes)], NUM_WORDS)
                events += event(run, range(said, end))
                said, turn = end, turn + 1
            entry = TraceEntry(0, list(range(begin, said)))
            await send(body(trace.feed(events + entry.line())))
        trace.feed(DONE)
        await send(body(trace.finish(), is_last=True))


def event(run: int, words: range) -> bytes:
    return b"data: " + json.dumps({"run": run, "words": list(words)}).encode() + b"\n\n"


def words_of(events: list[bytes]) -> list[int]:
    chunks = [json.loads(each.removeprefix(b"data: ")) for each in events if each != DONE]
    return [word for chunk in chunks for word in chunk["words"]]


def body(data: bytes, *, is_last: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": not is_last}


class World:
    """Routers over one journal."""

    def __init__(self, sizes: list[int]) -> None:
        self.log: list[int] = []
        self._sizes = sizes
        self._journal = MemoryJournal(LIMITS, asyncio.get_running_loop().time)
        self._all: list[tuple[Resumption, Link]] = []
        self.links: list[Link] = []
        self.routers: list[Resumption] = []
        for number in range(NUM_ROUTERS):
            self._start(number)

    def _start(self, number: int) -> None:
        link = Link(self._journal)
        router = Resumption(
            proxy=cast(Proxy, Replicas(self._sizes, self.log)),
            journal=cast(Journal, link),
            limits=LIMITS,
            grace_s=2.0,
            metrics=RouterMetrics(),
            clock=asyncio.get_running_loop().time,
        )
        self.routers[number : number + 1] = [router]
        self.links[number : number + 1] = [link]
        self._all.append((router, link))

    def kill(self, number: int) -> None:
        """Another router comes in the place of one that is gone without a word."""
        self.links[number].is_open.clear()
        self._start(number)

    async def close(self) -> None:
        for router, link in self._all:
            link.is_cut = True
            link.is_open.set()
            await router.close()


class Client:
    """events: what it has seen; fails on what does not follow."""

    def __init__(self) -> None:
        self.events: list[bytes] = []
        self.is_done = False
        self.errors: list[Exception] = []

    async def read(self, router: Resumption, until: int) -> None:
        """Reads to event `until`, the end or an error, and leaves."""
        has_enough = asyncio.Event()

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start" or has_enough.is_set():
                return
            self._take(message["body"], until)
            if not message["more_body"] and self.events[-1:] == [DONE]:
                self.is_done = True
            if len(self.events) >= until:
                has_enough.set()

        asked = Asked("key", "body", len(self.events))
        answering = asyncio.ensure_future(router.answer(REQUEST, asked, send))
        leaving = asyncio.ensure_future(has_enough.wait())
        both = (answering, leaving)
        await asyncio.wait(both, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        for task in both:
            task.cancel()
        results = await asyncio.gather(*both, return_exceptions=True)
        if isinstance(results[0], Exception):
            self.errors.append(results[0])

    def _take(self, data: bytes, until: int) -> None:
        for numbered in data.split(b"\n\n")[:-1]:
            if len(self.events) == until:  # the connection broke before the rest
                return
            first, _, rest = numbered.partition(b"\n")
            if rest:
                assert first == b"id: %d" % (len(self.events) + 1), numbered
                self.events.append(rest + b"\n\n")


class _Deployment:
    keys = Keys("n", "d")


REQUEST = ProxyRequest(
    deployment=cast(Any, _Deployment),
    request_id="r",
    path="/v1/completions",
    body=BODY,
    model=None,
    key=cast(Any, None),
)
ROUTER = st.integers(0, NUM_ROUTERS - 1)
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), ROUTER, st.integers(1, 5)),
        st.tuples(st.sampled_from(["kill", "halt", "wake"]), ROUTER, st.just(0)),
        st.tuples(st.just("wait"), st.just(0), st.integers(1, 8)),
    ),
    max_size=8,
)
SIZES = st.lists(st.integers(1, 3), min_size=1, max_size=4)


async def act(world: World, client: Client, kind: str, number: int, amount: int) -> None:
    if kind == "read":
        await client.read(world.routers[number], until=len(client.events) + amount)
    elif kind == "kill":
        world.kill(number)
    elif kind == "halt":
        world.links[number].is_open.clear()
    elif kind == "wake":
        world.links[number].is_open.set()
    elif kind == "cut":
        world.links[number].is_cut = True
    else:
        await asyncio.sleep(amount / 2)


@given(ACTIONS, SIZES)
@example(  # a router that wakes up behind the client
    [
        ("read", 0, 1),
        ("halt", 0, 0),
        ("wait", 0, 8),
        ("read", 1, 4),
        ("wake", 0, 0),
        ("read", 0, 1),
    ],
    [1],
)
def test_a_client_sees_what_an_undisturbed_one_sees(
    actions: list[tuple[str, int, int]], sizes: list[int]
) -> None:
    async def story() -> None:
        world, client, other = World(sizes), Client(), Client()
        for action in actions:
            await act(world, client, *action)
        for link in world.links:
            link.is_open.set()
        for router in world.routers * 2:
            if not client.is_done:
                await client.read(router, until=99)
        await other.read(world.routers[0], until=99)
        await world.close()
        assert client.errors == []
        assert client.events == other.events
        assert words_of(client.events) == WHOLE
        assert client.is_done

    run_in_virtual_time(story())


@given(ACTIONS, SIZES, st.integers(0, 7), ROUTER)
def test_a_router_that_loses_redis_repeats_and_skips_nothing(
    actions: list[tuple[str, int, int]], sizes: list[int], when: int, number: int
) -> None:
    """What it shows then cannot be resumed; no other router pretends that it can."""

    async def story() -> None:
        world, client = World(sizes), Client()
        for action in [*actions[:when], ("cut", number, 0), *actions[when:]]:
            await act(world, client, *action)
        for link in world.links:
            link.is_open.set()
        for router in world.routers:
            if not client.is_done:
                await client.read(router, until=99)
        await world.close()
        words = words_of(client.events)
        assert words == WHOLE[: len(words)]
        assert client.is_done or client.errors

    run_in_virtual_time(story())


def test_requests_at_the_same_time_generate_once() -> None:
    async def story() -> None:
        world, clients = World([1]), [Client() for _ in range(9)]
        await asyncio.gather(
            *(
                client.read(world.routers[i % NUM_ROUTERS], until=99)
                for i, client in enumerate(clients)
            )
        )
        await world.close()
        assert [words_of(client.events) for client in clients] == [WHOLE] * 9
        assert world.log == [0]

    run_in_virtual_time(story())
