"""The router process from start to stop."""

import asyncio
import gc
import logging
import socket
import time

import uvloop

from octavo_protocol.logs import configure_logging
from octavo_protocol.serving import DrainingServer, open_socket, raise_file_limit
from octavo_router.app import create_app
from octavo_router.options import RouterOptions
from octavo_router.state import RouterState

__all__ = ["RouterOptions", "run_router"]

logger = logging.getLogger(__name__)

_POLL_S = 0.05


def run_router(options: RouterOptions) -> None:
    """Serves until SIGTERM or SIGINT, then drains. Raises `ConfigError` when it cannot listen."""
    configure_logging(options.log_level)
    raise_file_limit()
    sock = open_socket(options)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(options, sock))
    finally:
        sock.close()


async def _run(options: RouterOptions, sock: socket.socket) -> None:
    _spare_collections()
    async with RouterState(options) as state:
        app = create_app(state)
        state.work_on_batches(app)
        server = DrainingServer(app, options)
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        logger.info("listening on %s", _where(sock))
        await server.stop_requested.wait()
        state.is_leaving = True
        leaving_until = time.monotonic() + options.drain_delay_s
        while time.monotonic() < leaving_until and not server.stop_now:
            await asyncio.sleep(_POLL_S)
        state.is_draining = True
        deadline = time.monotonic() + options.drain_timeout_s
        while state.num_open and time.monotonic() < deadline and not server.stop_now:
            await asyncio.sleep(_POLL_S)
        server.should_exit = True
        await serving


def _spare_collections() -> None:
    """Garbage is looked for once in some hundred requests, not at every second one, and not among
    what is loaded by now: a tenth of a request's processor time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _where(sock: socket.socket) -> str:
    address = sock.getsockname()
    return f"port {address[1]}" if isinstance(address, tuple) else str(address)
