"""A replica's measurements under vLLM's names, which routers, autoscalers and dashboards read.

Names, types, labels and bucket bounds are vLLM's. Every metric but `lora_requests_info` has the
labels `model_name` and `engine`.
"""

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from octavo_protocol.outputs import RequestOutput
from octavo_protocol.sampling_params import SamplingParams
from octavo_runtime.engine.async_llm import AsyncLLM
from octavo_runtime.engine.messages import EngineInfo, LoRAInfo
from octavo_runtime.server.octavo_metrics import AnyOutput

_PREFIX = "vllm:"
_LABELS = ("model_name", "engine")
_ENGINE = "0"
_TTFT_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_ITL_BUCKETS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0),
)
_LATENCY_BUCKETS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_N_BUCKETS = (1, 2, 5, 10, 20)


class VllmNames:
    """`vllm:*`. with_old: also under names that vLLM has removed."""

    def __init__(
        self,
        llm: AsyncLLM,
        info: EngineInfo,
        registry: CollectorRegistry,
        *,
        model: str,
        with_old: bool,
    ) -> None:
        registry.register(_EngineCollector(llm, info, model, with_old=with_old))
        lengths = _lengths(info.max_model_len)

        def counter(name: str, text: str, *labels: str) -> Counter:
            made = Counter(_PREFIX + name, text, (*_LABELS, *labels), registry=registry)
            return made if labels else made.labels(model, _ENGINE)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            made = Histogram(_PREFIX + name, text, _LABELS, buckets=buckets, registry=registry)
            return made.labels(model, _ENGINE)

        self._model = model
        self._success = counter("request_success", "Finished sequences.", "finished_reason")
        self._prompt_tokens = counter("prompt_tokens", "Prefilled tokens.")
        self._cached_tokens = counter("prompt_tokens_cached", "Prompt tokens from a cache.")
        self._generation_tokens = counter("generation_tokens", "Generated tokens.")
        self._ttft = histogram("time_to_first_token_seconds", "To the first token.", _TTFT_BUCKETS)
        gap = "Between two tokens of a sequence."
        self._gaps = [histogram("inter_token_latency_seconds", gap, _ITL_BUCKETS)]
        if with_old:
            self._gaps.append(histogram("time_per_output_token_seconds", gap, _ITL_BUCKETS))
        self._mean_gap = histogram(
            "request_time_per_output_token_seconds", "Mean gap of a request.", _ITL_BUCKETS
        )
        self._e2e = histogram("e2e_request_latency_seconds", "Arrival to end.", _LATENCY_BUCKETS)
        self._queue = histogram("request_queue_time_seconds", "In the queue.", _LATENCY_BUCKETS)
        self._inference = histogram(
            "request_inference_time_seconds", "From admission to the end.", _LATENCY_BUCKETS
        )
        self._prefill = histogram(
            "request_prefill_time_seconds", "From admission to the first token.", _LATENCY_BUCKETS
        )
        self._decode = histogram(
            "request_decode_time_seconds", "From the first token to the last.", _LATENCY_BUCKETS
        )
        self._prompt_length = histogram("request_prompt_tokens", "Prompt tokens.", lengths)
        self._output_length = histogram("request_generation_tokens", "Output tokens.", lengths)
        self._longest = histogram(
            "request_max_num_generation_tokens", "Of a request's longest output.", lengths
        )
        self._n = histogram("request_params_n", "Parameter n.", _N_BUCKETS)
        self._max_tokens = histogram("request_params_max_tokens", "Parameter max_tokens.", lengths)

    def generated(self, num_tokens: int) -> None:
        self._generation_tokens.inc(num_tokens)

    def first_token(self, seconds: float) -> None:
        self._ttft.observe(seconds)

    def gap(self, seconds: float) -> None:
        for histogram in self._gaps:
            histogram.observe(seconds)

    def sequence_ended(self, finish_reason: str) -> None:
        self._success.labels(self._model, _ENGINE, finish_reason).inc()

    def prompt_ended(self, output: AnyOutput) -> None:
        num_prompt = len(output.prompt_token_ids or ())
        self._prompt_tokens.inc(num_prompt)
        self._prompt_length.observe(num_prompt)
        self._cached_tokens.inc(output.num_cached_tokens or 0)
        stats = output.metrics
        if stats is None:
            return
        self._e2e.observe(stats.first_token_latency + stats.last_token_ts - stats.first_token_ts)
        if stats.scheduled_ts:
            self._queue.observe(max(0.0, stats.scheduled_ts - stats.queued_ts))
            self._prefill.observe(max(0.0, stats.first_token_ts - stats.scheduled_ts))
            self._inference.observe(max(0.0, stats.last_token_ts - stats.scheduled_ts))

    def request_ended(self, output: RequestOutput, params: SamplingParams) -> None:
        self.prompt_ended(output)
        self._n.observe(params.n)
        if params.max_tokens is not None:
            self._max_tokens.observe(params.max_tokens)
        stats = output.metrics
        if stats is None:
            return
        num_output = stats.num_generation_tokens
        self._output_length.observe(num_output)
        self._longest.observe(num_output / params.n)
        decode = stats.last_token_ts - stats.first_token_ts
        self._decode.observe(decode)
        if num_output > params.n:
            self._mean_gap.observe(decode / (num_output / params.n - 1))

    def aborted(self) -> None:
        self.sequence_ended("abort")


class _EngineCollector(Collector):
    """The engine's newest statistics and its configuration."""

    def __init__(self, llm: AsyncLLM, info: EngineInfo, model: str, *, with_old: bool) -> None:
        self._llm = llm
        self._info = info
        self._model = model
        self._with_old = with_old

    def collect(self) -> Iterator[Metric]:
        stats = self._llm.stats
        gauges = {
            "num_requests_running": (stats.running, "Sequences in execution."),
            "num_requests_waiting": (stats.waiting, "Sequences in the queue."),
            "kv_cache_usage_perc": (stats.kv_usage, "Used share of the KV cache, 0 to 1."),
        }
        counters = {
            "num_preemptions": (stats.preemptions_total, "Preempted sequences."),
            "prefix_cache_queries": (stats.prefix_queried_tokens_total, "Tokens looked up."),
            "prefix_cache_hits": (stats.prefix_hit_tokens_total, "Tokens found."),
        }
        if self._with_old:
            gauges["gpu_cache_usage_perc"] = gauges["kv_cache_usage_perc"]
            gauges["num_requests_swapped"] = (0, "Nothing is swapped out.")
            counters["gpu_prefix_cache_queries"] = counters["prefix_cache_queries"]
            counters["gpu_prefix_cache_hits"] = counters["prefix_cache_hits"]
        values = [self._model, _ENGINE]
        for name, (value, text) in gauges.items():
            gauge = GaugeMetricFamily(_PREFIX + name, text, labels=_LABELS)
            gauge.add_metric(values, value)
            yield gauge
        for name, (total, text) in counters.items():
            counter = CounterMetricFamily(_PREFIX + name, text, labels=_LABELS)
            counter.add_metric(values, total)
            yield counter
        yield self._cache_config()
        if self._info.lora is not None:
            yield self._adapters(self._info.lora)

    def _adapters(self, room: LoRAInfo) -> Metric:
        """One series whose labels tell names; those of before are gone, so it stays one."""
        stats = self._llm.stats
        labels = {
            "max_lora": str(room.max_loras),
            "waiting_lora_adapters": ",".join(stats.waiting_adapters),
            "running_lora_adapters": ",".join(stats.running_adapters),
        }
        gauge = GaugeMetricFamily(
            _PREFIX + "lora_requests_info", "Adapters of requests; when.", labels=[*labels]
        )
        gauge.add_metric([*labels.values()], time.time())
        return gauge

    def _cache_config(self) -> Metric:
        settings = {
            "block_size": str(self._info.block_size),
            "num_gpu_blocks": str(self._info.num_blocks),
            "cache_dtype": self._info.dtype,
            "enable_prefix_caching": str(self._info.enable_prefix_caching),
        }
        gauge = GaugeMetricFamily(
            _PREFIX + "cache_config_info", "The KV cache.", labels=[*_LABELS, *settings]
        )
        gauge.add_metric([self._model, _ENGINE, *settings.values()], 1)
        return gauge


def _lengths(longest: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50, ... up to `longest`."""
    bounds = []
    scale = 1
    while scale <= longest:
        bounds += [scale * step for step in (1, 2, 5) if scale * step <= longest]
        scale *= 10
    return tuple(bounds)
