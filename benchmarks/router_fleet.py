"""Does `octavo sim` tell the truth? A real fleet and the simulated one play the same trace.

    python -m benchmarks.router_fleet [--record]

Four replicas of SmolLM2 on this machine, one thread each, behind a real router with each policy in
turn; the trace is replayed as `octavo replay` does. The simulator gets the rates of that fleet, as
measured before and after each policy (others may use the machine too), with as many replicas busy
as there are cores: on a machine with fewer cores than replicas those share them, which the
simulator does not know, so the load is kept below that.

The trace is made here: conversations that begin at random and grow turn by turn behind one system
prompt. Compared: share of prompt tokens found cached, mean time to first token, and whether both
fleets put the policies in the same order.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import os
import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from benchmarks.record import append, conditions
from octavo.bench.online import StreamTimes, Target, open_session, stream
from octavo.bench.statistics import mean, percentile
from octavo.bench.workload import BenchRequest, random_tokens
from octavo.local.ports import free_port
from octavo.local.redis_server import EmbeddedRedis
from octavo.replay.player import play
from octavo.replay.prompts import PromptMaker
from octavo.replay.report import report
from octavo.sim.fleet import simulate
from octavo.sim.options import FleetOptions, ReplicaModel
from octavo.sim.trace import TraceRequest, faster
from octavo_protocol.resources.model_deployment import RoutingPolicyName

RESULTS = "router_fleet.jsonl"
POLICIES: tuple[RoutingPolicyName, ...] = (
    "expected-ttft",
    "least-load",
    "round-robin",
)
_NUM_REPLICAS = 4
_BLOCK = 16
_NUM_BLOCKS = 128
_MAX_MODEL_LEN = 1024
_MAX_BATCHED = 512  # the engine's default on a CPU
_VOCAB_SIZE = 49_000
_SYSTEM_BLOCKS, _TURN_BLOCKS, _NUM_TURNS = 6, 4, 6
_OUTPUT = 4
_UTILISATION = 0.5
_START_TIMEOUT_S = 180.0


Figures = dict[RoutingPolicyName, dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Rates:
    """Of one replica, as the simulator takes them."""

    prefill_tokens_per_s: float
    decode_step_s: float
    decode_sequence_s: float


def _mean(first: Rates, second: Rates) -> Rates:
    pairs = zip(dataclasses.astuple(first), dataclasses.astuple(second), strict=True)
    return Rates(*(sum(pair) / 2 for pair in pairs))


def conversations(num: int, rng: random.Random) -> list[TraceRequest]:
    """By arrival; turns of one conversation follow after 5 to 15 s, conversations within a minute
    for every 12 of them.
    """
    requests = []
    for chat in range(num):
        now = rng.uniform(0, 5.0 * num)
        hashes = [f"system/{index}".encode() for index in range(_SYSTEM_BLOCKS)]
        for turn in range(_NUM_TURNS):
            hashes += [f"{chat}/{turn}/{index}".encode() for index in range(_TURN_BLOCKS)]
            length = len(hashes) * _BLOCK + rng.randrange(1, _BLOCK)
            requests.append(TraceRequest(now, length, _OUTPUT, tuple(hashes), f"chat-{chat}"))
            now += rng.uniform(5, 15)
    return sorted(requests, key=lambda request: request.arrival_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--chats", type=int, default=16)
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results")
    given = parser.parse_args()
    at_start, load = conditions(), os.getloadavg()[0]
    with EmbeddedRedis() as redis:
        flags = ["--redis-url", redis.url, "--deployment", "fleet"]
        with _replicas(given.model, flags) as urls:
            rates = [asyncio.run(_rates(urls))]
            requests = _at_load(conversations(given.chats, random.Random(0)), rates[0])
            real: Figures = {}
            for seed, policy in enumerate(POLICIES, start=1):
                real[policy] = _real(policy, requests, flags, seed)
                rates.append(asyncio.run(_rates(urls)))
                print(rates[-2:], flush=True)
    simulated = {
        policy: _simulated(policy, requests, _mean(*rates[index : index + 2]))
        for index, policy in enumerate(POLICIES)
    }
    row = {
        "num_requests": len(requests),
        "seconds": requests[-1].arrival_s,
        "rates": [dataclasses.asdict(each) for each in rates],
        "load_average_before": load,
        "real": real,
        "simulated": simulated,
        **_agreement(real, simulated),
    }
    _tell(row)
    if given.record:
        append(RESULTS, {**at_start, **row})


def _at_load(requests: list[TraceRequest], rates: Rates) -> list[TraceRequest]:
    """Played so fast that the cores are busy for half of the time, if nothing is cached."""
    work_s = sum(
        request.num_prompt_tokens / rates.prefill_tokens_per_s
        + request.num_output_tokens * rates.decode_step_s
        for request in requests
    )
    num_cores = min(_NUM_REPLICAS, len(os.sched_getaffinity(0)))
    return faster(requests, requests[-1].arrival_s * num_cores * _UTILISATION / work_s)


@contextlib.contextmanager
def _replicas(model: str, flags: Sequence[str]) -> Iterator[list[str]]:
    more = {
        "--threads": 1,
        "--block-size": _BLOCK,
        "--num-gpu-blocks-override": _NUM_BLOCKS,
        "--max-model-len": _MAX_MODEL_LEN,
        "--max-num-batched-tokens": _MAX_BATCHED,
    }
    settings = [str(word) for pair in more.items() for word in pair]
    with contextlib.ExitStack() as stack:
        urls = [
            stack.enter_context(_server(["serve", model, *flags, *settings]))
            for _ in range(_NUM_REPLICAS)
        ]
        for url in urls:
            _wait_ready(url)
        yield urls


@contextlib.contextmanager
def _server(words: Sequence[str]) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "octavo", *words, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=60)


def _wait_ready(url: str, num_replicas: int = 1) -> None:
    """Ready, and a router knows all replicas."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            with urllib.request.urlopen(f"{url}/ready", timeout=5):
                pass
            with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
                text = answer.read().decode()
            if num_replicas == 1 or f"octavo_router_replicas {num_replicas}.0" in text:
                return
        time.sleep(0.2)
    raise RuntimeError(f"{url} did not become ready")


async def _rates(urls: Sequence[str]) -> Rates:
    """Medians, with as many replicas busy as there are cores, each with one request at a time; then
    with four on each, for what a further decoding sequence costs.
    """
    busy = urls[: len(os.sched_getaffinity(0))]
    rng = random.Random(time.time())
    runs = await asyncio.gather(*(_ask(url, rng, 6, 1) for url in busy))
    alone = [times for of_one in runs for times in of_one]
    runs = await asyncio.gather(*(_ask(url, rng, 2, 4) for url in busy))
    together = [times for of_one in runs for times in of_one]
    prefill = percentile([times.num_input_tokens / times.ttft for times in alone], 50)
    one = percentile([times.tpot for times in alone], 50)
    four = percentile([percentile(times.gaps, 50) for times in together], 50)
    return Rates(prefill, one, max(0.0, (four - one) / 3))


async def _ask(
    url: str, rng: random.Random, num_rounds: int, num_at_once: int
) -> list[StreamTimes]:
    """Prompts of the trace's mean length with 12 tokens of output. The first round warms up."""
    target = Target(url, _served_model(url), body={"temperature": 0.0, "ignore_eos": True})
    num_tokens = (_SYSTEM_BLOCKS + _TURN_BLOCKS * (_NUM_TURNS + 1) // 2) * _BLOCK
    done: list[StreamTimes] = []
    async with open_session(target) as session:
        for number in range(num_rounds + 1):
            times = [StreamTimes() for _ in range(num_at_once)]
            prompts = [random_tokens(rng, num_tokens, _VOCAB_SIZE) for _ in times]
            asked = zip((BenchRequest(prompt, 12) for prompt in prompts), times, strict=True)
            await asyncio.gather(*(stream(session, target, *each) for each in asked))
            done += times if number else []
    return done


def _served_model(url: str) -> str:
    with urllib.request.urlopen(f"{url}/v1/models", timeout=30) as answer:
        name = msgspec.json.decode(answer.read())["data"][0]["id"]
    return str(name)


def _real(
    policy: RoutingPolicyName, requests: Sequence[TraceRequest], flags: Sequence[str], seed: int
) -> dict[str, float]:
    """seed: other tokens for each policy, so that none finds what another left."""
    with _server(["router", *flags, "--policy", policy]) as url:
        _wait_ready(url, _NUM_REPLICAS)
        target = Target(url, _served_model(url), body={"temperature": 0.0, "ignore_eos": True})
        prompts = PromptMaker(_BLOCK, _VOCAB_SIZE, seed)
        summed = report(*asyncio.run(play(target, requests, prompts)))
    assert not summed.num_errors, f"{policy}: {summed.num_errors} requests failed"
    figures = {"cached_share": summed.cached_share, "ttft_mean_s": summed.ttft_mean_s}
    figures |= {"ttft_p50_s": summed.ttft_p50_s, "ttft_p99_s": summed.ttft_p99_s}
    print(policy, figures, flush=True)
    return figures


def _simulated(
    policy: RoutingPolicyName, requests: Sequence[TraceRequest], rates: Rates
) -> dict[str, float]:
    model = ReplicaModel(
        num_blocks=_NUM_BLOCKS,
        block_size=_BLOCK,
        max_num_batched_tokens=_MAX_BATCHED,
        **dataclasses.asdict(rates),
    )
    options = FleetOptions(num_replicas=_NUM_REPLICAS, model=model, policy=policy)
    outcomes = simulate(requests, options).outcomes
    ttft = [each.ttft_s for each in outcomes]
    num_cached = sum(each.num_cached_tokens for each in outcomes)
    return {
        "cached_share": num_cached / sum(each.request.num_prompt_tokens for each in outcomes),
        "ttft_mean_s": mean(ttft),
        "ttft_p50_s": percentile(ttft, 50),
        "ttft_p99_s": percentile(ttft, 99),
    }


def _agreement(real: Figures, simulated: Figures) -> dict[str, Any]:
    """Errors of the simulation: of shares in points, of mean times as ratios; also the times over
    round robin's, in which the speed of the machine cancels out.
    """
    return {
        "cached_share_error": max(
            abs(simulated[each]["cached_share"] - real[each]["cached_share"]) for each in real
        ),
        "ttft_ratio": {
            each: simulated[each]["ttft_mean_s"] / real[each]["ttft_mean_s"] for each in real
        },
        "ttft_over_round_robin": {
            each: {
                name: figures[each]["ttft_mean_s"] / figures["round-robin"]["ttft_mean_s"]
                for name, figures in (("real", real), ("simulated", simulated))
            }
            for each in real
        },
        "order_by_ttft": {"real": _order(real), "simulated": _order(simulated)},
    }


def _order(figures: Figures) -> list[RoutingPolicyName]:
    return sorted(figures, key=lambda policy: figures[policy]["ttft_mean_s"])


def _tell(row: dict[str, Any]) -> None:
    for policy in row["real"]:
        real, simulated = row["real"][policy], row["simulated"][policy]
        over = row["ttft_over_round_robin"][policy]
        print(
            f"{policy:<14} cached: real {real['cached_share']:.1%}, simulated "
            f"{simulated['cached_share']:.1%}; TTFT mean: real {real['ttft_mean_s']:.3f} s, "
            f"simulated {simulated['ttft_mean_s']:.3f} s; over round robin's: real "
            f"{over['real']:.2f}, simulated {over['simulated']:.2f}"
        )
    print("order by TTFT:", row["order_by_ttft"])


if __name__ == "__main__":
    main()
