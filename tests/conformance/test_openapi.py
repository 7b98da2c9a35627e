"""/openapi.json tells the truth: schemathesis sends what it allows, and what it does not.

Whatever comes: no 5xx, no status, media type or answer that the document does not declare. Bodies
are made by hypothesis from the document, valid and invalid ones; the same in every run.
"""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.applications import Starlette
from tests.fakes.fake_llm import FakeLLM
from tests.fakes.fake_pooling import ANYTHING

from octavo_protocol import operations
from octavo_protocol.serving import DrainingServer, bind
from octavo_router.app import create_app as create_router
from octavo_router.options import RouterOptions
from octavo_router.state import RouterState
from octavo_runtime.engine.messages import PoolingInfo
from octavo_runtime.server.app import create_app
from octavo_runtime.server.metrics import ServerMetrics
from octavo_runtime.server.options import ApiOptions
from octavo_runtime.server.state import ServerState

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

_CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
# The router parses with the replica's types; the pooler is a replica whose model pools.
_EXAMPLES = {"replica": 40, "router": 15, "pooler": 15}
_POOLING = {
    *("/v1/embeddings", "/v2/embed", "/pooling", "/classify", "/invocations"),
    *(*operations.SCORE_PATHS, *operations.RERANK_PATHS),
}


def state(pooling: PoolingInfo | None = None) -> ServerState:
    llm = FakeLLM(pooling=pooling)
    return ServerState(
        llm=llm.as_async_llm(),
        served_names=("fake",),
        max_body_bytes=100_000,
        metrics=ServerMetrics(llm.as_async_llm()),
        is_registered=True,
        options=ApiOptions(dev_mode=True, enable_tokenizer_info_endpoint=True),
    )


@pytest.fixture(scope="module")
def urls() -> Iterator[dict[str, str]]:
    """Replicas over a `FakeLLM` and a router before one, in a thread with its own loop."""
    socks = {name: bind("127.0.0.1", 0) for name in _EXAMPLES}
    addresses = {name: f"http://127.0.0.1:{s.getsockname()[1]}" for name, s in socks.items()}
    started, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        options = RouterOptions(replica_urls=(addresses["replica"],))
        servers = {
            "replica": DrainingServer(create_app(state())),
            "pooler": DrainingServer(create_app(state(ANYTHING))),
        }
        tasks = [
            asyncio.create_task(server.serve(sockets=[socks[name]]))
            for name, server in servers.items()
        ]
        async with RouterState(options) as routing:
            router = DrainingServer(create_router(routing))
            tasks.append(asyncio.create_task(router.serve(sockets=[socks["router"]])))
            while routing.stage != "ready":
                await asyncio.sleep(0.01)
            started.set()
            await asyncio.to_thread(stop.wait)
            for server in (router, *servers.values()):
                server.should_exit = True
            await asyncio.gather(*tasks)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert started.wait(20)
    yield addresses
    stop.set()
    thread.join(20)
    for sock in socks.values():
        sock.close()


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as opened:
        opened.trust_env = False
        yield opened


def document_of(app: Starlette) -> dict[str, Any]:
    assert isinstance(app, FastAPI)
    return app.openapi()


async def documents() -> dict[str, dict[str, Any]]:
    """The document of each server, as it would answer it."""
    options = RouterOptions(replica_urls=("http://127.0.0.1:1",))
    replica = document_of(create_app(state()))
    return {
        "replica": replica,
        "router": document_of(create_router(RouterState(options))),
        "pooler": {**replica, "paths": {path: replica["paths"][path] for path in sorted(_POOLING)}},
    }


DOCUMENTS = asyncio.run(documents())


def test_every_route_of_the_server_is_in_the_document() -> None:
    paths = set(DOCUMENTS["replica"]["paths"])

    assert set(DOCUMENTS["router"]["paths"]) - paths == {
        "/debug/route",
        "/debug/route/{request_id}",
    }
    assert {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"} <= paths
    assert {"/v1/models", "/tokenize", "/detokenize", "/health", "/metrics", "/sleep"} <= paths


@pytest.mark.parametrize("server", ["replica", "router"])
def test_operations_have_ids_of_their_own(server: str) -> None:
    paths = DOCUMENTS[server]["paths"].values()
    ids = [operation["operationId"] for path in paths for operation in path.values()]

    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("status", ["403", "429", "504"])
def test_refusals_of_the_router_are_declared_in_the_form_of_each_api(status: str) -> None:
    paths = DOCUMENTS["router"]["paths"]
    forms = {
        path: paths[path]["post"]["responses"][status]["content"]["application/json"]["schema"]
        for path in ("/v1/chat/completions", "/v1/messages", "/tokenize")
    }

    assert forms == {
        "/v1/chat/completions": {"$ref": "#/components/schemas/Error"},
        "/v1/messages": {"$ref": "#/components/schemas/ErrorEvent"},
        "/tokenize": {"$ref": "#/components/schemas/Error"},
    }
    assert status not in DOCUMENTS["replica"]["paths"]["/v1/messages"]["post"]["responses"]


def _cases() -> Iterator[Any]:
    """Every operation with what it allows; those with a body also with what they do not."""
    for server, document in DOCUMENTS.items():
        for found in schemathesis.openapi.from_dict(document).get_all_operations():
            assert isinstance(found, Ok), found
            operation = found.ok()
            name = f"{server} {operation.label}"
            yield pytest.param(server, operation, GenerationMode.POSITIVE, id=f"{name} allowed")
            if operation.body is not None and len(operation.body):
                yield pytest.param(server, operation, GenerationMode.NEGATIVE, id=f"{name} wrong")


@pytest.mark.parametrize(("server", "operation", "mode"), list(_cases()))
def test_no_answer_is_a_server_error_or_undeclared(
    server: str,
    operation: Any,
    mode: GenerationMode,
    urls: dict[str, str],
    session: requests.Session,
) -> None:
    is_other = operation.path in _POOLING - {"/invocations"} and server != "pooler"

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=5 if is_other else _EXAMPLES[server],
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def check(case: Any) -> None:
        case.call_and_validate(base_url=urls[server], session=session, checks=_CHECKS, timeout=30)

    check()
