"""What lines of batches cost a router and a client: `python -m benchmarks.batch_lines`.

Replicas that answer at once (`benchmarks.instant_replica`), a real Redis, one router that works on
batches and has a core to itself where there are two; in a process of its own the client: `LLM` with
`cluster`, which submits prompts from a generator and takes the outputs one by one.

    lines_per_s            from submission to the last output
    router_ms_per_line     of the router's processor time, over the same period
    router_mib, client_mib the largest resident memory; flat in the number of lines
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.record import append, conditions
from benchmarks.router_http import DEPLOYMENT, replicas
from octavo.local.ports import free_port
from octavo.local.process import Child, ProcessSpec

RESULTS = "batch_lines.jsonl"
_MIB = 2**20
_START_TIMEOUT_S = 60.0


class Peak:
    """The largest resident memory of a process while this context is open, looked at often."""

    def __init__(self, process: psutil.Process) -> None:
        self.num_bytes = 0
        self._process = process
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._is_over.wait(0.02):
            self.num_bytes = max(self.num_bytes, self._process.memory_info().rss)


def measure(url: str, router: psutil.Process, num_lines: int) -> dict[str, Any]:
    """One job of `num_lines` prompts."""
    before = router.cpu_times()
    command = [sys.executable, "-m", "benchmarks.batch_lines", "--client", url, str(num_lines)]
    with Peak(router) as peak:
        told = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    after = router.cpu_times()
    cpu_s = after.user + after.system - before.user - before.system
    return {
        "lines": num_lines,
        "lines_per_s": round(num_lines / told["seconds"], 1),
        "router_ms_per_line": round(cpu_s / num_lines * 1000, 3),
        "router_mib": round(peak.num_bytes / _MIB, 1),
        "client_mib": round(told["peak_bytes"] / _MIB, 1),
    }


def run_client(url: str, num_lines: int) -> dict[str, float]:
    """Submits, takes every output and looks at its place."""
    from octavo import LLM, SamplingParams

    llm: Any = LLM("fake", cluster=url)
    with llm:
        started = time.monotonic()
        prompts = (f"prompt {i}: {'a few words more ' * 4}" for i in range(num_lines))
        job_id = llm.submit(prompts, SamplingParams(max_tokens=4))
        for i, output in enumerate(llm.results(job_id, use_tqdm=False)):
            assert output.prompt.startswith(f"prompt {i}:")
        assert i == num_lines - 1
        seconds = time.monotonic() - started
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "peak_bytes": peak_bytes}


def run_all(sizes: list[int]) -> list[dict[str, Any]]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="octavo-lines-")))
        _, redis_url = stack.enter_context(replicas())
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        command = (
            *(sys.executable, "-m", "octavo", "router", "--redis-url", redis_url),
            *(
                "--deployment",
                DEPLOYMENT,
                "--files-url",
                str(folder / "files"),
                "--port",
                str(port),
            ),
            *("--disable-uvicorn-access-log", "--log-level", "warning"),
        )
        spec = ProcessSpec(name="router", command=command, ready_url=f"{url}/ready")
        child = Child(spec, folder / "router.log")
        stack.callback(child.kill)
        child.start()
        _wait_served(url, child)
        assert child.pid is not None
        router = psutil.Process(child.pid)
        _own_core(router)
        figures = []
        for size in sizes:
            figures.append(measure(url, router, size))
            print(figures[-1], file=sys.stderr, flush=True)
        return figures


def _wait_served(url: str, child: Child) -> None:
    """Until the router knows the replicas."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            if httpx.get(f"{url}/v1/models", timeout=5).json()["data"]:
                return
        except httpx.HTTPError:
            pass
        if not child.is_running() or time.monotonic() > deadline:
            raise SystemExit(f"the router did not start:\n{child.log_tail()}")
        time.sleep(0.05)


def _own_core(router: psutil.Process) -> None:
    """The router gets the last core, everything else that is started the others."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return
    for each in (psutil.Process(), *psutil.Process().children(recursive=True)):
        each.cpu_affinity(cores[:-1])
    router.cpu_affinity(cores[-1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results")
    parser.add_argument("--client", nargs=2, metavar=("URL", "LINES"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.client:
        print(json.dumps(run_client(given.client[0], int(given.client[1]))))
        return
    settings = {**conditions(), "load_average": os.getloadavg()[0]}
    figures = run_all(given.lines)
    if given.record:
        append(RESULTS, {"benchmark": "batch_lines", **settings, "runs": figures})
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
