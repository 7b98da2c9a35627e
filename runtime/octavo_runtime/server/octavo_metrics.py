"""The two sets of names under which a replica's measurements are shown.

Both get the same events; labels are bounded: finish reasons, status codes, the one model.
"""

from collections.abc import Iterator
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from octavo_protocol.outputs import RequestOutput
from octavo_protocol.pooling import PoolingRequestOutput
from octavo_protocol.sampling_params import SamplingParams
from octavo_runtime.engine.async_llm import AsyncLLM

_TTFT_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_ITL_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)
_E2E_BUCKETS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
_PREFIX = "octavo_runtime_"


AnyOutput = RequestOutput | PoolingRequestOutput[Any]


class MetricNames(Protocol):
    """What a set of names is told."""

    def generated(self, num_tokens: int) -> None: ...

    def first_token(self, seconds: float) -> None: ...

    def gap(self, seconds: float) -> None: ...

    def sequence_ended(self, finish_reason: str) -> None: ...

    def prompt_ended(self, output: AnyOutput) -> None: ...

    def request_ended(self, output: RequestOutput, params: SamplingParams) -> None: ...

    def aborted(self) -> None: ...


class OctavoNames:
    """`octavo_runtime_*`."""

    def __init__(self, llm: AsyncLLM, registry: CollectorRegistry) -> None:
        registry.register(_EngineCollector(llm))

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(_PREFIX + name, text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(_PREFIX + name, text, buckets=buckets, registry=registry)

        self._finished = counter("requests", "Sequences that finished, by reason.", "finish_reason")
        self._aborted = counter("requests_aborted", "Requests that their client or an error ended.")
        self._prompt_tokens = counter("prompt_tokens", "Prompt tokens of finished requests.")
        self._cached_tokens = counter(
            "cached_prompt_tokens",
            "Prompt tokens of finished requests that the prefix cache supplied.",
        )
        self._generation_tokens = counter("generation_tokens", "Output tokens, as they come.")
        self._ttft = histogram(
            "time_to_first_token_seconds", "From arrival to the first token.", _TTFT_BUCKETS
        )
        self._itl = histogram(
            "inter_token_latency_seconds", "Gap between two tokens of a sequence.", _ITL_BUCKETS
        )
        self._e2e = histogram("request_seconds", "From arrival to the last token.", _E2E_BUCKETS)

    def generated(self, num_tokens: int) -> None:
        self._generation_tokens.inc(num_tokens)

    def first_token(self, seconds: float) -> None:
        self._ttft.observe(seconds)

    def gap(self, seconds: float) -> None:
        self._itl.observe(seconds)

    def sequence_ended(self, finish_reason: str) -> None:
        self._finished.labels(finish_reason).inc()

    def request_ended(self, output: RequestOutput, params: SamplingParams) -> None:
        self.prompt_ended(output)

    def prompt_ended(self, output: AnyOutput) -> None:
        self._prompt_tokens.inc(len(output.prompt_token_ids or ()))
        self._cached_tokens.inc(output.num_cached_tokens or 0)
        stats = output.metrics
        if stats is not None:
            spread = stats.last_token_ts - stats.first_token_ts
            self._e2e.observe(stats.first_token_latency + spread)

    def aborted(self) -> None:
        self._aborted.inc()


class _EngineCollector(Collector):
    """The engine's newest statistics."""

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm

    def collect(self) -> Iterator[Metric]:
        stats = self._llm.stats
        gauges: dict[str, tuple[float, str]] = {
            "requests_running": (stats.running, "Sequences that the engine is working on."),
            "requests_waiting": (stats.waiting, "Sequences that wait for admission."),
            "waiting_tokens": (stats.waiting_tokens, "Tokens that are still to be prefilled."),
            "kv_cache_usage_ratio": (stats.kv_usage, "Share of KV blocks in use."),
            "prefill_tokens_per_second": (stats.prefill_tokens_per_s, "Measured prefill rate."),
            "decode_tokens_per_second": (stats.decode_tokens_per_s, "Measured decode rate."),
        }
        counters: dict[str, tuple[float, str]] = {
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
        if self._llm.info is not None and self._llm.info.lora is not None:
            book = self._llm.adapters.book
            num_loaded = sum(each.is_loaded for each in book)
            gauges |= {
                "adapters_known": (len(book), "LoRA adapters that this replica answers to."),
                "adapters_loaded": (num_loaded, "Those of them in the engine's host memory."),
            }
            counters |= {
                "adapter_loads": (book.num_loads, "Loads of adapters."),
                "adapter_load_seconds": (book.load_seconds, "Time that loads took."),
                "adapter_evictions": (book.num_evictions, "Adapters that made room for others."),
            }
        for name, (value, text) in gauges.items():
            yield GaugeMetricFamily(_PREFIX + name, text, value=value)
        for name, (total, text) in counters.items():
            yield CounterMetricFamily(_PREFIX + name, text, value=total)
