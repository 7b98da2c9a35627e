"""What a replay says, under the names that the simulator's report has where both know a figure."""

from collections.abc import Sequence
from dataclasses import dataclass

from octavo.bench.online import StreamTimes
from octavo.bench.statistics import mean, percentile


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """Of the requests without an error; times in seconds. TPOT: of answers of two tokens or more.
    cached_tokens: prompt tokens that the servers say they had cached.
    """

    num_requests: int
    num_errors: int
    seconds: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p90_s: float
    ttft_p99_s: float
    tpot_mean_s: float
    tpot_p50_s: float
    tpot_p99_s: float

    @property
    def cached_share(self) -> float:
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


def report(seconds: float, results: Sequence[StreamTimes]) -> ReplayReport:
    done = [each for each in results if each.error is None]
    ttft = [each.ttft for each in done]
    tpot = [each.tpot for each in done if each.num_output_tokens > 1]
    return ReplayReport(
        num_requests=len(results),
        num_errors=len(results) - len(done),
        seconds=seconds,
        prompt_tokens=sum(each.num_input_tokens for each in done),
        cached_tokens=sum(each.num_cached_tokens for each in done),
        output_tokens=sum(each.num_output_tokens for each in done),
        ttft_mean_s=mean(ttft),
        ttft_p50_s=percentile(ttft, 50),
        ttft_p90_s=percentile(ttft, 90),
        ttft_p99_s=percentile(ttft, 99),
        tpot_mean_s=mean(tpot),
        tpot_p50_s=percentile(tpot, 50),
        tpot_p99_s=percentile(tpot, 99),
    )
