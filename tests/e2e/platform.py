"""A whole platform as `octavo up` starts it, for tests."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import httpx
import psutil

from octavo.local.ports import free_ports

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 60.0

MANIFEST = """\
apiVersion: octavo.dev/v1alpha1
kind: ModelDeployment
metadata:
  name: smollm2
spec:
  model:
    source: file://{folder}
  replicas: 2
  engine:
    dtype: float32
    maxModelLen: 4096
    kvCacheMemoryMib: 700
"""
_RUNNING = "vllm:num_requests_running"
T = TypeVar("T")


class Platform:
    """Redis, two fp32 replicas of a model and a router, in child processes. A context manager.

    manifest: with the model's `{folder}`, and of `num_replicas` in all.
    """

    def __init__(
        self, model: Path, folder: Path, manifest: str = MANIFEST, *, num_replicas: int = 2
    ) -> None:
        self._num_replicas = num_replicas
        path = folder / "manifest.yaml"
        path.write_text(manifest.format(folder=model))
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        self._log = folder / "up.log"
        command = [sys.executable, "-m", "octavo", "up", "-f", str(path)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "--port", str(port), "--no-greet"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
            )

    def __enter__(self) -> "Platform":
        self.wait_until(self.is_ready, START_TIMEOUT_S)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.send_signal(signal.SIGINT)
        self._process.wait(STOP_TIMEOUT_S)

    @property
    def redis_url(self) -> str:
        """Of the embedded Redis."""
        return str(self._find("router").environ()["OCTAVO_REDIS_URL"])

    def is_ready(self) -> bool:
        """All replicas are known to the router."""
        assert self._process.poll() is None, self._log.read_text()
        try:
            return self.metric("octavo_router_replicas") == self._num_replicas
        except httpx.TransportError:
            return False

    def has_recovered(self) -> bool:
        """All replicas run and may take traffic."""
        return len(self._replica_ports()) == self._num_replicas and all(
            map(_is_ready, self._replica_ports())
        )

    def metric(self, name: str) -> float:
        """A metric of the router without labels."""
        for line in httpx.get(f"{self.url}/metrics").text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
        raise AssertionError(f"the router has no metric {name}")

    def busy_replica(self) -> str | None:
        """One that runs requests; None: none does."""
        for _, command in self._children():
            if "--replica-id" in command and _num_running(_value(command, "--port")):
                return _value(command, "--replica-id")
        return None

    def kill_replica(self, replica_id: str | None = None) -> None:
        """SIGKILL for the API process of one replica, of any without an id; its engine process dies
        with it.
        """
        self._find("serve", replica_id=replica_id).kill()

    def kill_redis(self) -> None:
        self._find("valkey-server", "redis-server").kill()

    def wait_until(self, condition: Callable[[], T], timeout_s: float) -> T:
        """What `condition` gives when it holds."""
        deadline = time.monotonic() + timeout_s
        while not (found := condition()):
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.05)
        return found

    def _replica_ports(self) -> list[str]:
        commands = [command for _, command in self._children()]
        return [_value(each, "--port") for each in commands if "--replica-id" in each]

    def _children(self) -> Iterator[tuple[psutil.Process, list[str]]]:
        """With their command lines; those that end meanwhile are left out."""
        for process in psutil.Process(self._process.pid).children():
            with suppress(psutil.NoSuchProcess):  # a zombie is one
                yield process, process.cmdline()

    def _find(self, *words: str, replica_id: str | None = None) -> psutil.Process:
        for process, arguments in self._children():
            is_meant = replica_id is None or replica_id in arguments
            if is_meant and any(Path(part).name in words for part in arguments[:4]):
                return process
        raise AssertionError(f"no child process of octavo up has one of {words}")


def _value(command: list[str], flag: str) -> str:
    return command[command.index(flag) + 1]


def _num_running(port: str) -> float:
    lines = httpx.get(f"http://127.0.0.1:{port}/metrics").text.splitlines()
    return sum(float(each.split()[-1]) for each in lines if each.startswith(_RUNNING))


def _is_ready(port: str) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/ready").status_code == 200
    except httpx.TransportError:
        return False
