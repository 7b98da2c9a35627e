"""What the requests of an engine in this process took, as the metrics that vLLM names."""

from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Iterable
from itertools import accumulate

from octavo.v1.metrics.reader import Counter, Gauge, Histogram, Metric
from octavo_protocol.outputs import RequestOutput
from octavo_protocol.pooling import PoolingOutput, PoolingRequestOutput
from octavo_runtime.engine.messages import EngineStats

_PREFIX = "vllm:"
_REASONS = ("stop", "length", "abort", "error", "repetition")
# Upper bounds in seconds.
_TTFT = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 40, 160, 640, 2560)
_LATENCY = (0.3, 0.5, 1, 2, 5, 10, 30, 60, 120, 480, 1920, 7680)
_TOKENS = tuple(float(m * 10**e) for e in range(6) for m in (1, 2, 5))


class _Observations:
    """Counts by upper bound."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def read(self, name: str, labels: dict[str, str]) -> Histogram:
        bounds = [*(f"{bound:g}" for bound in self._bounds), "+Inf"]
        totals = list(accumulate(self._counts))
        return Histogram(
            name, labels, totals[-1], self._sum, dict(zip(bounds, totals, strict=True))
        )


class RequestMetrics:
    """Takes in outputs of requests; reads as a list of metrics."""

    def __init__(self, model_name: str) -> None:
        self._labels = {"model_name": model_name, "engine": "0"}
        self._ended: Counts[str] = Counts()
        self._seen: dict[str, set[int]] = {}
        self._num_prompt_tokens = 0
        self._num_generation_tokens = 0
        self._histograms = {
            "time_to_first_token_seconds": _Observations(_TTFT),
            "e2e_request_latency_seconds": _Observations(_LATENCY),
            "request_prompt_tokens": _Observations(_TOKENS),
            "request_generation_tokens": _Observations(_TOKENS),
        }

    def observe(self, output: RequestOutput) -> None:
        """One output of any kind: whole or delta, the last or not."""
        seen = self._seen.setdefault(output.request_id, set())
        for completion in output.outputs:
            if completion.finish_reason is not None and completion.index not in seen:
                seen.add(completion.index)
                self._ended[completion.finish_reason] += 1
        if output.finished:
            del self._seen[output.request_id]
            self._observe_whole(output)

    def observe_pooled(self, output: PoolingRequestOutput[PoolingOutput]) -> None:
        """The result of a model that pools."""
        self._ended["stop"] += 1
        num_prompt = len(output.prompt_token_ids)
        self._num_prompt_tokens += num_prompt
        self._histograms["request_prompt_tokens"].add(num_prompt)
        if output.metrics is not None:
            seconds = output.metrics.last_token_ts - output.metrics.queued_ts
            self._histograms["e2e_request_latency_seconds"].add(seconds)

    def forget(self, request_ids: Iterable[str]) -> None:
        """These have no more outputs."""
        for request_id in request_ids:
            self._seen.pop(request_id, None)

    def read(self, stats: EngineStats) -> list[Metric]:
        gauges = {
            "num_requests_running": stats.running,
            "num_requests_waiting": stats.waiting,
            "kv_cache_usage_perc": stats.kv_usage,
        }
        counters = {
            "prompt_tokens": self._num_prompt_tokens,
            "generation_tokens": self._num_generation_tokens,
            "num_preemptions": stats.preemptions_total,
            "prefix_cache_queries": stats.prefix_queried_tokens_total,
            "prefix_cache_hits": stats.prefix_hit_tokens_total,
        }
        return [
            *(Gauge(_PREFIX + name, self._labels, value) for name, value in gauges.items()),
            *(Counter(_PREFIX + name, self._labels, value) for name, value in counters.items()),
            *(
                Counter(
                    _PREFIX + "request_success",
                    self._labels | {"finished_reason": reason},
                    self._ended[reason],
                )
                for reason in _REASONS
            ),
            *(each.read(_PREFIX + name, self._labels) for name, each in self._histograms.items()),
        ]

    def _observe_whole(self, output: RequestOutput) -> None:
        num_prompt = len(output.prompt_token_ids or ())
        self._num_prompt_tokens += num_prompt
        self._histograms["request_prompt_tokens"].add(num_prompt)
        stats = output.metrics
        if stats is None:
            return
        self._num_generation_tokens += stats.num_generation_tokens
        self._histograms["request_generation_tokens"].add(stats.num_generation_tokens)
        self._histograms["time_to_first_token_seconds"].add(stats.first_token_latency)
        self._histograms["e2e_request_latency_seconds"].add(
            stats.first_token_latency + stats.last_token_ts - stats.first_token_ts
        )
