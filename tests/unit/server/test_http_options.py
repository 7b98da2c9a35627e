"""Who may use a server, and how it can be reached: keys, CORS, TLS, Unix sockets, middleware."""

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from starlette.requests import Request
from starlette.responses import Response
from tests.fakes.fake_llm import FakeLLM
from tests.unit.server.conftest import make_state, running_replica

from octavo_protocol.asgi import App, Receive, Scope, Send
from octavo_protocol.errors import ConfigError
from octavo_protocol.http_app import QUIET
from octavo_protocol.http_options import HttpOptions
from octavo_protocol.serving import DrainingServer, bind, open_socket
from octavo_runtime.server.app import create_app
from octavo_runtime.server.options import ApiOptions
from octavo_runtime.server.serve import bracketed

_TEXT = {"prompt": "ab", "max_tokens": 1}
_KEYED = HttpOptions(api_key=("first-key", "second-key"), disable_uvicorn_access_log=True)


@asynccontextmanager
async def _serving(options: HttpOptions) -> AsyncIterator[None]:
    """A replica that listens as `options` say."""
    sock = open_socket(options)
    server = DrainingServer(create_app(make_state(FakeLLM()), options), options)
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        yield
    finally:
        server.should_exit = True
        await serving
        sock.close()


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/completions", "/tokenize", "/octavo/tokenizer", "/load", "/nothing"]
)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Bearer"},
        {"authorization": "first-key"},
        {"authorization": "Basic first-key"},
        {"x-api-key": "wrong"},
    ],
)
async def test_without_a_valid_key_there_is_a_401_in_openais_shape(
    path: str, headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with running_replica(http_options=_KEYED) as replica:
        answer = await replica.http.get(path, headers=headers)

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["x-request-id"]
    assert answer.json() == {
        "error": {
            "message": "this server needs an API key: send it as `Authorization: Bearer KEY`",
            "type": "authentication_error",
            "param": None,
            "code": "invalid_api_key",
        }
    }
    assert "first-key" not in caplog.text
    assert "wrong" not in caplog.text


async def test_every_key_opens_and_probes_need_none() -> None:
    async with running_replica(http_options=_KEYED) as replica:
        for headers in (
            {"authorization": "Bearer first-key"},
            {"authorization": "bearer second-key"},
            {"x-api-key": "second-key"},
        ):
            assert (await replica.http.get("/v1/models", headers=headers)).status_code == 200
        for path in ("/health", "/ping", "/ready", "/version", "/metrics", "/openapi.json"):
            assert (await replica.http.get(path)).status_code == 200, path
        with pytest.raises(openai.AuthenticationError):
            await replica.client.models.list()
        good = replica.client.with_options(api_key="second-key")
        assert [model.id async for model in good.models.list()] == ["first", "second/alias"]


def test_keys_are_not_in_the_options_text() -> None:
    assert "first-key" not in repr(_KEYED)


async def test_cross_origin_requests_are_refused_unless_their_origin_is_given() -> None:
    preflight = {"origin": "https://a.example", "access-control-request-method": "POST"}
    opened = HttpOptions(
        allowed_origins=("https://a.example",),
        allowed_methods=("POST",),
        allow_credentials=True,
        api_key=("key",),
        disable_uvicorn_access_log=True,
    )
    async with running_replica() as closed, running_replica(http_options=opened) as replica:
        refused = await closed.http.options("/v1/completions", headers=preflight)
        granted = await replica.http.options("/v1/completions", headers=preflight)
        other = await replica.http.options(
            "/v1/completions", headers=preflight | {"origin": "https://b.example"}
        )
        simple = await replica.http.get("/health", headers={"origin": "https://a.example"})

    assert "access-control-allow-origin" not in refused.headers
    assert granted.status_code == 200  # a preflight carries no key
    assert granted.headers["access-control-allow-origin"] == "https://a.example"
    assert granted.headers["access-control-allow-credentials"] == "true"
    assert other.status_code == 400
    assert simple.headers["access-control-allow-origin"] == "https://a.example"


async def test_a_web_page_can_read_why_it_was_refused() -> None:
    page = {"origin": "https://a.example"}
    key = {"authorization": "Bearer key"}
    options = HttpOptions(
        allowed_origins=("https://a.example",), api_key=("key",), disable_uvicorn_access_log=True
    )
    async with running_replica(http_options=options) as replica:
        answers = [
            await replica.http.get("/v1/models", headers=page),
            await replica.http.get("/nothing", headers=page | key),
            await replica.http.post("/v1/completions", content=b"{", headers=page | key),
        ]

    assert [answer.status_code for answer in answers] == [401, 404, 400]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        assert answer.headers["x-request-id"]
        assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "endless", [b"GET /" + b"a" * 2**20, b"GET / HTTP/1.1\r\n" + b"x-a: b\r\n" * 2**17]
)
async def test_headers_without_an_end_are_not_kept(endless: bytes) -> None:
    async with running_replica() as replica:
        host, port = replica.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(endless)
        try:
            answer = await reader.read()
        except ConnectionResetError:  # it was closed on what was still being sent
            answer = b"HTTP/1.1 400"
        writer.close()
        large = await replica.http.get("/version", headers={"x-large": "a" * 100_000})

    assert answer.startswith(b"HTTP/1.1 400")
    assert large.status_code == 200


async def test_tls_serves_https_and_only_https(certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    options = HttpOptions(
        host="127.0.0.1",
        port=0,
        ssl_certfile=cert,
        ssl_keyfile=key,
        disable_uvicorn_access_log=True,
    )
    sock = open_socket(options)
    server = DrainingServer(create_app(make_state(FakeLLM()), options), options)
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    port = sock.getsockname()[1]
    trusted = ssl.create_default_context(cafile=str(cert))
    try:
        async with (
            openai.DefaultAsyncHttpxClient(verify=trusted, trust_env=False) as inner,
            openai.AsyncOpenAI(
                base_url=f"https://localhost:{port}/v1",
                api_key="none",
                max_retries=0,
                http_client=inner,
            ) as client,
        ):
            answer = await client.completions.create(model="first", prompt="ab", max_tokens=2)
        async with httpx.AsyncClient(verify=False, trust_env=False) as plain:
            with pytest.raises(httpx.TransportError):
                await plain.get(f"http://localhost:{port}/health")
    finally:
        server.should_exit = True
        await serving
        sock.close()

    assert answer.choices[0].text == "ab"


def test_tls_files_that_cannot_be_used_are_named(
    tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    with pytest.raises(ConfigError, match=r"missing\.pem"):
        open_socket(HttpOptions(port=0, ssl_certfile=tmp_path / "missing.pem"))
    with pytest.raises(ConfigError, match="needs --ssl-certfile"):
        open_socket(HttpOptions(port=0, ssl_keyfile=certificate[1]))


async def test_a_unix_socket_serves_and_replaces_one_that_died(tmp_path: Path) -> None:
    path = tmp_path / "octavo.sock"
    open_socket(HttpOptions(uds=path)).close()  # as a killed server leaves it
    options = HttpOptions(uds=path, disable_uvicorn_access_log=True)
    async with _serving(options):
        transport = httpx.AsyncHTTPTransport(uds=str(path), verify=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://replica") as http:
            answer = await http.post("/v1/completions", json=_TEXT)
        with pytest.raises(ConfigError, match="choose another path with --uds"):
            open_socket(options)

    assert answer.status_code == 200


class Stamp:
    """Middleware as a class."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def stamped(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-stamp", b"class")]
            await send(message)

        await self.app(scope, receive, stamped)


async def refuse_teapots(
    request: Request, call_next: Callable[[Request], Awaitable[Response]]
) -> Response:
    """Middleware as a function."""
    if "teapot" in request.headers:
        return Response(status_code=418)
    return await call_next(request)


async def test_middleware_is_imported_by_its_path() -> None:
    options = HttpOptions(
        middleware=(f"{__name__}.Stamp", f"{__name__}.refuse_teapots"),
        disable_uvicorn_access_log=True,
    )
    async with running_replica(http_options=options) as replica:
        good = await replica.http.post("/v1/completions", json=_TEXT)
        teapot = await replica.http.get("/health", headers={"teapot": "1"})

    assert (good.status_code, good.headers["x-stamp"]) == (200, "class")
    assert (teapot.status_code, teapot.headers["x-stamp"]) == (418, "class")


@pytest.mark.parametrize("path", ["nothing.here", "json.nothing", "plain", "math.pi"])
async def test_middleware_that_cannot_be_used_is_named(path: str) -> None:
    with pytest.raises(ConfigError, match=path):
        create_app(make_state(FakeLLM()), HttpOptions(middleware=(path,)))


async def test_the_access_log_has_a_line_per_request_but_for_chosen_paths(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="octavo.access")
    options = HttpOptions(disable_access_log_for_endpoints=("/health",))
    async with running_replica(http_options=options) as replica:
        await replica.http.get("/health")
        await replica.http.get("/version?key=secret")
        await replica.http.get("/nothing")
    async with running_replica(http_options=QUIET) as replica:
        await replica.http.get("/version")

    lines = [r.getMessage() for r in caplog.records if r.name == "octavo.access"]
    assert [line.rsplit(" ", 2)[0] for line in lines] == ["GET /version 200", "GET /nothing 404"]


async def test_a_server_behind_a_prefix_says_so_in_its_document() -> None:
    options = HttpOptions(root_path="/llm", api_key=("key",), disable_uvicorn_access_log=True)
    async with running_replica(http_options=options) as replica:
        document = (await replica.http.get("/openapi.json")).json()
        stripped = await replica.http.get("/health")
        whole = await replica.http.get("/llm/health")

    assert document["servers"] == [{"url": "/llm"}]
    assert (stripped.status_code, whole.status_code) == (200, 200)


async def test_documents_can_be_switched_off() -> None:
    hidden = HttpOptions(disable_fastapi_docs=True, disable_uvicorn_access_log=True)
    async with running_replica() as shown, running_replica(http_options=hidden) as replica:
        for path in ("/docs", "/redoc", "/openapi.json"):
            assert (await shown.http.get(path)).status_code == 200
            assert (await replica.http.get(path)).status_code == 404


async def test_the_document_declares_every_route_and_only_refers_to_schemas_it_has() -> None:
    options = ApiOptions(dev_mode=True, enable_tokenizer_info_endpoint=True)
    async with running_replica(options) as replica:
        answer = await replica.http.get("/openapi.json")
        routes = [getattr(route, "path", "") for route in create_app(replica.state).routes]

    document = answer.json()
    hidden = {"/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc"}
    assert {path.replace(":path", "") for path in routes} - hidden == set(document["paths"])
    names = document["components"]["schemas"].keys()
    references = {part.split('"')[0] for part in answer.text.split("#/components/schemas/")[1:]}
    assert references <= names
    body = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]
    assert body == {
        "application/json": {"schema": {"$ref": "#/components/schemas/ChatCompletionRequest"}}
    }


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "x"])
@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize", "/invocations"])
async def test_json_routes_take_no_other_media_type(path: str, media_type: str) -> None:
    async with running_replica() as replica:
        headers = {"content-type": media_type}
        refused = await replica.http.post(path, content=b'{"prompt": "ab"}', headers=headers)
        headers = {"content-type": "Application/JSON; charset=utf-8"}
        taken = await replica.http.post(path, content=b'{"prompt": "ab"}', headers=headers)

    assert refused.status_code == 400
    assert "Content-Type: application/json" in refused.json()["error"]["message"]
    assert taken.status_code == 200


def test_an_address_that_cannot_be_had_says_which_flag_to_change() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match="choose another with --port"):
            bind("127.0.0.1", port)
    with pytest.raises(ConfigError, match="choose another with --host"):
        bind("192.0.2.1", 0)  # of no machine (RFC 5737)


def test_every_address_is_of_both_families() -> None:
    with bind("::", 0) as listening:
        port = listening.getsockname()[1]
        hosts = ["127.0.0.1", "::1"] if socket.has_dualstack_ipv6() else ["127.0.0.1"]
        for host in hosts:
            socket.create_connection((host, port), timeout=5).close()


def test_a_machine_without_ipv6_listens_on_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    with bind("::", 0) as listening:
        assert listening.family is socket.AF_INET


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("http://fd00::1:8000", "http://[fd00::1]:8000"),
        ("http://[fd00::1]:8000", "http://[fd00::1]:8000"),
        ("http://10.0.0.1:8000", "http://10.0.0.1:8000"),
        ("https://replica.example.com", "https://replica.example.com"),
    ],
)
def test_an_ipv6_address_as_kubernetes_gives_it_gets_its_brackets(written: str, meant: str) -> None:
    assert bracketed(written) == meant
