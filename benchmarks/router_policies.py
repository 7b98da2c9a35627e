"""Routing policies on a trace, by simulation: `python -m benchmarks.router_policies TRACE`.

Plays the trace at several speeds and, once, with half of the replicas dying in the middle. The
fleet is that of published comparisons: 8 replicas of 2,400 blocks of 512 tokens, 16,000 prompt
tokens per second each. Nothing here depends on the machine.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any, get_args

from benchmarks.record import append, conditions
from octavo.sim.fleet import simulate
from octavo.sim.options import FleetOptions
from octavo.sim.report import FleetReport, report
from octavo.sim.trace import TraceRequest, faster, read_trace
from octavo_protocol.resources.model_deployment import RoutingPolicyName

_SPEEDS = (1.0, 2.0)
_POLICIES: tuple[RoutingPolicyName, ...] = get_args(RoutingPolicyName)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results")
    given = parser.parse_args()
    requests = read_trace(given.trace, block_size=FleetOptions().model.block_size)
    middle = requests[-1].arrival_s / 2
    runs: list[tuple[str, list[TraceRequest], float | None]] = [
        (f"x{speed:g}", faster(requests, speed), None) for speed in _SPEEDS
    ]
    runs.append(("half fail", requests, middle))
    for name, played, fail_at in runs:
        row = _compare(name, played, fail_at)
        if given.record:
            append("router_policies.jsonl", {**conditions(), "trace": given.trace.name, **row})


def _compare(name: str, requests: list[TraceRequest], fail_at: float | None) -> dict[str, Any]:
    reports = {policy: _run(requests, policy, fail_at) for policy in _POLICIES}
    for policy, each in reports.items():
        print(
            f"{name:<10}{policy:<15} hits {each.block_hit_rate:.1%}  load {each.load_ratio:.2f}  "
            f"TTFT {each.ttft_mean_s:.3f} s, p99 {each.ttft_p99_s:.2f} s  moved {each.num_moves}"
        )
    return {"run": name, **{policy: dataclasses.asdict(each) for policy, each in reports.items()}}


def _run(
    requests: list[TraceRequest], policy: RoutingPolicyName, fail_at: float | None
) -> FleetReport:
    options = FleetOptions(policy=policy, fail_at_s=fail_at)
    return report(simulate(requests, options), options.model.block_size)


if __name__ == "__main__":
    main()
