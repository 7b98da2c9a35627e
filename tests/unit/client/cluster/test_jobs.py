"""Outputs of a job are made while its files come down."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from octavo.batch_client import BatchClient
from octavo.cluster.jobs import ClusterJobs
from octavo_protocol.errors import GenerationError

NUM_LINES = 5000
BATCH = {
    "id": "batch_1",
    "endpoint": "/v1/completions",
    "completion_window": "24h",
    "status": "completed",
    "created_at": 0,
    "expires_at": 1,
    "input_file_id": "in",
    "output_file_id": "out",
    "request_counts": {"total": NUM_LINES, "completed": NUM_LINES, "failed": 0},
}


class _Lines(httpx.SyncByteStream):
    """Lines of a file, piece by piece. num_sent: of them."""

    def __init__(self, line: Any) -> None:
        self._line = line
        self.num_sent = 0

    def __iter__(self) -> Iterator[bytes]:
        for i in range(NUM_LINES):
            self.num_sent += 1
            yield json.dumps(self._line(i)).encode() + b"\n"


def _request(i: int) -> dict[str, Any]:
    return {"custom_id": str(i), "body": {"model": "m", "prompt": f"prompt {i}"}}


def _answer(i: int) -> dict[str, Any]:
    choice = {"index": 0, "text": f"text {i}", "finish_reason": "stop"}
    body = {"choices": [choice], "usage": {"prompt_tokens": 1}}
    return {"custom_id": str(i), "response": {"body": body}, "error": None}


def _platform(files: dict[str, _Lines], batch: dict[str, Any]) -> BatchClient:
    def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/batches/batch_1":
            return httpx.Response(200, json=batch)
        return httpx.Response(200, stream=files[request.url.path.split("/")[3]])

    return BatchClient("http://cluster", transport=httpx.MockTransport(handle))


def test_an_output_is_there_before_the_next_lines_are_read() -> None:
    files = {"in": _Lines(_request), "out": _Lines(_answer)}
    jobs = ClusterJobs(_platform(files, BATCH), window="24h")
    outputs = jobs.outputs(jobs.wait("batch_1", False))
    for i in range(100):
        output = next(outputs)
        assert (output.prompt, output.outputs[0].text) == (f"prompt {i}", f"text {i}")
        assert max(each.num_sent for each in files.values()) <= i + 2
    assert sum(1 for _ in outputs) == NUM_LINES - 100


def test_the_first_request_that_failed_is_named() -> None:
    error = {"custom_id": "0", "response": None, "error": {"code": "x", "message": "no room"}}
    files = {"in": _Lines(_request), "errors": _Lines(lambda i: error)}
    counts = {"total": NUM_LINES, "completed": 0, "failed": NUM_LINES}
    batch = BATCH | {"output_file_id": None, "error_file_id": "errors", "request_counts": counts}
    jobs = ClusterJobs(_platform(files, batch), window="24h")
    with pytest.raises(GenerationError, match=r"5000 of 5000 .* request 0: no room"):
        next(jobs.outputs(jobs.wait("batch_1", False)))
