"""Adapters over a fleet, by policy, by simulation: `python -m benchmarks.router_adapters`.

100 adapters, asked for by Zipf's law (exponent 1), on 8 replicas with 8 places each and loads of
half a second: requests of 1,000 prompt tokens and 200 output tokens arrive as a Poisson process, 9
of 10 for an adapter, none sharing a prefix. Also with half of that traffic, with all adapters asked
for alike, and with a place for each. Nothing here depends on the machine.
"""

import argparse
import dataclasses
import random
from collections.abc import Sequence
from typing import Any, get_args

from benchmarks.record import append, conditions
from octavo.sim.fleet import simulate
from octavo.sim.options import AdapterTraffic, FleetOptions, ReplicaModel
from octavo.sim.report import FleetReport, report
from octavo.sim.trace import TraceRequest
from octavo_protocol.resources.model_deployment import RoutingPolicyName

RESULTS = "router_adapters.jsonl"
_POLICIES: tuple[RoutingPolicyName, ...] = get_args(RoutingPolicyName)
_SECONDS = 300.0
_BLOCK = 512
_MODEL = ReplicaModel(block_size=_BLOCK, max_num_seqs=64, max_adapters=8, adapter_load_s=0.5)
_FLEET = FleetOptions(
    num_replicas=8,
    model=_MODEL,
    adapters=AdapterTraffic(num_adapters=100, share=0.9, skew=1.0),
)
_RUNS: dict[str, tuple[float, FleetOptions]] = {
    "40 a second": (40.0, _FLEET),
    "20 a second": (20.0, _FLEET),
    "all alike": (
        20.0,
        dataclasses.replace(_FLEET, adapters=dataclasses.replace(_FLEET.adapters, skew=0.0)),
    ),
    "100 places": (
        40.0,
        dataclasses.replace(_FLEET, model=dataclasses.replace(_MODEL, max_adapters=100)),
    ),
}


def requests_of(per_s: float, *, seed: int = 0) -> list[TraceRequest]:
    rng = random.Random(seed)
    requests: list[TraceRequest] = []
    now = rng.expovariate(per_s)
    while now < _SECONDS:
        hashes = tuple(f"{len(requests)}/{index}".encode() for index in range(1000 // _BLOCK))
        requests.append(TraceRequest(now, 1000, 200, hashes))
        now += rng.expovariate(per_s)
    return requests


def run(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results")
    given = parser.parse_args(arguments)
    at_start = conditions()
    for name, (per_s, fleet) in _RUNS.items():
        reports: dict[str, FleetReport] = {}
        for policy in _POLICIES:
            options = dataclasses.replace(fleet, policy=policy)
            reports[policy] = report(simulate(requests_of(per_s), options), _BLOCK)
            _tell(name, policy, reports[policy])
        if given.record:
            rows: dict[str, Any] = {key: dataclasses.asdict(row) for key, row in reports.items()}
            append(RESULTS, {**at_start, "run": name, "requests_per_s": per_s, **rows})


def _tell(name: str, policy: str, row: FleetReport) -> None:
    print(
        f"{name:<12}{policy:<18}loaded before {row.adapter_hit_rate:6.1%}  loads "
        f"{row.num_adapter_loads:5}  TTFT {row.ttft_mean_s:.3f} s, p99 {row.ttft_p99_s:.2f} s  "
        f"busiest {row.load_ratio:.2f}",
        flush=True,
    )


if __name__ == "__main__":
    run()
