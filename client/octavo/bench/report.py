"""What a load run prints: a table in the layout that scripts for `vllm bench serve` read."""

from collections.abc import Mapping, Sequence
from typing import Any

_WIDTH = 50
_TITLES = {
    "ttft": "Time to First Token",
    "tpot": "Time per Output Token (excl. 1st token)",
    "itl": "Inter-token Latency",
    "e2el": "End-to-end Latency",
}
_COUNTS = (
    ("Successful requests:", "completed"),
    ("Failed requests:", "failed"),
    ("Maximum request concurrency:", "max_concurrency"),
    ("Request rate configured (RPS):", "request_rate"),
    ("Benchmark duration (s):", "duration"),
    ("Total input tokens:", "total_input_tokens"),
    ("Total generated tokens:", "total_output_tokens"),
    ("Request throughput (req/s):", "request_throughput"),
    ("Request goodput (req/s):", "request_goodput"),
    ("Output token throughput (tok/s):", "output_throughput"),
    ("Peak output token throughput (tok/s):", "max_output_tokens_per_s"),
    ("Peak concurrent requests:", "max_concurrent_requests"),
    ("Total token throughput (tok/s):", "total_token_throughput"),
)


def table(result: Mapping[str, Any], metrics: Sequence[str], percents: Sequence[float]) -> str:
    """`result`: as of `summarise`, with max_concurrency and request_rate."""
    lines = [f"{' Serving Benchmark Result ':=^{_WIDTH}}"]
    for label, name in _COUNTS:
        value = result.get(name)
        if value not in (None, "inf"):
            lines.append(_line(label, value))
    for metric in metrics:
        lines.append(f"{_TITLES[metric]:-^{_WIDTH}}")
        for label, name in (("Mean", "mean"), ("Median", "median")):
            value = result[f"{name}_{metric}_ms"]
            lines.append(_line(f"{label} {metric.upper()} (ms):", value))
        for percent in percents:
            value = result[f"p{percent:g}_{metric}_ms"]
            lines.append(_line(f"P{percent:g} {metric.upper()} (ms):", value))
    lines.append("=" * _WIDTH)
    return "\n".join(lines)


def _line(label: str, value: float) -> str:
    return f"{label:<40} {value:<10.2f}" if isinstance(value, float) else f"{label:<40} {value:<10}"
