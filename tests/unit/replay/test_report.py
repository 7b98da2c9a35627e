"""The figures of a replay."""

from octavo.bench.online import StreamTimes
from octavo.replay.report import ReplayReport, report


def test_figures_are_of_requests_without_an_error() -> None:
    done = StreamTimes(
        ttft=0.2, total=1.2, num_input_tokens=80, num_output_tokens=11, num_cached_tokens=20
    )
    short = StreamTimes(ttft=0.4, total=0.4, num_input_tokens=20, num_output_tokens=1)
    failed = StreamTimes(ttft=9.0, num_input_tokens=7, error="503: no")
    summed = report(3.0, [done, short, failed])
    assert summed == ReplayReport(
        num_requests=3,
        num_errors=1,
        seconds=3.0,
        prompt_tokens=100,
        cached_tokens=20,
        output_tokens=12,
        ttft_mean_s=summed.ttft_mean_s,
        ttft_p50_s=summed.ttft_p50_s,
        ttft_p90_s=summed.ttft_p90_s,
        ttft_p99_s=summed.ttft_p99_s,
        tpot_mean_s=0.1,
        tpot_p50_s=0.1,
        tpot_p99_s=0.1,
    )
    assert summed.cached_share == 0.2
    assert abs(summed.ttft_mean_s - 0.3) < 1e-9
    assert summed.ttft_p50_s < summed.ttft_p90_s < summed.ttft_p99_s <= 0.4


def test_a_run_without_an_answer_has_figures_too() -> None:
    summed = report(1.0, [StreamTimes(error="gone")])
    assert (summed.num_errors, summed.cached_share, summed.ttft_mean_s) == (1, 0.0, 0.0)
