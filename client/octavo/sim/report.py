"""What a simulation says, in the numbers that policies are compared by."""

import statistics
from dataclasses import dataclass

from octavo.sim.fleet import FleetResult


@dataclass(frozen=True, slots=True)
class FleetReport:
    """block_hit_rate: prompt blocks that were cached where the request went, of all. load_ratio:
    prompt tokens computed by the busiest replica over the mean. adapter_hit_rate: requests for
    adapters that did not wait for a load, of all such; 1 where there are none. Times in seconds.
    """

    num_requests: int
    block_hit_rate: float
    load_ratio: float
    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    tpot_mean_s: float
    num_moves: int
    adapter_hit_rate: float = 1.0
    num_adapter_loads: int = 0


def report(result: FleetResult, block_size: int) -> FleetReport:
    """Sums up a run in which every request ended."""
    outcomes = result.outcomes
    num_hits = sum(-(-each.num_cached_tokens // block_size) for each in outcomes)
    num_blocks = sum(len(each.request.hashes) for each in outcomes)
    adapted = [each for each in outcomes if each.request.adapter is not None]
    computed = list(result.prefill_tokens.values())
    ttft = sorted(each.ttft_s for each in outcomes)
    gaps = [
        (each.end_s - each.first_token_s) / (each.request.num_output_tokens - 1)
        for each in outcomes
        if each.end_s is not None
        and each.first_token_s is not None
        and each.request.num_output_tokens > 1
    ]
    return FleetReport(
        num_requests=len(outcomes),
        block_hit_rate=num_hits / num_blocks if num_blocks else 0.0,
        load_ratio=max(computed) / (sum(computed) / len(computed)),
        ttft_mean_s=statistics.fmean(ttft),
        ttft_p50_s=_percentile(ttft, 0.50),
        ttft_p99_s=_percentile(ttft, 0.99),
        tpot_mean_s=statistics.fmean(gaps) if gaps else 0.0,
        num_moves=sum(each.num_moves for each in outcomes),
        adapter_hit_rate=statistics.fmean(e.found_adapter for e in adapted) if adapted else 1.0,
        num_adapter_loads=result.num_adapter_loads,
    )


def _percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
