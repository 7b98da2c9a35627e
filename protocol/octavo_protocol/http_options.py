"""How a server listens, whom it lets in, and what it tells about itself. Names are vLLM's."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class HttpOptions:
    """Settings of one HTTP server, whatever its routes are.

    uds: path of a Unix socket to listen on instead of host and port. root_path: prefix under which
    a proxy in front publishes the server. api_key: any of these opens the server; none: everybody
    may use it. allowed_origins and the three beside it: cross-origin requests (CORS), closed unless
    origins are given. middleware: import paths (`module.name`) of ASGI middleware classes or of
    async functions `(request, call_next)`, the first one outermost. ssl_cert_reqs: 0 = clients need
    no certificate, 1 = it is checked if they send one, 2 = they must. ssl_ciphers: OpenSSL's list.
    otlp_traces_endpoint: where traces go (`octavo_protocol/tracing.py`).
    disable_access_log_for_endpoints: paths whose requests are not logged.
    """

    host: str = "0.0.0.0"
    port: int = 8000
    uds: Path | None = None
    root_path: str = ""
    api_key: tuple[str, ...] = field(default=(), repr=False)
    allowed_origins: tuple[str, ...] = ()
    allowed_methods: tuple[str, ...] = ("*",)
    allowed_headers: tuple[str, ...] = ("*",)
    allow_credentials: bool = False
    middleware: tuple[str, ...] = ()
    ssl_keyfile: Path | None = None
    ssl_certfile: Path | None = None
    ssl_ca_certs: Path | None = None
    ssl_cert_reqs: int = 0
    ssl_ciphers: str | None = None
    otlp_traces_endpoint: str | None = None
    disable_fastapi_docs: bool = False
    disable_uvicorn_access_log: bool = False
    disable_access_log_for_endpoints: tuple[str, ...] = ()
