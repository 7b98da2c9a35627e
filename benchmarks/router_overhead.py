"""What the router adds: to the time to first token, and to each streamed chunk.

Replicas are fakes in processes of their own: they answer at once and stream at a fixed pace, each
chunk with the time at which it was sent. 16 clients stream one answer after the other, started a
sixteenth of a stream apart; in turn straight to the replicas and through a router, round by round,
so that noise of the machine meets all sides. A second router has replicas whose streams cannot go
on elsewhere: what it spends less is what tracing costs.

    router_ttft_ms   median time to first token through the router, less the direct one
    router_chunk_ms  median time from a chunk's sending to its arrival, likewise
    chunk_cpu_us     processor time of the router for each chunk
    trace_cpu_ratio  the same, divided by that of the second router
    resume_cpu_ratio that of streams with an Idempotency-Key, divided by that of those without

Run: python -m benchmarks.router_overhead
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import psutil
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
    """Seconds measured on one side. router: its process; None: straight to the replicas.
    is_resumable: its streams have an Idempotency-Key.
    """

    urls: Sequence[str]
    router: psutil.Process | None = None
    is_resumable: bool = False
    ttft: list[float] = field(default_factory=list)
    transit: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)  # per chunk, of each round

    def cpu_seconds(self) -> float:
        if self.router is None:
            return 0.0
        times = self.router.cpu_times()
        return float(times.user + times.system)


def measure(*, rounds: int = _ROUNDS) -> dict[str, float]:
    """The figures; also recorded in results/router_overhead.jsonl."""
    figures = asyncio.run(_measure(rounds))
    settings = {"streams": _STREAMS, "chunks": _CHUNKS, "chunk_s": _CHUNK_S, "rounds": rounds}
    settings |= {"prompt_chars": len(_PROMPT)}
    append("router_overhead.jsonl", {**figures, **settings, **conditions()})
    shown = (
        "router_ttft_ms",
        "router_chunk_ms",
        "chunk_cpu_us",
        "trace_cpu_ratio",
        "resume_cpu_ratio",
    )
    return {name: figures[name] for name in shown}


async def _measure(rounds: int) -> dict[str, float]:
    async with _servers() as sides, aiohttp.ClientSession() as client:
        for number in range(rounds + 1):
            for name, side in sides.items():
                before = side.cpu_seconds()
                await asyncio.gather(*(_streams(client, side, slot) for slot in range(_STREAMS)))
                side.cpu.append((side.cpu_seconds() - before) / (len(side.transit) or 1))
                if not number:  # the first round warms up
                    sides[name] = _Side(side.urls, side.router, side.is_resumable)
    return _figures(sides)


def _figures(sides: Mapping[str, _Side]) -> dict[str, float]:
    medians = {
        f"{name}_{what}_ms": statistics.median(values) * 1000
        for name, side in sides.items()
        for what, values in (("ttft", side.ttft), ("chunk", side.transit))
    }
    cpu = {name: statistics.median(side.cpu) for name, side in sides.items() if side.router}
    return {
        "chunk_cpu_us": cpu["routed"] * 1e6,
        "trace_cpu_ratio": cpu["routed"] / cpu["untraced"],
        "resume_cpu_ratio": cpu["resumable"] / cpu["routed"],
        "router_ttft_ms": medians["routed_ttft_ms"] - medians["direct_ttft_ms"],
        "router_chunk_ms": medians["routed_chunk_ms"] - medians["direct_chunk_ms"],
        **medians,
    }


async def _streams(client: aiohttp.ClientSession, side: _Side, slot: int) -> None:
    """What one of the 16 clients does in a round."""
    await asyncio.sleep(slot * _CHUNKS * _CHUNK_S / _STREAMS)
    for _ in range(_STREAMS_PER_CLIENT):
        await _stream(client, side.urls[slot % len(side.urls)], side)


async def _stream(client: aiohttp.ClientSession, url: str, side: _Side) -> None:
    body = {"model": "fake", "prompt": f"{_PROMPT} {time.monotonic()}", "stream": True}
    started = time.monotonic()
    num_chunks = 0
    headers = {"idempotency-key": body["prompt"][-40:]} if side.is_resumable else None
    async with client.post(f"{url}/v1/completions", json=body, headers=headers) as response:
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
async def _servers() -> AsyncIterator[dict[str, _Side]]:
    """Fakes and two routers, each a process, as the sides that are measured."""
    from octavo.local.redis_server import EmbeddedRedis

    with EmbeddedRedis() as redis:
        python = [sys.executable, "-m"]
        processes: list[subprocess.Popen[bytes]] = []
        sides: dict[str, _Side] = {}
        try:
            for name in ("routed", "untraced"):
                replicas = [
                    _start([*python, "benchmarks.router_overhead", "--replica", name, redis.url])
                    for _ in range(_NUM_REPLICAS)
                ]
                processes += replicas
                port = str(free_port())
                flags = ["--redis-url", redis.url, "--deployment", name, "--port", port]
                router = _start([*python, "octavo", "router", *flags])
                processes.append(router)
                urls = [await asyncio.to_thread(_read_line, replica) for replica in replicas]
                sides.setdefault("direct", _Side(urls))
                sides[name] = _Side([f"http://127.0.0.1:{port}"], psutil.Process(router.pid))
                await _wait_ready(sides[name].urls[0])
            routed = sides["routed"]
            sides["resumable"] = _Side(routed.urls, routed.router, is_resumable=True)
            yield sides
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


async def _run_replica(deployment: str, redis_url: str) -> None:
    """One fake until SIGTERM. Prints its URL."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    keys = Keys("default", deployment)
    async with FakeReplica(str(os.getpid()), redis_url=redis_url, keys=keys) as replica:
        replica.behaviour.is_traced = deployment != "untraced"
        replica.behaviour.is_instant = True
        replica.behaviour.chunk_s = _CHUNK_S
        replica.behaviour.num_chunks = _CHUNKS
        print(replica.record.url, flush=True)
        await stop.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="What the router adds to streams.")
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    parser.add_argument(
        "--replica", nargs=2, metavar=("DEPLOYMENT", "REDIS"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.replica:
        asyncio.run(_run_replica(*options.replica))
        return
    print(" ".join(f"{name}={value:.2f}" for name, value in measure(rounds=options.rounds).items()))


if __name__ == "__main__":
    main()
