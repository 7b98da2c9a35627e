"""Routing policies on traces, by simulation: `python -m benchmarks.router_policies TRACE`.

Plays a trace of block hashes (Mooncake's conversations) as it is, twice as fast, with half of the
replicas dying in the middle, and with a router that hears nothing of caches. The fleet is that of
published comparisons: 8 replicas of 2,400 blocks of 512 tokens, 16,000 prompt tokens per second
each. --agents FOLDER and --servegen FOLDER add agent sessions and a burst (`benchmarks.traces`) on
fleets of 4 replicas that are sized to their load. --weights tries factors of expected-ttft on each.
Nothing here depends on the machine.
"""

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from benchmarks.record import append, conditions
from benchmarks.traces import AGENT_BLOCK, agent_sessions, servegen_burst
from octavo.sim.fleet import simulate
from octavo.sim.options import FleetOptions, ReplicaModel
from octavo.sim.report import FleetReport, report
from octavo.sim.trace import TraceRequest, faster, read_trace
from octavo_protocol.resources.model_deployment import RoutingPolicyName
from octavo_router.policies import PolicyWeights

RESULTS = "router_policies.jsonl"
_POLICIES: tuple[RoutingPolicyName, ...] = get_args(RoutingPolicyName)
_AGENT_FLEET = FleetOptions(
    num_replicas=4, model=ReplicaModel(num_blocks=1200, block_size=AGENT_BLOCK)
)
_BURST_FLEET = FleetOptions(num_replicas=4, model=ReplicaModel(prefill_tokens_per_s=4000.0))
_BURST_SHARE = 0.25
_WEIGHTS = tuple(
    PolicyWeights(uncached=uncached, recent=recent)
    for uncached in (1, 2, 4, 6)
    for recent in (0, 0.02, 0.05, 0.1)
)


@dataclass(frozen=True)
class Workload:
    """Requests and the fleet that they meet."""

    name: str
    requests: Sequence[TraceRequest]
    fleet: FleetOptions

    def run(self, **changes: Any) -> FleetReport:
        options = dataclasses.replace(self.fleet, **changes)
        return report(simulate(self.requests, options), options.model.block_size)


def run(arguments: Sequence[str] | None = None) -> dict[RoutingPolicyName, FleetReport]:
    """Measures, prints and records; returns the reports of the trace as it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", type=Path, help="a trace as `octavo sim` reads it")
    parser.add_argument("--agents", type=Path, action="append", default=[], metavar="FOLDER")
    parser.add_argument("--servegen", type=Path, metavar="FOLDER")
    parser.add_argument("--weights", action="store_true", help="try factors of expected-ttft")
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results")
    given = parser.parse_args(arguments)
    at_start = conditions()
    workloads = list(_workloads(given.trace, given.agents, given.servegen))
    reports = []
    for workload in workloads:
        reports.append({policy: workload.run(policy=policy) for policy in _POLICIES})
        _tell(workload, reports[-1])
        if given.record:
            _record(workload, reports[-1], at_start)
    for workload in workloads if given.weights else ():
        tried = {
            f"uncached {each.uncached:g}, recent {each.recent:g}": workload.run(weights=each)
            for each in _WEIGHTS
        }
        _tell(workload, tried)
        if given.record:
            _record(workload, tried, at_start)
    return reports[0]


def _workloads(trace: Path, agents: list[Path], servegen: Path | None) -> Iterator[Workload]:
    chats = FleetOptions()
    requests = read_trace(trace, block_size=chats.model.block_size)
    middle = requests[-1].arrival_s / 2
    yield Workload("chats", requests, chats)
    yield Workload("chats x2", faster(requests, 2), chats)
    yield Workload("half fail", requests, dataclasses.replace(chats, fail_at_s=middle))
    yield Workload("no index", requests, dataclasses.replace(chats, has_index=False))
    for folder in agents:
        # magagent waits a lot for the web: its sessions need more time to be a load.
        sessions = agent_sessions(folder, within_s=20)
        is_slow = sessions[-1].arrival_s > 300
        yield Workload(folder.name, faster(sessions, 4) if is_slow else sessions, _AGENT_FLEET)
    if servegen is not None:
        burst = servegen_burst(
            servegen, block_size=_BURST_FLEET.model.block_size, share=_BURST_SHARE
        )
        yield Workload("burst", burst, _BURST_FLEET)


def _tell(workload: Workload, reports: dict[Any, FleetReport]) -> None:
    for name, each in reports.items():
        print(
            f"{workload.name:<10}{name:<26} hits {each.block_hit_rate:6.1%}  load "
            f"{each.load_ratio:.2f}  TTFT {each.ttft_mean_s:.3f} s, p99 {each.ttft_p99_s:.2f} s"
            f"  moved {each.num_moves}",
            flush=True,
        )


def _record(workload: Workload, reports: dict[Any, FleetReport], at_start: dict[str, Any]) -> None:
    row = {name: dataclasses.asdict(each) for name, each in reports.items()}
    append(RESULTS, {**at_start, "run": workload.name, **row})


if __name__ == "__main__":
    run()
