"""How the router and every replica listen and stop. Needs uvicorn, which both bring."""

import asyncio
import socket
from types import FrameType

import uvicorn

from octavo_protocol.asgi import App
from octavo_protocol.errors import ConfigError


class DrainingServer(uvicorn.Server):
    """A uvicorn server whose SIGTERM and SIGINT ask for a stop instead of stopping.

    stop_requested: the first signal came. stop_now: a second one did.
    """

    def __init__(self, app: App) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="none",
                http="httptools",
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=5,
            )
        )
        self.stop_requested = asyncio.Event()
        self.stop_now = False
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.stop_now = self.stop_requested.is_set()
        self._loop.call_soon_threadsafe(self.stop_requested.set)


def bind(host: str, port: int) -> socket.socket:
    """A listening TCP socket. Raises `ConfigError` that says what is in the way."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(2048)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another with --port"
        ) from error
    return sock
