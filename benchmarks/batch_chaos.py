"""Batches while their participants are killed: `make chaos-batch`.

In every round a batch runs on real processes (a Redis with an append-only file, a router that takes
requests, one that only works on batches, replicas of a real model, greedy in fp32), and one of them
is killed with SIGKILL at a random moment and started again: the client that watches, either router,
a replica, or Redis. The output must be that of an undisturbed run, every line once.

The online part asks the same fleet for streams that arrive at random at a steady rate, with and
without a batch of 10,000 short prompts beside them, and compares the times to their first token.
Prompts are of some 290 tokens, all different; arrivals and lengths are the same both times. A
replica is idle when it runs no request.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import redis

from benchmarks.record import append, conditions
from octavo.batch_client import BatchClient, has_ended
from octavo.local.ports import free_ports
from octavo.local.process import Child, ProcessSpec
from octavo.local.redis_server import find_server
from octavo_protocol.errors import ServerError
from octavo_runtime.models.source import resolve_model

RESULTS = "batch_chaos.jsonl"
_START_TIMEOUT_S = 120.0
_END_TIMEOUT_S = 180.0
_ONLINE_SENTENCES = (20, 32)
_WARM_UP = 6  # online requests that are not counted
_LOOK_S = 0.5
_TOPICS = ("rivers", "planets", "composers", "spices", "bridges", "birds", "metals", "alphabets")
_VICTIMS = ("client", "router", "worker", "replica-0", "replica-1", "redis")


class Platform:
    """The processes, by name. model: folder of the model."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        redis_port, router, worker, *replicas = free_ports(5)
        self.redis_url = f"redis://127.0.0.1:{redis_port}"
        self.url = f"http://127.0.0.1:{router}"
        shared = ("--redis-url", self.redis_url, "--host", "127.0.0.1", "--log-level", "warning")
        octavo = (sys.executable, "-m", "octavo")
        routing = (*octavo, "router", *shared, "--files-url", str(folder / "files"))
        server = (
            *(str(find_server()), "--port", str(redis_port), "--bind", "127.0.0.1"),
            *("--dir", str(folder), "--appendonly", "yes", "--save", ""),
        )
        serving = (
            *(*octavo, "serve", str(model), "--served-model-name", "model", *shared),
            *("--dtype", "float32", "--threads", "1", "--max-num-seqs", "4"),
            *("--max-model-len", "1024", "--kv-cache-memory-bytes", "256Mi"),
        )
        self.replica_urls = [f"http://127.0.0.1:{port}" for port in replicas]
        specs = [
            ProcessSpec(name="redis", command=server),
            _http("router", (*routing, "--no-batch-worker"), router),
            _http("worker", ("nice", *routing), worker),
            *(
                _http(f"replica-{i}", (*serving, "--replica-id", f"r{i}"), port)
                for i, port in enumerate(replicas)
            ),
        ]
        self.children = {spec.name: Child(spec, folder / f"{spec.name}.log") for spec in specs}

    def start(self) -> None:
        for child in self.children.values():
            child.start()
        for name in self.children:
            self.wait_ready(name)

    def stop(self) -> None:
        for child in self.children.values():
            child.kill()

    def kill(self, name: str) -> None:
        """SIGKILL, and started again at once."""
        self.children[name].kill()
        self.children[name].start()

    def wait_ready(self, name: str) -> None:
        child = self.children[name]
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._is_ready(child):
            if not child.is_running() or time.monotonic() > deadline:
                raise SystemExit(f"{name} did not start:\n{child.log_tail()}")
            time.sleep(0.05)

    def _is_ready(self, child: Child) -> bool:
        try:
            if child.spec.ready_url is None:
                with redis.Redis.from_url(self.redis_url) as client:
                    return bool(client.ping())
            return httpx.get(child.spec.ready_url, timeout=2).status_code == httpx.codes.OK
        except (redis.RedisError, httpx.HTTPError):
            return False


def _http(name: str, command: tuple[str, ...], port: int) -> ProcessSpec:
    return ProcessSpec(
        name=name,
        command=(*command, "--port", str(port)),
        ready_url=f"http://127.0.0.1:{port}/ready",
    )


@dataclass(slots=True)
class Tally:
    """Lines over all rounds. wrong: another text than in the undisturbed run."""

    rounds: int = 0
    lost: int = 0
    repeated: int = 0
    wrong: int = 0
    seconds: list[float] = field(default_factory=list)
    victims: Counter[str] = field(default_factory=Counter)

    def take(self, expected: dict[str, str], lines: list[dict[str, Any]]) -> None:
        counts = Counter(line["custom_id"] for line in lines)
        self.lost += sum(name not in counts for name in expected)
        self.repeated += sum(count - 1 for count in counts.values())
        self.wrong += sum(text_of(line) != expected[line["custom_id"]] for line in lines)


def text_of(line: dict[str, Any]) -> str:
    """What the model wrote; what went wrong, of a line in the error file."""
    if line["response"] is None or line["response"]["status_code"] != httpx.codes.OK:
        return f"failed: {line}"
    text: str = line["response"]["body"]["choices"][0]["text"]
    return text


def write_input(path: Path, prompts: list[str], *, max_tokens: int) -> None:
    """A file of requests; `custom_id` is the prompt's place."""
    with path.open("w") as file:
        for i, prompt in enumerate(prompts):
            body = {
                "model": "model",
                "prompt": prompt,
                "max_tokens": max_tokens,
                "temperature": 0,
                "ignore_eos": True,
            }
            line = {"custom_id": str(i), "method": "POST", "url": "/v1/completions", "body": body}
            file.write(json.dumps(line) + "\n")


def made_prompts(count: int, seed: int) -> list[str]:
    """Short questions, in groups that begin alike."""
    chance = random.Random(seed)
    return [
        f"You are a patient teacher. Tell me about {_TOPICS[i % len(_TOPICS)]}, "
        f"fact number {chance.randrange(1000)}:"
        for i in range(count)
    ]


class Chaos:
    """Runs batches on a platform."""

    def __init__(
        self, platform: Platform, source: Path, seed: int, victims: tuple[str, ...] = _VICTIMS
    ) -> None:
        self.platform = platform
        self._source = source
        self._victims = victims
        self._chance = random.Random(seed)
        self._client = BatchClient(platform.url)
        self._longest_pause_s = 0.0

    def close(self) -> None:
        self._client.close()

    def undisturbed(self) -> dict[str, str]:
        """Text by `custom_id`. How long it takes is when victims are killed later."""
        started = time.monotonic()
        lines = self._lines(self._until_ended(self._submit()))
        self._longest_pause_s = time.monotonic() - started
        return {line["custom_id"]: text_of(line) for line in lines}

    def round(self, expected: dict[str, str], tally: Tally) -> str:
        """One batch, and one participant that is killed while it runs: which one."""
        victim = self._chance.choice(self._victims)
        pause_s = self._chance.uniform(0, self._longest_pause_s)
        started = time.monotonic()
        batch_id = self._submit()
        if victim == "client":
            self._kill_client(batch_id, pause_s)
        else:
            time.sleep(pause_s)
            self.platform.kill(victim)
        tally.take(expected, self._lines(self._until_ended(batch_id)))
        tally.rounds += 1
        tally.victims[victim] += 1
        tally.seconds.append(time.monotonic() - started)
        for name in self.platform.children:
            self.platform.wait_ready(name)
        return victim

    def _submit(self) -> str:
        file = self._client.upload(self._source)
        return self._client.create(file.id, endpoint="/v1/completions", window="1h").id

    def _kill_client(self, batch_id: str, pause_s: float) -> None:
        command = (sys.executable, "-m", "octavo", "batch", "watch", batch_id)
        spec = ProcessSpec(name="client", command=(*command, "--url", self.platform.url))
        child = Child(spec, self.platform.folder / "client.log")
        child.start()
        time.sleep(pause_s)
        child.kill()

    def _until_ended(self, batch_id: str) -> str:
        deadline = time.monotonic() + _END_TIMEOUT_S
        while True:
            with contextlib.suppress(ServerError):  # while the router or Redis is the victim
                if has_ended(self._client.get(batch_id)):
                    return batch_id
            if time.monotonic() > deadline:
                raise SystemExit(f"{batch_id} did not end; see {self.platform.folder}")
            time.sleep(0.1)

    def _lines(self, batch_id: str) -> list[dict[str, Any]]:
        batch = self._client.get(batch_id)
        files = [each for each in (batch.output_file_id, batch.error_file_id) if each]
        data = b"".join(piece for each in files for piece in self._client.content(each))
        return [json.loads(line) for line in data.splitlines()]


@dataclass(frozen=True, slots=True)
class OnlineRequest:
    """arrival_s: after the first one."""

    arrival_s: float
    prompt: str


def online_requests(count: int, rate: float, *, seed: int, words_seed: int) -> list[OnlineRequest]:
    """`count` requests, `rate` a second. words_seed: what they say; the rest is of `seed`."""
    chance, words = random.Random(seed), random.Random(words_seed)
    arrival_s, requests = 0.0, []
    for _ in range(count):
        length = chance.randint(*_ONLINE_SENTENCES)
        prompt = " ".join(
            f"On day {words.randrange(1000):03} he wrote of {words.choice(_TOPICS)}."
            for _ in range(length)
        )
        requests.append(OnlineRequest(arrival_s, prompt))
        arrival_s += chance.expovariate(rate)
    return requests


@dataclass(frozen=True, slots=True)
class OnlineTimes:
    """ttfts: seconds. idle_share: of the replicas' time."""

    ttfts: list[float]
    idle_share: float


async def measure_online(platform: Platform, requests: list[OnlineRequest]) -> OnlineTimes:
    """Each request is sent when it arrives, whatever became of the others."""

    async def ask(client: httpx.AsyncClient, request: OnlineRequest) -> float:
        body = {"model": "model", "prompt": request.prompt, "max_tokens": 8, "stream": True}
        await asyncio.sleep(request.arrival_s)
        started, ttft = time.monotonic(), None
        async with client.stream("POST", "/v1/completions", json=body) as response:
            async for line in response.aiter_lines():
                if ttft is None and line.startswith("data: {"):
                    ttft = time.monotonic() - started
        if ttft is None:
            raise SystemExit("a stream had no token")
        return ttft

    looks: list[bool] = []
    async with httpx.AsyncClient(base_url=platform.url, timeout=120) as client:
        looking = asyncio.create_task(_look_for_idleness(platform.replica_urls, looks))
        ttfts = await asyncio.gather(*(ask(client, request) for request in requests))
        looking.cancel()
    return OnlineTimes(ttfts[_WARM_UP:], sum(looks) / len(looks))


async def _look_for_idleness(urls: list[str], looks: list[bool]) -> None:
    """Adds whether each replica is idle, again and again."""
    async with httpx.AsyncClient() as client:
        while True:
            for url in urls:
                metrics = (await client.get(f"{url}/metrics")).text
                running = re.search(r"^vllm:num_requests_running\S* (\S+)", metrics, re.MULTILINE)
                assert running is not None
                looks.append(float(running[1]) == 0)
            await asyncio.sleep(_LOOK_S)


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--lines", type=int, default=72, help="of each batch that is disturbed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--victims", nargs="+", choices=_VICTIMS, default=_VICTIMS)
    parser.add_argument("--online", type=int, default=240, help="online streams, each way")
    parser.add_argument("--online-rate", type=float, default=0.9, help="of them a second")
    parser.add_argument("--beside-lines", type=int, default=10_000, help="of the batch beside them")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="octavo-chaos-"))
    source = folder / "in.jsonl"
    write_input(source, made_prompts(arguments.lines, arguments.seed), max_tokens=12)
    platform = Platform(folder, resolve_model("smollm2"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        platform.start()
        _say("the platform is ready")
        alone = _measure(platform, arguments, words_seed=1)
        _say(f"online requests alone: {_in_ms(alone)}")
        beside, num_done = _beside_a_batch(platform, folder, arguments)
        ratios = {
            f"p{p}": round(percentile(beside.ttfts, p / 100) / percentile(alone.ttfts, p / 100), 3)
            for p in (50, 99)
        }
        _say(f"beside a batch: {_in_ms(beside)}, {num_done} of its lines done: ratios {ratios}")
        tally = _disturbed(platform, source, arguments)
    finally:
        platform.stop()
    shutil.rmtree(folder)
    append(RESULTS, _record(arguments, tally, alone, beside, num_done, ratios))
    print(
        f"batch rounds={tally.rounds} lost={tally.lost} repeated={tally.repeated} "
        f"wrong={tally.wrong} online_ttft_p99_ratio={ratios['p99']:.2f}"
    )
    sys.exit(bool(tally.lost or tally.repeated or tally.wrong))


def _disturbed(platform: Platform, source: Path, arguments: argparse.Namespace) -> Tally:
    """All rounds."""
    tally = Tally()
    chaos = Chaos(platform, source, arguments.seed, tuple(arguments.victims))
    expected = chaos.undisturbed()
    _say("the undisturbed run is done")
    for i in range(arguments.rounds):
        victim = chaos.round(expected, tally)
        _say(
            f"round {i + 1}: {tally.seconds[-1]:.1f} s without {victim}, lost {tally.lost}, "
            f"repeated {tally.repeated}, wrong {tally.wrong}"
        )
    chaos.close()
    return tally


def _measure(platform: Platform, arguments: argparse.Namespace, *, words_seed: int) -> OnlineTimes:
    requests = online_requests(
        arguments.online + _WARM_UP,
        arguments.online_rate,
        seed=arguments.seed,
        words_seed=words_seed,
    )
    return asyncio.run(measure_online(platform, requests))


def _beside_a_batch(
    platform: Platform, folder: Path, arguments: argparse.Namespace
) -> tuple[OnlineTimes, int]:
    """Online times while a batch keeps the fleet full, and how many of its lines were done."""
    long = folder / "long.jsonl"
    write_input(long, made_prompts(arguments.beside_lines, 1), max_tokens=8)
    client = BatchClient(platform.url)
    try:
        file = client.upload(long)
        batch = client.create(file.id, endpoint="/v1/completions", window="1h")
        while not client.get(batch.id).request_counts.completed:
            time.sleep(0.1)
        times = _measure(platform, arguments, words_seed=2)
        now = client.get(batch.id)
        if has_ended(now):
            raise SystemExit("the batch ended before the online requests: more --beside-lines")
        client.cancel(batch.id)
        while not has_ended(client.get(batch.id)):
            time.sleep(0.1)
        return times, now.request_counts.completed
    finally:
        client.close()


def _record(
    arguments: argparse.Namespace,
    tally: Tally,
    alone: OnlineTimes,
    beside: OnlineTimes,
    num_done: int,
    ratios: dict[str, float],
) -> dict[str, Any]:
    return {
        "benchmark": "batch_chaos",
        **conditions(),
        "lines": arguments.lines,
        "rounds": tally.rounds,
        "victims": dict(tally.victims),
        "lost": tally.lost,
        "repeated": tally.repeated,
        "wrong": tally.wrong,
        "round_seconds": {
            "median": round(percentile(tally.seconds or [0], 0.5), 1),
            "max": round(max(tally.seconds or [0]), 1),
        },
        "online_requests": arguments.online,
        "online_rate": arguments.online_rate,
        "online_ttft_ms": {"alone": _in_ms(alone), "beside": _in_ms(beside)},
        "online_ttft_ratio": ratios,
        "idle_share": {
            "alone": round(alone.idle_share, 3),
            "beside": round(beside.idle_share, 3),
        },
        "beside_lines": arguments.beside_lines,
        "beside_lines_done": num_done,
        "load_average": os.getloadavg()[0],
    }


def _in_ms(times: OnlineTimes) -> dict[str, float]:
    return {
        f"p{percent}": round(percentile(times.ttfts, percent / 100) * 1000, 1)
        for percent in (50, 90, 99)
    }


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
