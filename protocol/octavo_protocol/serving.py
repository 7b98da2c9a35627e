"""How the router and every replica listen and stop. Needs uvicorn, which both bring."""

import asyncio
import errno
import resource
import socket
import ssl
import stat
from contextlib import suppress
from pathlib import Path
from types import FrameType

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from octavo_protocol.asgi import App, Departure
from octavo_protocol.errors import ConfigError
from octavo_protocol.http_options import HttpOptions

_MAX_HEADER_BYTES = 256 * 1024


class _Http(HttpToolsProtocol):
    """HTTP/1.1 that tells requests of their client's departure, and ends a connection whose request
    line and headers go on and on: nobody has been asked for a key yet, and all of it would be kept.
    """

    _is_in_headers = True
    _num_header_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._departure = Departure()
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._departure.come()

    def on_message_begin(self) -> None:
        self._is_in_headers = True
        self._num_header_bytes = 0
        super().on_message_begin()
        self.scope["extensions"] = {Departure.NAME: self._departure}  # type: ignore[dict-item]

    def on_headers_complete(self) -> None:
        self._is_in_headers = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_in_headers:
            self._num_header_bytes += len(data)
            if self._num_header_bytes > _MAX_HEADER_BYTES and not self.transport.is_closing():
                self.send_400_response("The request's headers are too large.")


class DrainingServer(uvicorn.Server):
    """A uvicorn server whose SIGTERM and SIGINT ask for a stop instead of stopping.

    stop_requested: the first signal came. stop_now: a second one did. Raises `ConfigError` for TLS
    files that cannot be used.
    """

    def __init__(self, app: App, options: HttpOptions | None = None) -> None:
        options = options or HttpOptions()
        config = uvicorn.Config(
            app,
            loop="none",
            http=_Http,
            lifespan="off",
            access_log=False,
            proxy_headers=bool(options.middleware),  # nothing else asks who the client is
            log_config=None,
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=5,
            ssl_keyfile=options.ssl_keyfile,
            ssl_certfile=options.ssl_certfile,
            ssl_ca_certs=str(options.ssl_ca_certs) if options.ssl_ca_certs else None,
            ssl_cert_reqs=options.ssl_cert_reqs,
            ssl_ciphers=options.ssl_ciphers or "TLSv1",
        )
        try:
            config.load()
        except (OSError, ValueError) as error:  # of the ssl module too
            raise ConfigError(f"TLS cannot be set up: {error}") from error
        super().__init__(config)
        self.stop_requested = asyncio.Event()
        self.stop_now = False
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.stop_now = self.stop_requested.is_set()
        self._loop.call_soon_threadsafe(self.stop_requested.set)


def raise_file_limit() -> None:
    """Lets this process open as many connections as its user may: the usual 1,024 are half as many
    streams for a router, and its children inherit it.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # a system may not let a process have what it names
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def bind(host: str, port: int) -> socket.socket:
    """A listening TCP socket; `::` is every address that the machine has, of IPv4 and IPv6.

    Raises `ConfigError` that says what is in the way.
    """
    if host == "::" and not socket.has_dualstack_ipv6():
        host = "0.0.0.0"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if host == "::":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((host, port))
        sock.listen(2048)
    except OSError as error:
        sock.close()
        flag = "--port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another with {flag}"
        ) from error
    return sock


def bind_unix(path: Path) -> socket.socket:
    """A listening Unix socket; one that a dead server left behind is replaced.

    Raises `ConfigError` that says what is in the way.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode) and not _is_served(path):
            path.unlink()
        sock.bind(str(path))
        sock.listen(2048)
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"cannot listen on {path}: {error.strerror or error}; choose another path with --uds"
        ) from error
    return sock


def open_socket(options: HttpOptions) -> socket.socket:
    """The listening socket that `options` ask for. Raises `ConfigError`, also for TLS files that
    cannot be used: before anything slow is started.
    """
    if options.ssl_certfile is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(options.ssl_certfile, options.ssl_keyfile)
        except OSError as error:
            raise ConfigError(
                f"cannot use the TLS certificate {options.ssl_certfile}: {error}"
            ) from error
    elif options.ssl_keyfile is not None:
        raise ConfigError("--ssl-keyfile needs --ssl-certfile")
    return bind_unix(options.uds) if options.uds else bind(options.host, options.port)


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
