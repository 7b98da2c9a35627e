"""/healthz, /readyz and /metrics of the operator process."""

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from octavo_protocol.errors import ConfigError

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Health:
    """What the process says of itself; its parts are set as the process goes on.

    alive, ready: return what is wrong, or an empty string. measure: called before metrics are
    rendered.
    """

    def __init__(self, render_metrics: Callable[[], bytes]) -> None:
        self._render_metrics = render_metrics
        self.alive: Callable[[], str] = lambda: ""
        self.ready: Callable[[], str] = lambda: "starting"
        self.measure: Callable[[], None] = lambda: None

    async def healthz(self, request: web.Request) -> web.Response:
        return _answer(self.alive())

    async def readyz(self, request: web.Request) -> web.Response:
        return _answer(self.ready())

    async def metrics(self, request: web.Request) -> web.Response:
        self.measure()
        return web.Response(body=self._render_metrics(), headers={"Content-Type": _METRICS_TYPE})

    @asynccontextmanager
    async def serve(self, port: int) -> AsyncIterator[int]:
        """Listens on all addresses; gives the port. Raises `ConfigError` where it is taken."""
        app = web.Application()
        app.router.add_get("/healthz", self.healthz)
        app.router.add_get("/readyz", self.readyz)
        app.router.add_get("/metrics", self.metrics)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            sock = _listen(port)
            await web.SockSite(runner, sock).start()
            yield sock.getsockname()[1]
        finally:
            await runner.cleanup()


def _listen(port: int) -> socket.socket:
    """On IPv4 and, where the machine has it, IPv6."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on port {port}: {error.strerror}; choose another with --health-port"
        ) from error


def _answer(problem: str) -> web.Response:
    return web.Response(text=(problem or "ok") + "\n", status=503 if problem else 200)
