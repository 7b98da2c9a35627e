"""TCP ports of this machine: free ones, and who holds a taken one."""

import contextlib
import os
import socket

from octavo_protocol.errors import ConfigError


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on right now. It is not reserved: take it soon."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """`count` different free ports."""
    with contextlib.ExitStack() as stack:  # all held at once, so that none is given twice
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((host, 0))
        return [probe.getsockname()[1] for probe in probes]


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen on `port` now. Raises `ConfigError` for an unusable host."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise ConfigError(f"cannot listen on host {host!r}: {error.strerror}") from error
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except PermissionError as error:
            raise ConfigError(
                f"this user may not listen on port {port}: choose one above 1023, such as "
                "--port 8000"
            ) from error
        except OSError:
            return False
    return True


def holder(port: int) -> str | None:
    """Who listens on `port`, as `name (pid 123: command line)`; None where it cannot be seen."""
    import psutil

    try:
        connections = psutil.net_connections("tcp")
    except psutil.Error:
        return None
    for connection in connections:
        is_listener = connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        if is_listener and connection.pid:
            return _describe(connection.pid)
    return None


def require_free(host: str, port: int) -> None:
    """Raises `ConfigError` with the holder's name and what to do where `port` is taken."""
    if is_free(host, port):
        return
    who = holder(port) or "another process"
    raise ConfigError(
        f"port {port} is taken by {who}. Stop it, or choose another port: --port {port + 1} "
        f"(`make run PORT={port + 1}`)"
    )


def _describe(pid: int) -> str:
    import psutil

    try:
        process = psutil.Process(pid)
        command = " ".join(os.path.basename(part) for part in process.cmdline()[:4])
        return f"{process.name()} (pid {pid}: {command})"
    except psutil.Error:
        return f"the process {pid}"
