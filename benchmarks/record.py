"""One measurement as a line of JSON, with what is needed to doubt it."""

import json
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("torch", "transformers", "numba", "triton", "octavo")


def conditions(*packages: str) -> dict[str, Any]:
    """Commit, machine and versions of this run; `packages` besides the usual ones."""
    root = Path(__file__).parent.parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
        return done.stdout.strip()

    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": git("rev-parse", "--short", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        "command": " ".join(["python", *sys.orig_argv[1:]]),
        "cpu": _cpu_model(),
        "cores": _cores(),
        "python": platform.python_version(),
        **{name: _version(name) for name in (*_PACKAGES, *packages)},
    }


def _version(package: str) -> str | None:
    """None where it runs from a source tree, or not at all."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def append(file: str, record: dict[str, Any]) -> None:
    """Adds `record` to benchmarks/results/<file>."""
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / file).open("a", encoding="utf-8") as out:
        out.write(json.dumps(record) + "\n")


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0))
