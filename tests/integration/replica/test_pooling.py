"""A replica of a real (tiny) encoder, in a process of its own: load, bad input, leaving, death."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from tests.fakes.tiny_encoder import WORDS, write_tiny_encoder

from octavo.local.ports import free_port

pytestmark = [pytest.mark.integration]

START_S = 90.0
RNG = np.random.default_rng(3)
MIB = 2**20


class Server:
    """`octavo serve` of a model folder. http: asks it."""

    def __init__(self, model: Path, folder: Path) -> None:
        port = free_port()
        self.log = folder / "serve.log"
        command = [sys.executable, "-m", "octavo", "serve", str(model), "--port", str(port)]
        with self.log.open("wb") as log:
            self.process = psutil.Popen(
                [*command, "--served-model-name", "tiny", "--dtype", "float32"],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60)

    def until(self, condition: Callable[[], bool], seconds: float = 120.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.http.get("/ready").is_success
        except httpx.TransportError:
            return False

    def num_in_engine(self) -> float:
        """Running and waiting requests."""
        names = ("octavo_runtime_requests_running ", "octavo_runtime_requests_waiting ")
        lines = self.http.get("/metrics").text.splitlines()
        return sum(float(line.split()[1]) for line in lines if line.startswith(names))

    def embed(self, given: Any, **fields: Any) -> httpx.Response:
        return self.http.post("/v1/embeddings", json={"input": given} | fields)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model = write_tiny_encoder(tmp_path_factory.mktemp("tiny-bert"))
    running = Server(model, tmp_path_factory.mktemp("log"))
    try:
        running.until(running.is_ready, START_S)
        yield running
    finally:
        running.http.close()
        if running.process.poll() is None:
            running.process.send_signal(signal.SIGTERM)
            running.process.wait(30)


def text(num_words: int) -> str:
    return " ".join(RNG.choice(WORDS, num_words))


def vectors(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.array([item["embedding"] for item in answer.json()["data"]])


def test_thousands_of_inputs_are_those_of_single_requests_in_bounded_memory(
    server: Server,
) -> None:
    texts = [text(int(n)) for n in RNG.integers(1, 60, 3000)]
    server.embed(texts[:200])
    before = server.process.memory_info().rss

    many = vectors(server.embed(texts))

    assert server.process.memory_info().rss - before < 32 * MIB
    for i in (0, 1, 1499, 2999):
        assert np.allclose(many[i], vectors(server.embed(texts[i]))[0], atol=1e-5)


BAD: list[dict[str, Any]] = [
    {},
    {"input": None},
    {"input": []},
    {"input": [[]]},
    {"input": {}},
    {"input": 3},
    {"input": [None]},
    {"input": ["w1", 3]},
    {"input": [[1], [-1]]},
    {"input": [[120]]},
    {"input": [2**70]},
    {"input": text(63)},
    {"input": ["w1"] * 20_000},
    {"input": "w1", "dimensions": 3},
    {"input": "w1", "dimensions": -1},
    {"input": "w1", "truncate_prompt_tokens": 1},
    {"input": "w1", "truncate_prompt_tokens": "x"},
    {"input": "w1", "encoding_format": "hex"},
    {"input": "w1", "normalize": True},
    {"input": "w1", "priority": 2**64},
    {"input": "w1", "cache_salt": "a/b"},
    {"messages": [{"role": "user", "content": "w1"}]},  # it has no template
    {"input": "w1", "task": "score"},
]


@pytest.mark.parametrize("body", BAD, ids=lambda body: str(body)[:60])
def test_bad_input_is_refused_and_leaves_nothing_behind(server: Server, body: Any) -> None:
    answer = server.http.post("/v1/embeddings", json=body)

    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert server.num_in_engine() == 0
    assert server.embed("w1").status_code == 200


def test_a_client_that_leaves_frees_the_engine(server: Server) -> None:
    texts = [text(60) for _ in range(10_000)]

    with pytest.raises(httpx.ReadTimeout):
        server.http.post("/v1/embeddings", json={"input": texts}, timeout=1.0)

    server.until(lambda: server.num_in_engine() == 0, 5.0)


def test_an_engine_that_is_killed_fails_what_runs_and_is_told(server: Server) -> None:
    """The last test: the server ends with its engine."""
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(server.embed, [text(60) for _ in range(10_000)])
        server.until(lambda: server.num_in_engine() > 0)
        for child in server.process.children():
            os.kill(child.pid, signal.SIGKILL)

        answer = asked.result()

    assert answer.status_code == 500
    assert "engine process ended" in answer.json()["error"]["message"]
    assert server.process.wait(30) == 1
