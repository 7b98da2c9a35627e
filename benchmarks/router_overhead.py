"""What the router adds: to the time to first token, and to each streamed chunk.

Replicas are fakes in processes of their own: they answer at once and stream at a fixed pace, each
chunk with the time at which it was sent. 16 clients stream one answer after the other, started a
sixteenth of a stream apart; in turn straight to the replicas and through the router, round by
round, so that noise of the machine meets both sides.

    router_ttft_ms   median time to first token through the router, less the direct one
    router_chunk_ms  median time from a chunk's sending to its arrival, likewise

Run: python -m benchmarks.router_overhead
"""

import argparse
import asyncio
import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from tests.fakes.fake_replica import FakeReplica

from benchmarks.record import append, conditions
from octavo.local.ports import free_port
from octavo_protocol.keys import Keys

_STREAMS = 16
_CHUNKS = 40
_CHUNK_S = 0.02
_STREAMS_PER_CLIENT = 3
_ROUNDS = 5
_NUM_REPLICAS = 2
_PROMPT = "the quick brown fox jumps over the lazy dog and sleeps until the morning " * 8
_START_TIMEOUT_S = 30.0


@dataclass(slots=True)
class _Side:
    """Seconds measured on one side."""

    ttft: list[float] = field(default_factory=list)
    transit: list[float] = field(default_factory=list)


def measure(*, rounds: int = _ROUNDS) -> dict[str, float]:
    """Both figures in milliseconds; also recorded in results/router_overhead.jsonl."""
    figures = asyncio.run(_measure(rounds))
    settings = {"streams": _STREAMS, "chunks": _CHUNKS, "chunk_s": _CHUNK_S, "rounds": rounds}
    settings |= {"prompt_chars": len(_PROMPT)}
    append("router_overhead.jsonl", {**figures, **settings, **conditions()})
    return {name: figures[name] for name in ("router_ttft_ms", "router_chunk_ms")}


async def _measure(rounds: int) -> dict[str, float]:
    direct, routed = _Side(), _Side()
    async with _servers() as (replica_urls, router_url), aiohttp.ClientSession() as client:
        for number in range(rounds + 1):
            for side, urls in ((direct, replica_urls), (routed, [router_url])):
                kept = side if number else _Side()  # the first round warms up
                await asyncio.gather(
                    *(_streams(client, urls[i % len(urls)], i, kept) for i in range(_STREAMS))
                )
    medians = {
        f"{name}_{what}_ms": statistics.median(values) * 1000
        for name, side in (("direct", direct), ("routed", routed))
        for what, values in (("ttft", side.ttft), ("chunk", side.transit))
    }
    return {
        "router_ttft_ms": medians["routed_ttft_ms"] - medians["direct_ttft_ms"],
        "router_chunk_ms": medians["routed_chunk_ms"] - medians["direct_chunk_ms"],
        **medians,
    }


async def _streams(client: aiohttp.ClientSession, url: str, slot: int, side: _Side) -> None:
    """What one of the 16 clients does in a round."""
    await asyncio.sleep(slot * _CHUNKS * _CHUNK_S / _STREAMS)
    for _ in range(_STREAMS_PER_CLIENT):
        await _stream(client, url, side)


async def _stream(client: aiohttp.ClientSession, url: str, side: _Side) -> None:
    body = {"model": "fake", "prompt": f"{_PROMPT} {time.monotonic()}", "stream": True}
    started = time.monotonic()
    num_chunks = 0
    async with client.post(f"{url}/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            arrived = time.monotonic()
            if not num_chunks:
                side.ttft.append(arrived - started)
            sent = float(json.loads(line[len(b"data: ") :])["choices"][0]["text"])
            side.transit.append(arrived - sent)
            num_chunks += 1
    assert num_chunks == _CHUNKS, f"{num_chunks} chunks of {_CHUNKS}"


@asynccontextmanager
async def _servers() -> AsyncIterator[tuple[list[str], str]]:
    """Fakes and a router, each a process; their URLs."""
    from octavo.local.redis_server import EmbeddedRedis

    with EmbeddedRedis() as redis:
        python = [sys.executable, "-m"]
        port = free_port()
        commands = [
            *(
                [*python, "benchmarks.router_overhead", "--replica", str(i), redis.url]
                for i in range(_NUM_REPLICAS)
            ),
            [*python, "octavo", "router", "--port", str(port), "--redis-url", redis.url],
        ]
        processes = [_start(command) for command in commands]
        try:
            urls = [await asyncio.to_thread(_read_line, p) for p in processes[:_NUM_REPLICAS]]
            router_url = f"http://127.0.0.1:{port}"
            await _wait_ready(router_url)
            yield urls, router_url
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.communicate(timeout=20)


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def _read_line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().decode().strip()


async def _wait_ready(url: str) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    async with aiohttp.ClientSession() as client:
        while True:
            try:
                async with client.get(f"{url}/v1/models") as response:
                    if response.ok and (await response.json())["data"]:
                        return
            except aiohttp.ClientError:
                pass
            assert time.monotonic() < deadline, "the router did not become ready"
            await asyncio.sleep(0.05)


async def _run_replica(name: str, redis_url: str) -> None:
    """One fake until SIGTERM. Prints its URL."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with FakeReplica(name, redis_url=redis_url, keys=Keys("default", "default")) as replica:
        replica.behaviour.is_instant = True
        replica.behaviour.chunk_s = _CHUNK_S
        replica.behaviour.num_chunks = _CHUNKS
        print(replica.record.url, flush=True)
        await stop.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="What the router adds to streams.")
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    parser.add_argument("--replica", nargs=2, metavar=("NAME", "REDIS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.replica:
        asyncio.run(_run_replica(*options.replica))
        return
    print(" ".join(f"{name}={value:.2f}" for name, value in measure(rounds=options.rounds).items()))


if __name__ == "__main__":
    main()
