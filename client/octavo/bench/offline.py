"""Throughput and latency of the engine in this process: token ids in, token ids out."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.bench.statistics import percentiles
from octavo.bench.workload import BenchRequest
from octavo_protocol.errors import ConfigError
from octavo_protocol.sampling_params import SamplingParams
from octavo_runtime.engine.engine_core import EngineCore
from octavo_runtime.engine.messages import EngineRequest


@dataclass(frozen=True, slots=True)
class OfflineResult:
    """One run. num_cached_tokens: prompt tokens that the prefix cache supplied."""

    elapsed_s: float
    num_requests: int
    num_input_tokens: int
    num_output_tokens: int
    num_cached_tokens: int

    @property
    def output_tokens_per_s(self) -> float:
        return self.num_output_tokens / self.elapsed_s

    def as_json(self) -> dict[str, Any]:
        """Keys are those of `vllm bench throughput`."""
        total = self.num_input_tokens + self.num_output_tokens
        return {
            "elapsed_time": self.elapsed_s,
            "num_requests": self.num_requests,
            "total_num_tokens": total,
            "requests_per_second": self.num_requests / self.elapsed_s,
            "tokens_per_second": total / self.elapsed_s,
            "output_tokens_per_second": self.output_tokens_per_s,
            "num_cached_tokens": self.num_cached_tokens,
        }


def check_lengths(requests: Sequence[BenchRequest], max_model_len: int) -> None:
    """Raises `ConfigError` for a request that is longer than the context."""
    for request in requests:
        num_input, num_output = len(request.prompt_token_ids), request.output_len
        if num_input + num_output > max_model_len:
            raise ConfigError(
                f"{num_input} tokens in and {num_output} out are more than the context of "
                f"{max_model_len} tokens; ask for shorter ones"
            )


def run_requests(
    core: EngineCore,
    requests: Sequence[BenchRequest],
    *,
    progress: Callable[[int], object] | None = None,
) -> OfflineResult:
    """Runs all requests at once, greedily, and times from the first to the last token.

    progress: called with the number of requests that finished in a step.
    """
    params = [
        SamplingParams(temperature=0.0, max_tokens=r.output_len, ignore_eos=True) for r in requests
    ]
    num_output = num_cached = 0
    started = time.perf_counter()
    for i, (request, sampling) in enumerate(zip(requests, params, strict=True)):
        core.add_request(
            EngineRequest(str(i), list(request.prompt_token_ids), sampling, time.time())
        )
    while core.has_work():
        finished = 0
        for output in core.step().outputs:
            num_output += len(output.new_token_ids)
            if output.finish_reason is not None:
                finished += 1
                num_cached += output.num_cached_tokens
        if finished and progress is not None:
            progress(finished)
    return OfflineResult(
        elapsed_s=time.perf_counter() - started,
        num_requests=len(requests),
        num_input_tokens=sum(len(r.prompt_token_ids) for r in requests),
        num_output_tokens=num_output,
        num_cached_tokens=num_cached,
    )


def measure_latency(
    core: EngineCore, requests: Sequence[BenchRequest], *, num_warm_up: int, num_iterations: int
) -> dict[str, Any]:
    """Seconds from start to end of one batch, repeated. Keys are those of `vllm bench latency`."""
    for _ in range(num_warm_up):
        core.reset_prefix_cache()
        run_requests(core, requests)
    latencies = []
    for _ in range(num_iterations):
        core.reset_prefix_cache()
        latencies.append(run_requests(core, requests).elapsed_s)
    return {
        "avg_latency": sum(latencies) / len(latencies),
        "latencies": latencies,
        "percentiles": percentiles(latencies, (10, 25, 50, 75, 90, 99)),
    }
