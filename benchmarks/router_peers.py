"""Octavo's router beside others on this machine, in one run: `python -m benchmarks.router_peers`.

    production-stack   vLLM production-stack's router (Python), from its repository
    vllm-router        vLLM's router (Rust), from PyPI
    sglang-router      SGLang's gateway (Rust), from PyPI

Each gets a virtual environment of its own under --folder, made when it is missing; what cannot be
installed is said and left out. production-stack needs Python 3.12 or later (--python) and its
source (--production-stack: whatever pip can install, a checkout for instance). All routers send to
the same replicas, which answer at once (`benchmarks.router_http`): round robin, and the policies by
prefix that the Rust routers have by default, beside Octavo's.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.instant_replica import MODEL
from benchmarks.record import append, conditions
from benchmarks.router_http import Side, add_arguments, compare, octavo_sides, replicas
from octavo.local.ports import free_port

RESULTS = "router_peers.jsonl"
_PRODUCTION_STACK = "git+https://github.com/vllm-project/production-stack"


@dataclass(frozen=True, slots=True)
class Peer:
    """A router in its own environment. package: as its environment calls it."""

    name: str
    source: str
    package: str
    python: str

    def install(self, folder: Path) -> Path | None:
        """The environment's `bin`; None where it cannot be made, which is said."""
        commands = folder / self.name / "bin"
        if (commands / self.package).exists():
            return commands
        python = shutil.which(self.python)
        if python is None:
            print(f"{self.name}: left out; there is no {self.python} (see --python)")
            return None
        subprocess.run([python, "-m", "venv", str(folder / self.name)], check=True)
        install = [str(commands / "python"), "-m", "pip", "install", "--quiet", self.source]
        if subprocess.run(install, check=False).returncode:
            shutil.rmtree(folder / self.name)
            print(f"{self.name}: left out; pip cannot install {self.source}")
            return None
        return commands

    def version(self, commands: Path) -> str:
        code = f"from importlib.metadata import version; print(version({self.package!r}))"
        told = subprocess.run(
            [str(commands / "python"), "-c", code], capture_output=True, text=True, check=True
        )
        return told.stdout.strip()

    def sides(self, commands: Path, urls: Sequence[str]) -> Iterator[Side]:
        """The router by each policy that is measured."""
        if self.name == "production-stack":
            port = free_port()
            models = ",".join(MODEL for _ in urls)
            flags = ["--service-discovery", "static", "--static-backends", ",".join(urls)]
            flags += ["--static-models", models, "--routing-logic", "roundrobin"]
            flags += ["--log-level", "error"]
            yield Side(self.name, _command(commands / self.package, port, flags), port)
            return
        for policy in ("round_robin", "cache_aware"):
            port = free_port()
            flags = ["--worker-urls", *urls, "--policy", policy, "--log-level", "error"]
            flags += ["--prometheus-port", str(free_port())]
            words = ["launch"] if self.name == "sglang-router" else []
            command = _command(commands / self.package, port, flags, words)
            yield Side(f"{self.name} {policy}", command, port)


def _command(
    program: Path, port: int, flags: Sequence[str], words: Sequence[str] = ()
) -> tuple[str, ...]:
    return (str(program), *words, "--host", "127.0.0.1", "--port", str(port), *flags)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--folder", type=Path, default=Path("build/router-peers"))
    parser.add_argument("--production-stack", default=_PRODUCTION_STACK, metavar="SOURCE")
    parser.add_argument("--python", default="python3.12", help="for production-stack")
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results")
    given = parser.parse_args()
    peers = [
        Peer("production-stack", given.production_stack, "vllm-router", given.python),
        Peer("vllm-router", "vllm-router", "vllm-router", sys.executable),
        Peer("sglang-router", "sglang-router", "sglang-router", sys.executable),
    ]
    versions: dict[str, str] = {}
    with replicas() as (urls, redis_url):
        sides = octavo_sides(urls, redis_url)
        for peer in peers:
            if (commands := peer.install(given.folder)) is not None:
                versions[peer.name] = peer.version(commands)
                sides += peer.sides(commands, urls)
        figures = compare(sides, urls, given)
    if given.record:
        append(RESULTS, {**conditions(), "peers": versions, **figures})


if __name__ == "__main__":
    main()
