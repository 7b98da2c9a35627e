"""How many tokens a second the API process can stream, when the engine is not the limit.

The engine process runs the real scheduler without a model (tokens cost nothing), so the API process
decides: text from tokens, server-sent events, sockets. It is held on one core; the engine and the
clients share another. 256 clients stream chat answers with SmolLM2's tokenizer at the same time.

    tokens_per_s      tokens that reached the clients, by the clock
    cpu_us_per_token  processor time of the API process for each
    tokens_per_chunk  1 while the API process keeps up; more when it falls behind, since the
                      tokens that wait for a stream then go out together
    trace_cpu_ratio   processor time of streams that a router follows, divided by that of others;
                      rounds of both take turns

Run: python -m benchmarks.api_streaming
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from benchmarks.record import append, conditions
from octavo.local.ports import free_port
from octavo_protocol.continuation import TRACE_HEADER

_STREAMS = 256
_TOKENS = 256
_START_TIMEOUT_S = 60.0
_API_CORE, _OTHER_CORE = 0, 1
_PROMPT = "Write a long story about a fox that wants to see the sea, and do not stop early."


@dataclass(frozen=True, slots=True)
class _Load:
    seconds: float
    cpu_seconds: float
    num_tokens: int
    num_chunks: int


def measure(*, streams: int = _STREAMS, tokens: int = _TOKENS, rounds: int = 3) -> dict[str, float]:
    """The figures of the median round; also recorded in results/api_streaming.jsonl."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.api_streaming", "--server", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        loads = asyncio.run(_measure(server.pid, port, streams, tokens, rounds))
    finally:
        server.terminate()
        server.wait(timeout=30)
    plain, traced = loads[::2], loads[1::2]
    load = sorted(plain, key=lambda each: each.num_tokens / each.seconds)[len(plain) // 2]
    cpu = [statistics.median(each.cpu_seconds for each in side) for side in (plain, traced)]
    figures = {
        "tokens_per_s": load.num_tokens / load.seconds,
        "cpu_us_per_token": load.cpu_seconds / load.num_tokens * 1e6,
        "tokens_per_chunk": load.num_tokens / load.num_chunks,
        "trace_cpu_ratio": cpu[1] / cpu[0],
    }
    settings = {"streams": streams, "tokens": tokens, "rounds": rounds}
    append("api_streaming.jsonl", {**figures, **settings, **conditions()})
    return figures


async def _measure(pid: int, port: int, streams: int, tokens: int, rounds: int) -> list[_Load]:
    url = f"http://127.0.0.1:{port}"
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=timeout
    ) as client:
        await _wait_ready(client, url)
        _pin(pid)
        loads = []
        for number in range(2 * rounds + 2):
            cpu, started = _cpu_seconds(pid), time.perf_counter()
            headers = {TRACE_HEADER: "1"} if number % 2 else {}
            counts = await asyncio.gather(
                *(_stream(client, url, tokens, headers) for _ in range(streams))
            )
            load = _Load(
                time.perf_counter() - started,
                _cpu_seconds(pid) - cpu,
                streams * tokens,
                sum(counts),
            )
            if number > 1:  # the first two rounds warm up
                loads.append(load)
        return loads


async def _stream(
    client: aiohttp.ClientSession, url: str, tokens: int, headers: dict[str, str]
) -> int:
    """Number of chunks with text. Raises when the answer is short of tokens."""
    body = {
        "messages": [{"role": "user", "content": _PROMPT}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": tokens,
        "ignore_eos": True,
    }
    num_chunks, tail = 0, b""
    async with client.post(f"{url}/v1/chat/completions", json=body, headers=headers) as response:
        response.raise_for_status()
        async for piece in response.content.iter_any():
            num_chunks += piece.count(b'"delta":{"content"')
            tail = (tail + piece)[-4096:]
    usage = next(line for line in tail.split(b"\n") if b'"usage"' in line)
    assert json.loads(usage[len(b"data: ") :])["usage"]["completion_tokens"] == tokens
    return num_chunks


async def _wait_ready(client: aiohttp.ClientSession, url: str) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            async with client.get(f"{url}/ready") as response:
                if response.ok:
                    return
        except aiohttp.ClientError:
            pass
        assert time.monotonic() < deadline, "the server did not become ready"
        await asyncio.sleep(0.05)


def _pin(api_pid: int) -> None:
    """The API process alone on one core, everything else on the other."""
    if (os.cpu_count() or 1) < 2:
        return
    os.sched_setaffinity(0, {_OTHER_CORE})
    for pid, core in ((api_pid, _API_CORE), *((pid, _OTHER_CORE) for pid in _children(api_pid))):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {core})


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _serve(port: int) -> None:
    from octavo_runtime.config import EngineConfig
    from octavo_runtime.models.source import resolve_model
    from octavo_runtime.server.serve import ServeOptions, run_replica

    folder = resolve_model("smollm2")
    engine = EngineConfig(model=folder, max_num_seqs=_STREAMS, max_model_len=1024)
    run_replica(
        ServeOptions(
            model=folder,
            served_names=("smollm2",),
            engine=engine,
            host="127.0.0.1",
            port=port,
            core_factory="tests.fakes.fake_engine_core:FakeEngineCore",
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Streaming throughput of the API process.")
    parser.add_argument("--streams", type=int, default=_STREAMS)
    parser.add_argument("--tokens", type=int, default=_TOKENS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--server", type=int, metavar="PORT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.server is not None:
        _serve(options.server)
        return
    figures = measure(streams=options.streams, tokens=options.tokens, rounds=options.rounds)
    print(" ".join(f"{name}={value:.2f}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
