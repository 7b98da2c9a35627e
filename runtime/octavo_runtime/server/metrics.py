"""Prometheus metrics of one replica. Labels are bounded: finish reasons and status codes only."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from octavo_protocol.outputs import RequestOutput
from octavo_runtime.engine.async_llm import AsyncLLM

_TTFT_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_ITL_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)
_E2E_BUCKETS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
_PREFIX = "octavo_runtime_"


class ServerMetrics:
    """What the API process counts; the engine's state is read when metrics are scraped."""

    def __init__(self, llm: AsyncLLM) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(llm))
        self._finished = Counter(
            _PREFIX + "requests",
            "Sequences that finished, by reason.",
            ["finish_reason"],
            registry=self._registry,
        )
        self._aborted = Counter(
            _PREFIX + "requests_aborted",
            "Requests that their client or an error ended.",
            registry=self._registry,
        )
        self._responses = Counter(
            _PREFIX + "http_responses",
            "HTTP answers, by status.",
            ["code"],
            registry=self._registry,
        )
        self._prompt_tokens = Counter(
            _PREFIX + "prompt_tokens",
            "Prompt tokens of finished requests.",
            registry=self._registry,
        )
        self._cached_tokens = Counter(
            _PREFIX + "cached_prompt_tokens",
            "Prompt tokens of finished requests that the prefix cache supplied.",
            registry=self._registry,
        )
        self._generation_tokens = Counter(
            _PREFIX + "generation_tokens",
            "Output tokens of finished requests.",
            registry=self._registry,
        )
        self._ttft = Histogram(
            _PREFIX + "time_to_first_token_seconds",
            "From arrival to the first token.",
            buckets=_TTFT_BUCKETS,
            registry=self._registry,
        )
        self._itl = Histogram(
            _PREFIX + "inter_token_latency_seconds",
            "Mean gap between the tokens of a finished request.",
            buckets=_ITL_BUCKETS,
            registry=self._registry,
        )
        self._e2e = Histogram(
            _PREFIX + "request_seconds",
            "From arrival to the last token.",
            buckets=_E2E_BUCKETS,
            registry=self._registry,
        )

    def observe(self, output: RequestOutput) -> None:
        """Takes in one output, whole or delta: ends of sequences, and of the request."""
        for completion in output.outputs:
            if completion.finish_reason is not None:
                self._finished.labels(completion.finish_reason).inc()
        if not output.finished:
            return
        self._prompt_tokens.inc(len(output.prompt_token_ids or ()))
        self._cached_tokens.inc(output.num_cached_tokens or 0)
        stats = output.metrics
        if stats is None:
            return
        self._generation_tokens.inc(stats.num_generation_tokens)
        self._ttft.observe(stats.first_token_latency)
        spread = stats.last_token_ts - stats.first_token_ts
        self._e2e.observe(stats.first_token_latency + spread)
        if stats.num_generation_tokens > 1:
            self._itl.observe(spread / (stats.num_generation_tokens - 1))

    def aborted(self) -> None:
        self._aborted.inc()

    def responded(self, status: int) -> None:
        self._responses.labels(str(status)).inc()

    def render(self) -> bytes:
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    """The engine's newest statistics."""

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm

    def collect(self) -> Iterator[Metric]:
        stats = self._llm.stats
        gauges = {
            "requests_running": (stats.running, "Sequences that the engine is working on."),
            "requests_waiting": (stats.waiting, "Sequences that wait for admission."),
            "waiting_tokens": (stats.waiting_tokens, "Tokens that are still to be prefilled."),
            "kv_cache_usage_ratio": (stats.kv_usage, "Share of KV blocks in use."),
            "prefill_tokens_per_second": (stats.prefill_tokens_per_s, "Measured prefill rate."),
            "decode_tokens_per_second": (stats.decode_tokens_per_s, "Measured decode rate."),
        }
        counters = {
            "preemptions": (stats.preemptions_total, "Sequences that lost their blocks."),
            "prefix_cache_queried_tokens": (
                stats.prefix_queried_tokens_total,
                "Prompt tokens looked up in the prefix cache.",
            ),
            "prefix_cache_hit_tokens": (
                stats.prefix_hit_tokens_total,
                "Prompt tokens found in the prefix cache.",
            ),
            "steps": (stats.steps_total, "Steps of the engine."),
        }
        for name, (value, text) in gauges.items():
            yield GaugeMetricFamily(_PREFIX + name, text, value=value)
        for name, (total, text) in counters.items():
            yield CounterMetricFamily(_PREFIX + name, text, value=total)
