"""A replica over the echoing engine in a process of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from tests.fakes.tiny_model import write_tiny_model

from octavo.local.ports import free_port

REPOSITORY = Path(__file__).parents[3]
MODEL = "tiny"
MAX_MODEL_LEN = 256
MAX_BODY_BYTES = 4 * 2**20
DEADLINE_S = 120.0

# Options come as JSON: what is not a plain value is named by the program itself.
_PROGRAM = """
import json, sys
from pathlib import Path
from octavo_runtime.config import EngineConfig
from octavo_runtime.server.serve import ServeOptions, run_replica
options = json.loads(sys.argv[1])
model = Path(options.pop("model"))
names = tuple(options.pop("served_names"))
engine = EngineConfig(model=model, **options.pop("engine"))
run_replica(ServeOptions(
    model=model, served_names=names, engine=engine,
    core_factory="tests.fakes.fake_engine_core:FakeEngineCore", **options,
))
"""


def eventually(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """The first true value of `condition`."""
    deadline = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"timed out: {what}"
        time.sleep(0.02)
    return value


class Replica:
    """Starts at once; `wait_ready` waits. step_s, start_s and failure: see `FakeEngineCore`."""

    def __init__(
        self,
        folder: Path,
        *,
        step_s: float = 0.0,
        start_s: float = 0.0,
        failure: str = "",
        engine: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = folder / f"replica-{self.port}.log"
        settings = {
            "model": str(write_tiny_model(folder / MODEL)),
            "served_names": [MODEL, "tiny-alias"],
            "engine": {"max_model_len": MAX_MODEL_LEN} | (engine or {}),
            "host": "127.0.0.1",
            "port": self.port,
            "max_body_bytes": MAX_BODY_BYTES,
        } | options
        paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "OCTAVO_FAKE_STEP_S": str(step_s),
            "OCTAVO_FAKE_START_S": str(start_s),
            "OCTAVO_FAKE_FAILURE": failure,
        }
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, json.dumps(settings)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=folder,
            )
        self.http = httpx.Client(base_url=self.url, timeout=DEADLINE_S)

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def status(self, path: str) -> int | None:
        """Status of a GET; None when nobody listens (any more)."""
        try:
            return self.http.get(path).status_code
        except httpx.TransportError:
            return None

    def wait_ready(self) -> "Replica":
        def is_ready() -> bool:
            assert self.process.poll() is None, self.log
            return self.status("/ready") == 200

        eventually(is_ready, "the replica is ready")
        return self

    def wait_exit(self) -> int:
        return self.process.wait(DEADLINE_S)

    def metric(self, name: str) -> float:
        """Sum of a metric over its labels; 0 where it does not exist yet."""
        text = self.http.get("/metrics").text
        values = re.findall(rf"^octavo_runtime_{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
        return sum(map(float, values))

    def engine_pid(self) -> int:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        pids = [int(pid) for pid in children.read_text().split()]
        return next(
            pid for pid in pids if b"core_process" in Path(f"/proc/{pid}/cmdline").read_bytes()
        )

    def kill_engine(self) -> None:
        os.kill(self.engine_pid(), signal.SIGKILL)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        self.http.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
