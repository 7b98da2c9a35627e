"""What a load run amounts to, under the names of `vllm bench serve`. Pure."""

import statistics
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from octavo.bench.online import StreamTimes
from octavo.bench.statistics import mean, percentile
from octavo_protocol.errors import ConfigError

Metric = str
METRICS: tuple[Metric, ...] = ("ttft", "tpot", "itl", "e2el")
_GOALS = ("ttft", "tpot", "e2el")


def summarise(
    seconds: float,
    results: Sequence[StreamTimes],
    *,
    percents: Sequence[float] = (99,),
    goals: Mapping[Metric, float] | None = None,
) -> dict[str, Any]:
    """The result's figures; times in milliseconds, of completed requests.

    goals: the most milliseconds of each metric for a request to be good; None: goodput is null.
    """
    done = [times for times in results if times.error is None]
    num_input = sum(times.num_input_tokens for times in done)
    num_output = sum(times.num_output_tokens for times in done)
    peak_tokens, peak_requests = _peaks(done)
    summary: dict[str, Any] = {
        "duration": seconds,
        "completed": len(done),
        "failed": len(results) - len(done),
        "total_input_tokens": num_input,
        "total_output_tokens": num_output,
        "request_throughput": len(done) / seconds,
        "request_goodput": None if not goals else sum(_is_good(t, goals) for t in done) / seconds,
        "output_throughput": num_output / seconds,
        "total_token_throughput": (num_input + num_output) / seconds,
        "max_output_tokens_per_s": peak_tokens,
        "max_concurrent_requests": peak_requests,
        "rtfx": 0.0,  # of speech: seconds of audio per second
    }
    for name, values in _samples(done).items():
        milliseconds = [value * 1000 for value in values]
        summary[f"mean_{name}_ms"] = mean(milliseconds)
        summary[f"median_{name}_ms"] = percentile(milliseconds, 50)
        summary[f"std_{name}_ms"] = statistics.pstdev(milliseconds) if milliseconds else 0.0
        for percent in percents:
            summary[f"p{percent:g}_{name}_ms"] = percentile(milliseconds, percent)
    return summary


def details(results: Sequence[StreamTimes]) -> dict[str, Any]:
    """What is known of each request, in the order of the requests; times in seconds."""
    return {
        "input_lens": [times.num_input_tokens for times in results],
        "output_lens": [times.num_output_tokens for times in results],
        "ttfts": [times.ttft for times in results],
        "itls": [times.gaps for times in results],
        "latencies": [times.total for times in results],
        "start_times": [times.start for times in results],
        "generated_texts": [times.text for times in results],
        "errors": [times.error or "" for times in results],
    }


def parse_goals(words: Sequence[str]) -> dict[Metric, float]:
    """`ttft:200 e2el:3000`, in milliseconds. Raises `ConfigError`."""
    goals: dict[Metric, float] = {}
    for word in words:
        name, _, limit = word.partition(":")
        try:
            goals[name] = float(limit)
        except ValueError:
            goals[name] = -1.0
        if name not in _GOALS or goals[name] < 0:
            raise ConfigError(
                f"--goodput {word!r}: write for example ttft:200 tpot:50 e2el:3000 (milliseconds)"
            )
    return goals


def parse_percents(text: str) -> list[float]:
    """`25,50,99.9`. Raises `ConfigError`."""
    try:
        percents = [float(word) for word in text.split(",")]
    except ValueError:
        percents = [-1.0]
    if not all(0 <= percent <= 100 for percent in percents):
        raise ConfigError(f"--metric-percentiles {text!r}: write for example 50,90,99")
    return percents


def parse_metrics(text: str) -> list[Metric]:
    """`ttft,tpot`. Raises `ConfigError`."""
    names = [word.strip() for word in text.split(",") if word.strip()]
    if unknown := [name for name in names if name not in METRICS]:
        raise ConfigError(f"--percentile-metrics: {unknown[0]!r} is none of {', '.join(METRICS)}")
    return names


def _samples(done: Sequence[StreamTimes]) -> dict[Metric, list[float]]:
    return {
        "ttft": [times.ttft for times in done],
        "tpot": [times.tpot for times in done if times.num_output_tokens > 1],
        "itl": [gap for times in done for gap in times.gaps],
        "e2el": [times.total for times in done],
    }


def _is_good(times: StreamTimes, goals: Mapping[Metric, float]) -> bool:
    found = {"ttft": times.ttft, "tpot": times.tpot, "e2el": times.total}
    return all(found[name] * 1000 <= limit for name, limit in goals.items())


def _peaks(done: Sequence[StreamTimes]) -> tuple[float, int]:
    """(most chunks with output within one second of the run, most requests open at once)."""
    chunks: dict[int, int] = {}
    edges: list[tuple[float, int]] = []
    for times in done:
        edges += [(times.start, 1), (times.start + times.total, -1)]
        for moment in accumulate(times.gaps, initial=times.start + times.ttft):
            chunks[int(moment)] = chunks.get(int(moment), 0) + 1
    open_now = accumulate(change for _, change in sorted(edges))
    return float(max(chunks.values(), default=0)), max(open_now, default=0)
