"""`octavo run-batch`: every line gets its answer, in order; output is all or nothing."""

import asyncio
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route
from tests.fakes.fake_llm import FakeLLM
from tests.fakes.fake_pooling import EMBEDDER

from octavo.run_batch import answer_lines, batch_urls
from octavo.run_batch_files import read_lines, writing
from octavo_protocol.batch_lines import BatchRequest, parse_line
from octavo_protocol.errors import ConfigError, ValidationError, error_body
from octavo_runtime.server.app import create_app
from octavo_runtime.server.metrics import ServerMetrics
from octavo_runtime.server.state import ServerState

URL = "/v1/completions"
GOOD = {"custom_id": "a", "method": "POST", "url": URL, "body": {"prompt": "x"}}


def test_a_line_is_a_request() -> None:
    assert parse_line(json.dumps(GOOD).encode(), [URL]) == BatchRequest("a", URL, {"prompt": "x"})


@pytest.mark.parametrize(
    ("change", "parameter", "message"),
    [
        ({"custom_id": 3}, "custom_id", "custom_id must be a string"),
        ({"method": "GET"}, "method", "method must be POST, not 'GET'"),
        ({"url": "/v1/x"}, "url", "url '/v1/x' cannot be used in a batch; these can: " + URL),
        ({"body": "x"}, "body", "body must be a JSON object"),
        ({"body": {"stream": True}}, "stream", "an answer in a batch cannot be streamed"),
        (
            {"body": {"encoding_format": "bytes"}},
            "encoding_format",
            "an answer in a batch is JSON: write float or base64",
        ),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], parameter: str, message: str) -> None:
    with pytest.raises(ValidationError) as raised:
        parse_line(json.dumps(GOOD | change).encode(), [URL])
    assert (raised.value.parameter, raised.value.message) == (parameter, message)


@pytest.mark.parametrize("name", GOOD)
def test_a_missing_field_is_named(name: str) -> None:
    line = {key: value for key, value in GOOD.items() if key != name}
    with pytest.raises(ValidationError, match=f"{name} is missing"):
        parse_line(json.dumps(line).encode(), [URL])


@pytest.mark.parametrize("line", [b"", b"junk", b"[1]", b"3", b"\xff", b"[" * 100_000])
def test_what_is_no_json_object_is_refused(line: bytes) -> None:
    with pytest.raises(ValidationError, match="the line is not"):
        parse_line(line, [URL])


class Backend:
    """An application whose later requests answer sooner; counts what is open at once."""

    def __init__(self, num_requests: int) -> None:
        self.most_open = self._num_open = 0
        self._num_requests = num_requests
        self.app = Starlette(
            routes=[
                Route(URL, self.complete, methods=["POST"]),
                Route("/v1/responses/{id}", self.complete, methods=["POST"]),
                Route("/v1/models", self.complete, methods=["GET"]),
                Route("/v1/plain", self.plain, methods=["POST"]),
            ]
        )

    async def complete(self, request: Request) -> JSONResponse:
        body = await request.json()
        self._num_open += 1
        self.most_open = max(self.most_open, self._num_open)
        for _ in range(self._num_requests - body["i"]):
            await asyncio.sleep(0)
        self._num_open -= 1
        if body.get("fail"):
            return JSONResponse(error_body("no", error_type="invalid_request_error"), 400)
        return JSONResponse({"i": body["i"]}, headers={"x-request-id": f"r{body['i']}"})

    async def plain(self, request: Request) -> PlainTextResponse:
        return PlainTextResponse("oops", 500)


def lines(*bodies: dict[str, Any]) -> list[tuple[int, bytes]]:
    return [
        (i, json.dumps(GOOD | {"custom_id": str(i), "body": body}).encode())
        for i, body in enumerate(bodies, start=1)
    ]


async def test_answers_come_in_the_order_of_the_lines() -> None:
    backend = Backend(20)
    given = lines(*({"i": i} for i in range(20)))
    done: list[int] = []
    output = await answer_lines(backend.app, given, max_in_flight=4, progress=done.append)
    answers = [json.loads(line) for line in output]
    assert [each["response"]["body"]["i"] for each in answers] == list(range(20))
    assert [each["custom_id"] for each in answers] == [str(i) for i in range(1, 21)]
    assert answers[3]["response"]["request_id"] == "r3"
    assert all(each["error"] is None for each in answers)
    assert len({each["id"] for each in answers}) == 20
    assert done == [1] * 20
    assert backend.most_open == 4


async def test_a_bad_line_disturbs_no_other() -> None:
    given = [*lines({"i": 0}, {"i": 1, "fail": True}), (7, b'{"custom_id": "x"}'), (8, b"junk")]
    output = await answer_lines(Backend(2).app, given, max_in_flight=9, progress=lambda _: None)
    answers = [json.loads(line) for line in output]
    assert [each["response"]["status_code"] for each in answers] == [200, 400, 400, 400]
    assert [each["custom_id"] for each in answers] == ["1", "2", "x", None]
    assert answers[1]["error"]["message"] == "no"
    assert answers[2]["error"]["message"] == "line 7: method is missing"
    assert answers[3]["response"]["body"]["error"]["message"].startswith("line 8: the line is not")


async def test_an_answer_without_json_is_an_error() -> None:
    line = json.dumps(GOOD | {"url": "/v1/plain"}).encode()
    (output,) = await answer_lines(
        Backend(1).app, [(1, line)], max_in_flight=1, progress=lambda _: None
    )
    answer = json.loads(output)
    assert (answer["response"]["status_code"], answer["error"]["message"]) == (500, "oops")


def test_only_routes_that_generate_can_be_asked() -> None:
    assert batch_urls(Backend(0).app) == [URL, "/v1/plain"]


async def test_lines_of_a_pooling_model_get_what_its_routes_answer() -> None:
    llm = FakeLLM(pooling=EMBEDDER)
    state = ServerState(
        llm=llm.as_async_llm(),
        served_names=("embedder",),
        max_body_bytes=1000,
        metrics=ServerMetrics(llm.as_async_llm()),
        is_registered=True,
    )
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/v1/embeddings", {"input": ["a", "b"]}),
        ("/v1/score", {"queries": "a", "documents": ["b", "c"]}),
        ("/v2/rerank", {"query": "a", "documents": ["b", "c"]}),
        ("/classify", {"input": "a"}),
    ]
    lines = [
        json.dumps({"custom_id": url, "method": "POST", "url": url, "body": body}).encode()
        for url, body in bodies
    ]

    answers = await answer_lines(
        create_app(state), list(enumerate(lines, 1)), max_in_flight=2, progress=lambda _: None
    )

    embedded, scored, ranked, refused = (json.loads(line)["response"] for line in answers)
    assert [item["index"] for item in embedded["body"]["data"]] == [0, 1]
    assert len(scored["body"]["data"]) == len(ranked["body"]["results"]) == 2
    assert (refused["status_code"], "cannot classify" in refused["body"]["error"]["message"]) == (
        404,
        True,
    )


def test_empty_lines_are_skipped_and_numbers_stay(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"a\r\n\n  \nb\n")
    assert read_lines(str(path)) == [(1, b"a\r"), (4, b"b")]


def test_input_that_is_not_there_or_too_large_is_named(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    with pytest.raises(ConfigError, match="cannot read"):
        read_lines(str(path))
    path.write_bytes(b"a" * 9)
    with pytest.raises(ConfigError, match="larger than"):
        read_lines(str(path), max_bytes=8)


def test_output_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    with writing(str(target)) as file:
        file.write(b"line\n")
        assert not target.exists()
    assert target.read_bytes() == b"line\n"
    assert list(tmp_path.iterdir()) == [target]


def test_output_of_a_failure_does_not_appear(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    target.write_bytes(b"old")

    def work() -> None:
        with writing(str(target)) as file:
            file.write(b"half")
            raise RuntimeError("the engine died")

    with pytest.raises(RuntimeError, match="the engine died"):
        work()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_that_is_not_there_is_told_before_any_work(tmp_path: Path) -> None:
    target = str(tmp_path / "no" / "out.jsonl")
    with pytest.raises(ConfigError, match="cannot write in"), writing(target):
        pytest.fail("began to work")


def test_a_folder_is_no_output_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="it is a folder"), writing(str(tmp_path)):
        pass


class Store(http.server.BaseHTTPRequestHandler):
    """Keeps what is PUT; gives a batch of two lines for /in, and 404 for anything else."""

    kept: dict[str, bytes]

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/in" else 404)
        self.end_headers()
        self.wfile.write(b"one\ntwo\n")

    def do_PUT(self) -> None:
        self.kept[self.path] = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(403 if self.path == "/denied" else 200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.fixture
def store() -> Iterator[tuple[str, dict[str, bytes]]]:
    kept: dict[str, bytes] = {}
    handler = type("OneStore", (Store,), {"kept": kept})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", kept
        server.shutdown()
        thread.join()


def test_input_and_output_may_be_urls(store: tuple[str, dict[str, bytes]]) -> None:
    url, kept = store
    assert read_lines(f"{url}/in") == [(1, b"one"), (2, b"two")]
    with writing(f"{url}/out") as file:
        file.write(b"answers")
    assert kept == {"/out": b"answers"}


@pytest.mark.parametrize("bad", ["/missing", "/in"])
def test_urls_that_fail_are_named(store: tuple[str, dict[str, bytes]], bad: str) -> None:
    with pytest.raises(ConfigError, match=bad):
        read_lines(store[0] + bad, max_bytes=3)


def test_a_refused_upload_is_an_error(store: tuple[str, dict[str, bytes]]) -> None:
    with pytest.raises(ConfigError, match="it answered 403"), writing(f"{store[0]}/denied") as file:
        file.write(b"x")


def test_nobody_at_the_url_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"cannot read http://127\.0\.0\.1:1/in"):
        read_lines("http://127.0.0.1:1/in")
