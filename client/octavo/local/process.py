"""One child process: started in its own session, logged to a file, gone when its parent is gone.

Its own session keeps the terminal's Ctrl-C away from it: the supervisor decides who stops when.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_TAIL_BYTES = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """What to run. env: on top of the inherited environment; None removes a variable.

    ready_url: answers 200 once the process can take work; None = ready when it runs.
    stop_timeout_s: how long it may take to end after SIGTERM.
    """

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str | None] = field(default_factory=dict)
    ready_url: str | None = None
    stop_timeout_s: float = 10.0


class Child:
    """A process made from a spec; it can be started again after it ended.

    Start it from a thread that lives as long as the child should: on Linux the kernel kills the
    child when that thread ends, however it ends.
    """

    def __init__(self, spec: ProcessSpec, log_path: Path) -> None:
        self.spec = spec
        self.log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def exit_code(self) -> int | None:
        """Exit code of the last run; None while it runs and before the first start."""
        return self._process.poll() if self._process else None

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Starts the process. Its output is appended to the log."""
        environment = dict(os.environ)
        for name, value in self.spec.env.items():
            environment.pop(name, None)
            if value is not None:
                environment[name] = value
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self.spec.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
                preexec_fn=_die_with_parent(os.getpid()),
            )

    def terminate(self) -> None:
        """Asks the process to end (SIGTERM)."""
        if self.is_running():
            assert self._process is not None
            self._process.terminate()

    def wait(self, timeout_s: float) -> bool:
        """Whether the process ended within `timeout_s`."""
        if self._process is None:
            return True
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """Ends the process and whatever of its session is left, at once. Safe to repeat."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody is left
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def log_tail(self, max_lines: int = 15) -> str:
        """The last lines of the log, for error messages."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
                text = log.read().decode(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-max_lines:])


def _die_with_parent(parent: int) -> Callable[[], None] | None:
    """A hook for the child's side of the fork: the kernel kills it when `parent` dies (Linux)."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # loaded here: after the fork it might deadlock

    def hook() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return hook
