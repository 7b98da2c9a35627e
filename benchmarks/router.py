"""What `make bench-router` runs: the time of a decision, requests per core and added latency, and,
where a trace is given, the policies.

    python -m benchmarks.router [--trace TRACE] [--record]

The last line sums up; `-` stands for what was not measured.
"""

import argparse
from pathlib import Path

from benchmarks import router_decisions, router_http, router_policies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", type=Path, help="a trace as `octavo sim` reads it")
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results")
    given = parser.parse_args()
    record = ["--record"] if given.record else []
    policies = {"hit_rate": "-", "load_ratio": "-", "ttft_vs_round_robin": "-"}
    if given.trace is not None:
        reports = router_policies.run([str(given.trace), *record])
        ours, theirs = reports["expected-ttft"], reports["round-robin"]
        policies = {
            "hit_rate": f"{ours.block_hit_rate:.3f}",
            "load_ratio": f"{ours.load_ratio:.2f}",
            "ttft_vs_round_robin": f"{ours.ttft_mean_s / theirs.ttft_mean_s:.2f}",
        }
    sizes = router_decisions.run(record)["sizes"]
    decisions = {
        f"decision_p99_ms_{size}": f"{sizes[size]['p99_ms']:.2f}" for size in ("10k", "100k")
    }
    served = router_http.summary(router_http.run(record))
    figures = {**policies, **decisions, **served}
    print("router", *(f"{name}={value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
