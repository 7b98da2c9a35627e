"""Days of churn in a cluster, compressed: what the router keeps of it. `python -m
benchmarks.router_soak`.

The router's own objects on a simulated clock (`tests/fakes/churn.py`): deployments and replicas
that come, leave and fail, caches that fill, are evicted and lose events, requests and sessions by
the hundred thousand. Every two simulated hours a sample at rest: resident memory, objects that the
garbage collector tracks, names of what has left, series of the metrics. Growth is the last third's
median over that of the third before it.
"""

import argparse
import dataclasses
import time

import psutil
from tests.fakes.churn import Churn, Size, growth, sampled

from benchmarks.record import append, conditions

RESULTS = "router_soak.jsonl"
_TICKS_PER_DAY = 24 * 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=1)
    parser.add_argument("--requests", type=int, default=200, help="in each simulated minute")
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results")
    given = parser.parse_args()
    at_start, started = conditions(), time.monotonic()
    size = Size(num_deployments=12, num_requests=given.requests)
    churn = Churn(size=size)
    churn.run(120)
    rows = []
    samples = []
    process = psutil.Process()
    for sample in sampled(churn, given.days * _TICKS_PER_DAY, given.days * 12):
        samples.append(sample)
        rows.append({**dataclasses.asdict(sample), "resident_bytes": process.memory_info().rss})
        print(*(f"{name}={value}" for name, value in rows[-1].items() if value), flush=True)
    result = {
        "days": given.days,
        "requests": given.days * _TICKS_PER_DAY * given.requests,
        "seconds": time.monotonic() - started,
        "objects_growth": growth([each.num_objects for each in samples]),
        "resident_growth": growth([row["resident_bytes"] for row in rows]),
        "series_growth": growth([each.num_series for each in samples]),
        "samples": rows,
    }
    print(*(f"{name}={value:.4g}" for name, value in result.items() if not isinstance(value, list)))
    if given.record:
        append(RESULTS, {**at_start, "size": dataclasses.asdict(size), **result})


if __name__ == "__main__":
    main()
