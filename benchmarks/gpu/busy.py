"""The share of time in which a GPU computes, from a trace of its kernels and copies."""

from collections.abc import Callable, Iterable
from typing import Any

import torch


def gpu_busy(work: Callable[[], Any]) -> float:
    """Of the time from the first kernel of `work` to the end of the last: the share in which at
    least one ran.

    Tracing costs time between kernels, so that the share without it is larger.
    """
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        work()
        torch.cuda.synchronize()
    results: Any = profile.profiler
    return busy_share(
        (event.start_ns(), event.start_ns() + event.duration_ns())
        for event in results.kineto_results.events()
        if str(event.device_type()).endswith("CUDA")
    )


def busy_share(intervals: Iterable[tuple[int, int]]) -> float:
    """Of the time from the first start to the last end: the share that the intervals cover."""
    ordered = sorted(intervals)
    covered = 0
    reached = ordered[0][0]
    for start, end in ordered:
        covered += max(0, end - max(start, reached))
        reached = max(reached, end)
    return covered / (reached - ordered[0][0])
