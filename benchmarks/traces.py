"""Public traces that are not in the simulator's own format, as requests of it.

Agent runs (LMCache's agent traces): one file per session, one model call per line, with its text.
The text becomes blocks by the hash of its beginning up to every 512th character, which stands for
128 tokens at four characters each. Sessions were recorded one after the other; here they begin at
random within a given time and keep their own pace, so that they run beside each other.

ServeGen: per client and ten minutes a rate and the shape of the times between requests (Gamma or
Weibull), per six hours the distributions of lengths. Prompts share nothing.
"""

import ast
import csv
import hashlib
import json
import math
import random
from bisect import bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from octavo.sim.trace import TraceRequest

CHARS_PER_TOKEN = 4
AGENT_BLOCK = 128  # tokens
_WINDOW_S = 600.0


def agent_sessions(folder: Path, *, within_s: float, seed: int = 0) -> list[TraceRequest]:
    """All calls of all sessions by arrival; calls without a prompt are left out."""
    rng = random.Random(seed)
    requests: list[TraceRequest] = []
    for path in sorted(folder.glob("*.jsonl")):
        calls = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        began = rng.uniform(0, within_s) - min(call["timestamp"] for call in calls) / 1e6
        requests += [_agent_request(call, began) for call in calls if call["input"]]
    return sorted(requests, key=lambda request: request.arrival_s)


def _agent_request(call: dict[str, Any], began: float) -> TraceRequest:
    return TraceRequest(
        arrival_s=call["timestamp"] / 1e6 + began,
        num_prompt_tokens=-(-len(call["input"]) // CHARS_PER_TOKEN),
        num_output_tokens=max(1, len(call["output"]) // CHARS_PER_TOKEN),
        hashes=tuple(_text_blocks(call["input"])),
        session=call["session_id"],
    )


def _text_blocks(text: str) -> Iterator[bytes]:
    parent = b""
    width = AGENT_BLOCK * CHARS_PER_TOKEN
    for end in range(width, len(text) + 1, width):
        chunk = text[end - width : end].encode()
        parent = hashlib.blake2b(parent + chunk, digest_size=16).digest()
        yield parent


def servegen_burst(
    folder: Path, *, block_size: int, share: float, seed: int = 0
) -> list[TraceRequest]:
    """The ten minutes with most bursts, by arrival. share: of every client's rate.

    Most bursts: the largest sum over clients of rate x squared variation of the times between
    requests, to which the variance of the number of requests is proportional.
    """
    clients = [
        (_windows(path), _lengths(path.with_name(path.name.replace("trace.csv", "dataset.json"))))
        for path in sorted(folder.glob("*-trace.csv"))
        if path.with_name(path.name.replace("trace.csv", "dataset.json")).exists()
    ]
    variance: dict[float, float] = {}
    for windows, lengths in clients:
        for at, (rate, cv, _, _) in windows.items():
            if lengths(at) is not None:
                variance[at] = variance.get(at, 0.0) + rate * cv**2
    chosen = max(variance, key=lambda at: variance[at])
    rng = random.Random(seed)
    requests: list[TraceRequest] = []
    for windows, lengths in clients:
        if chosen in windows and (drawn := lengths(chosen)) is not None:
            rate, _, kind, shape = windows[chosen]
            for arrival in _arrivals(rng, rate * share, kind, shape):
                requests.append(_drawn_request(rng, arrival, drawn, block_size, len(requests)))
    return sorted(requests, key=lambda request: request.arrival_s)


_Draws = tuple[dict[int, float], dict[int, float]]


def _windows(path: Path) -> dict[float, tuple[float, float, str, float]]:
    """Rate, coefficient of variation, distribution and its shape, by the window's beginning."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file) if float(row[1]) > 0 and row[3]]
    return {
        float(at): (float(rate), float(cv), kind, float(shape))
        for at, rate, cv, kind, shape, _ in rows
    }


def _lengths(path: Path) -> Callable[[float], _Draws | None]:
    """Distributions of prompt and output tokens at a time: of the last period that has them."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    periods = {
        float(at): tuple(ast.literal_eval(each[name]) for name in ("input_tokens", "output_tokens"))
        for at, each in raw.items()
    }
    known = sorted(at for at, both in periods.items() if all(both))

    def at(time_s: float) -> _Draws | None:
        if not known:
            return None
        inputs, outputs = periods[known[max(0, bisect_right(known, time_s) - 1)]]
        return inputs, outputs

    return at


def _arrivals(rng: random.Random, rate: float, kind: str, shape: float) -> Iterator[float]:
    """Within one window: times between arrivals have the given shape and the mean 1 / rate."""
    now = 0.0
    while True:
        if kind == "Gamma":
            gap = rng.gammavariate(shape, 1 / (rate * shape))
        else:
            gap = rng.weibullvariate(1 / (rate * math.gamma(1 + 1 / shape)), shape)
        now += gap
        if now >= _WINDOW_S:
            return
        yield now


def _drawn_request(
    rng: random.Random, arrival: float, drawn: _Draws, block_size: int, number: int
) -> TraceRequest:
    prompt, output = (rng.choices(list(each), weights=list(each.values()))[0] for each in drawn)
    num_prompt = max(1, prompt)
    hashes = (f"{number}/{index}".encode() for index in range(num_prompt // block_size))
    return TraceRequest(arrival, num_prompt, max(1, output), tuple(hashes))
