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
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tests.fakes.fake_llm import FakeLLM

from octavo_protocol.serving import DrainingServer, bind
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
_EXAMPLES = 60


def state() -> ServerState:
    llm = FakeLLM()
    return ServerState(
        llm=llm.as_async_llm(),
        served_names=("fake",),
        max_body_bytes=100_000,
        metrics=ServerMetrics(llm.as_async_llm()),
        is_registered=True,
        options=ApiOptions(dev_mode=True, enable_tokenizer_info_endpoint=True),
    )


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A replica over a `FakeLLM`, in a thread with an event loop of its own."""
    sock = bind("127.0.0.1", 0)
    started = threading.Event()
    servers: list[DrainingServer] = []

    async def serve() -> None:
        servers.append(DrainingServer(create_app(state())))
        started.set()
        await servers[0].serve(sockets=[sock])

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    started.wait(10)
    yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    servers[0].should_exit = True
    thread.join(10)
    sock.close()


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as opened:
        opened.trust_env = False
        yield opened


async def document() -> dict[str, Any]:
    return create_app(state()).openapi()


DOCUMENT = asyncio.run(document())
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS = [operation.ok() for operation in SCHEMA.get_all_operations()]


def test_every_route_of_the_server_is_in_the_document() -> None:
    paths = set(DOCUMENT["paths"])

    assert {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"} <= paths
    assert {"/v1/models", "/tokenize", "/detokenize", "/health", "/metrics", "/sleep"} <= paths


def _cases() -> Iterator[Any]:
    """Every operation with what it allows; those with a body also with what they do not."""
    for operation in OPERATIONS:
        yield pytest.param(operation, GenerationMode.POSITIVE, id=f"{operation.label}-allowed")
        if operation.body is not None and len(operation.body):
            yield pytest.param(operation, GenerationMode.NEGATIVE, id=f"{operation.label}-wrong")


@pytest.mark.parametrize(("operation", "mode"), list(_cases()))
def test_no_answer_is_a_server_error_or_undeclared(
    operation: Any, mode: GenerationMode, url: str, session: requests.Session
) -> None:
    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=_EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def check(case: Any) -> None:
        case.call_and_validate(base_url=url, session=session, checks=_CHECKS, timeout=30)

    check()
