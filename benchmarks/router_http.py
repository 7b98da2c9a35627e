"""Requests a second and added latency of the router, per core: `python -m benchmarks.router_http`.

Replicas that answer at once (`benchmarks.instant_replica`) in one process, the router in another,
the clients in this one; on two cores or more the router has one to itself. Closed loops of 1 to 512
connections with whole answers and with streams of 16 events; then 2,000 paced streams at once.

    rps_per_core   requests per second of the router's processor time: robust on a busy machine
    added_ms_p50   median time to the first byte through the router, less the direct one, of one
                   connection; the larger of whole answers and streams

Sides: `octavo`, as it is by default on Redis (tokenizes, looks up the prefix index, decides); and
`octavo-plain`, round robin over given addresses, which is the work that most routers do.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import psutil
import uvloop

from benchmarks.http_load import LoadResult, bodies, closed_loop, percentile_ms, request_bytes
from benchmarks.record import append, conditions
from octavo.local.ports import free_port
from octavo.local.redis_server import EmbeddedRedis
from octavo_protocol.serving import raise_file_limit

RESULTS = "router_http.jsonl"
CONCURRENCIES = (1, 8, 64, 512)
_NUM_REPLICAS = 2
_MANY = 2000
_MANY_CHUNK_MS = 400
_START_TIMEOUT_S = 60.0
DEPLOYMENT = "bench"


@dataclass(frozen=True, slots=True)
class Side:
    """A router to measure. command: without it, requests go straight to the replicas."""

    name: str
    command: tuple[str, ...] = ()
    port: int = 0


@dataclass(slots=True)
class Running:
    """A side that is up. cpu_s: of its process and of those that it started."""

    urls: Sequence[str]
    process: psutil.Process | None = None
    runs: dict[str, list["Run"]] = field(default_factory=dict)

    def cpu_s(self) -> float:
        times = [each.cpu_times() for each in self._all()]
        return float(sum(each.user + each.system for each in times))

    def resident_bytes(self) -> int:
        return int(sum(each.memory_info().rss for each in self._all()))

    def _all(self) -> list[psutil.Process]:
        if self.process is None:
            return []
        return [self.process, *self.process.children(recursive=True)]


@dataclass(frozen=True, slots=True)
class Run:
    load: LoadResult
    cpu_s: float


def octavo_sides(urls: Sequence[str], redis_url: str) -> list[Side]:
    """The router in both forms."""
    sides = []
    forms = {
        "octavo": ["--redis-url", redis_url, "--deployment", DEPLOYMENT],
        "octavo-plain": [*(f"--replica-url={url}" for url in urls), "--policy", "round-robin"],
    }
    for name, flags in forms.items():
        port = free_port()
        quiet = ["--disable-uvicorn-access-log", "--log-level", "warning"]
        command = [sys.executable, "-m", "octavo", "router", *flags, *quiet, "--port", str(port)]
        sides.append(Side(name, tuple(command), port))
    return sides


def run(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, prints and records; returns the figures of `octavo`."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results")
    given = parser.parse_args(arguments)
    with replicas() as (urls, redis_url):
        figures = compare(octavo_sides(urls, redis_url), urls, given)
    if given.record:
        append(RESULTS, {**conditions(), **figures})
    return figures["octavo"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=2.0, help="of each closed loop")
    parser.add_argument("--rounds", type=int, default=3, help="all sides in turn; medians count")
    parser.add_argument("--streams", type=int, default=_MANY, help="at once, at the end; 0: none")


def compare(
    sides: Sequence[Side], urls: Sequence[str], given: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Figures by side: all sides up at once, measured in turn."""
    with contextlib.ExitStack() as stack:
        running = {"direct": Running(urls)}
        running |= {side.name: stack.enter_context(_running(side)) for side in sides}
        _own_core([each.process for each in running.values() if each.process is not None])
        settings = {"seconds": given.seconds, "rounds": given.rounds, "streams": given.streams}
        settings |= {"load_average_before": os.getloadavg()[0]}
        uvloop.run(_measure(running, given))
        figures = {
            name: _figures(each, running["direct"]) for name, each in running.items() if each.runs
        }
        for name, each in running.items() if given.streams else ():
            figures[name]["streams"] = uvloop.run(_many_streams(each, given.streams))
    for name, told in figures.items():
        _tell(name, told)
    return {**figures, "settings": settings}


@contextlib.contextmanager
def replicas() -> Iterator[tuple[list[str], str]]:
    """Addresses of instant replicas, and the Redis where they are known."""
    raise_file_limit()  # children inherit it
    with EmbeddedRedis() as redis:
        command = [sys.executable, "-m", "benchmarks.instant_replica", "--redis", redis.url]
        command += ["--deployment", DEPLOYMENT, "--replicas", str(_NUM_REPLICAS)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        try:
            yield (
                [process.stdout.readline().decode().strip() for _ in range(_NUM_REPLICAS)],
                (redis.url),
            )
        finally:
            process.terminate()
            process.communicate(timeout=20)


@contextlib.contextmanager
def _running(side: Side) -> Iterator[Running]:
    with tempfile.TemporaryFile() as log:
        process = psutil.Popen(side.command, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{side.port}"
            _wait_ready(side.name, url, process, log)
            yield Running([url], process)
        finally:
            everyone = [process, *process.children(recursive=True)] if process.is_running() else []
            for each in everyone:
                each.terminate()
            for each in psutil.wait_procs(everyone, timeout=10)[1]:
                each.kill()


def _wait_ready(name: str, url: str, process: psutil.Popen, log: IO[bytes]) -> None:
    """Until it answers a request. Raises `RuntimeError` with the end of its log."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    asked = urllib.request.Request(
        f"{url}/v1/chat/completions",
        bodies(is_stream=False)[0],
        {"content-type": "application/json"},
    )
    while True:
        try:
            with urllib.request.urlopen(asked, timeout=5):
                return
        except OSError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                log.seek(0)
                said = log.read()[-2000:].decode(errors="replace")
                raise RuntimeError(f"{name} did not start: {error}\n{said}") from error
        time.sleep(0.1)


def _own_core(routers: Sequence[psutil.Process]) -> None:
    """Routers, of which one works at a time, get one core, everything else the others."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return
    parent = psutil.Process()
    for each in (parent, *parent.children(recursive=True)):
        for thread in each.threads():
            os.sched_setaffinity(thread.id, cores[:-1])
    for router in routers:
        for each in (router, *router.children(recursive=True)):
            for thread in each.threads():
                os.sched_setaffinity(thread.id, cores[-1:])


async def _measure(running: Mapping[str, Running], given: argparse.Namespace) -> None:
    for number in range(given.rounds + 1):
        for kind in ("whole", "stream"):
            for concurrency in CONCURRENCIES:
                for side in running.values():
                    one = await _load(side, kind, concurrency, given.seconds if number else 0.5)
                    if number:  # the first round warms up
                        side.runs.setdefault(f"{kind} {concurrency}", []).append(one)


async def _load(side: Running, kind: str, concurrency: int, seconds: float) -> Run:
    asked = [request_bytes(side.urls[0], each) for each in bodies(is_stream=kind == "stream")]
    before = side.cpu_s()
    load = await closed_loop(side.urls, asked, concurrency=concurrency, seconds=seconds)
    return Run(load, side.cpu_s() - before)


async def _many_streams(side: Running, number: int) -> dict[str, Any]:
    """All open at once: each takes longer than it takes to begin them."""
    chunks = bodies(is_stream=True, chunk_ms=_MANY_CHUNK_MS)
    asked = [request_bytes(side.urls[0], each) for each in chunks]
    memory, cpu_s = side.resident_bytes(), side.cpu_s()
    load = await closed_loop(side.urls, asked, concurrency=number)
    return {
        "num_streams": number,
        "num_errors": len(load.errors),
        "errors": load.errors[:2],
        "first_byte_p99_ms": load.first_byte_ms(99) if load.num_done > 1 else None,
        "cpu_s": side.cpu_s() - cpu_s,
        "grown_bytes": side.resident_bytes() - memory,
    }


def _figures(side: Running, direct: Running) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name, runs in side.runs.items():
        done = [each for each in runs if each.load.num_done > 1]
        row: dict[str, Any] = {"num_errors": sum(len(each.load.errors) for each in runs)}
        row["errors"] = [error for each in runs for error in each.load.errors][:2]
        if done:
            row["rps"] = statistics.median(e.load.num_done / e.load.seconds for e in done)
            row["p50_ms"] = statistics.median(e.load.first_byte_ms(50) for e in done)
            row["p99_ms"] = statistics.median(e.load.first_byte_ms(99) for e in done)
            row["total_p50_ms"] = statistics.median(percentile_ms(e.load.total, 50) for e in done)
        if done and side.process is not None:
            row["rps_per_core"] = statistics.median(
                each.load.num_done / max(each.cpu_s, 0.01) for each in done
            )
            row["added_ms_p50"] = statistics.median(
                ours.load.first_byte_ms(50) - theirs.load.first_byte_ms(50)
                for ours, theirs in zip(done, direct.runs[name], strict=False)
            )
        figures[name] = row
    return figures


def _tell(name: str, figures: Mapping[str, Any]) -> None:
    for kind, row in figures.items():
        shown = (
            f"{key}={value:.5g}" if isinstance(value, float) else f"{key}={value}"
            for key, value in row.items()
            if value != []
        )
        print(f"{name:<24}{kind:<12}", *shown, flush=True)


def summary(figures: Mapping[str, Any]) -> dict[str, str]:
    """What `make bench-router` says of them."""
    added = max(figures[f"{kind} 1"]["added_ms_p50"] for kind in ("whole", "stream"))
    return {
        "added_ms_p50": f"{added:.2f}",
        "rps_per_core": f"{figures['whole 64']['rps_per_core']:.0f}",
    }


if __name__ == "__main__":
    run()
