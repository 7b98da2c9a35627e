"""`octavo up` as a user runs it: the real model, Ctrl-C, a killed supervisor, a taken port."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from octavo.local.greet import QUESTION
from octavo.local.ports import free_ports

pytestmark = [pytest.mark.integration, pytest.mark.model, pytest.mark.timeout(300)]

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = REPOSITORY / "examples"
START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 60.0


def eventually(condition: Callable[[], bool], timeout_s: float, explain: Callable[[], str]) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.05)


class Up:
    """A running `octavo up`, its output in files."""

    def __init__(self, folder: Path, port: int, example: str = "01-smollm2.yaml") -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._output = folder / "up.out"
        self._errors = folder / "up.err"
        manifest = str(EXAMPLES / example)
        command = [sys.executable, "-m", "octavo", "up", "-f", manifest, "--port", str(port)]
        with self._output.open("wb") as output, self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, cwd=folder
            )

    def output(self) -> str:
        return self._output.read_text() + self._errors.read_text()

    def wait_until_up(self) -> None:
        def is_up() -> bool:
            assert self.process.poll() is None, self.output()
            return "The platform is up" in self.output()

        eventually(is_up, START_TIMEOUT_S, self.output)

    def descendants(self) -> list[psutil.Process]:
        """Redis, router, replicas, and the replicas' engine processes."""
        found: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        return found

    def named(self, word: str) -> list[psutil.Process]:
        return [process for process in self.descendants() if word in process.cmdline()]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Iterator[Up]:
    up = Up(tmp_path_factory.mktemp("up"), free_ports(1)[0])
    try:
        up.wait_until_up()
        yield up
    finally:
        up.process.kill()
        up.process.wait()


def gone(processes: list[psutil.Process]) -> bool:
    return not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_first_answer_and_ready_lines_are_shown(up: Up) -> None:
    output = up.output()

    assert QUESTION in output
    assert "Paris" in output
    assert f"curl {up.url}/v1/chat/completions" in output
    assert 'LLM("smollm2")' in output


def test_two_replicas_a_router_and_redis_run(up: Up) -> None:
    assert len(up.named("serve")) == 2
    assert len(up.named("router")) == 1
    assert [process for process in up.descendants() if process.name() == "valkey-server"]


def test_chat_command_answers(up: Up) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "octavo", "chat", QUESTION, "--url", up.url, "--temperature", "0"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "Paris" in result.stdout


def test_example_of_the_openai_client_answers(up: Up) -> None:
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / "03-openai-client.py"), up.url],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "Paris" in result.stdout
    assert "prompt tokens" in result.stdout


def test_taken_port_is_explained(up: Up, tmp_path: Path) -> None:
    second = Up(tmp_path, up.port)

    assert second.process.wait(60) == 2
    assert f"port {up.port} is taken by" in second.output()
    assert f"--port {up.port + 1}" in second.output()
    assert "Traceback" not in second.output()


def test_killed_replica_comes_back_while_requests_go_on(up: Up) -> None:
    victim = up.named("serve")[0]
    victim.kill()
    body = {"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}

    for _ in range(8):
        response = httpx.post(f"{up.url}/v1/chat/completions", json=body, timeout=60)
        assert response.status_code == 200, response.text

    eventually(lambda: "replica-0: ready" in up.output().split("killed")[-1], 60, up.output)
    assert len(up.named("serve")) == 2


def test_ctrl_c_stops_everything_cleanly(up: Up) -> None:
    """Last of those that share a platform."""
    processes = up.descendants()
    assert len(processes) >= 4

    up.process.send_signal(signal.SIGINT)

    assert up.process.wait(STOP_TIMEOUT_S) == 0, up.output()
    assert gone(processes)
    assert "Traceback" not in up.output()


def test_killed_supervisor_leaves_no_orphan(tmp_path: Path, smollm2: Path) -> None:
    up = Up(tmp_path, free_ports(1)[0])
    up.wait_until_up()
    processes = up.descendants()

    os.kill(up.process.pid, signal.SIGKILL)
    up.process.wait()

    eventually(lambda: gone(processes), 30, lambda: str([p for p in processes if p.is_running()]))


def test_ctrl_c_during_the_start_stops_everything(tmp_path: Path, smollm2: Path) -> None:
    up = Up(tmp_path, free_ports(1)[0])
    eventually(lambda: "starting" in up.output(), 60, up.output)
    processes = up.descendants()

    up.process.send_signal(signal.SIGINT)

    assert up.process.wait(STOP_TIMEOUT_S) == 0, up.output()
    assert gone(processes)


def test_example_of_the_llm_class_answers(smollm2: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / "02-offline.py")],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    assert "The capital of France is" in result.stdout
    assert "Paris" in result.stdout


def test_the_example_of_embeddings_runs(minilm: Path, tmp_path: Path) -> None:
    up = Up(tmp_path, free_ports(1)[0], "08-embeddings.yaml")
    try:
        up.wait_until_up()
        eventually(lambda: "Logs:" in up.output(), STOP_TIMEOUT_S, up.output)
        body = {
            "query": "A man plays music",
            "documents": ["Shares fell.", "Someone has a guitar."],
        }
        ranked = httpx.post(f"{up.url}/rerank", json=body, timeout=60).json()
        embedded = httpx.post(f"{up.url}/v1/embeddings", json={"input": "Hi"}, timeout=60).json()
    finally:
        up.process.send_signal(signal.SIGINT)
        up.process.wait(STOP_TIMEOUT_S)

    assert f"curl {up.url}/v1/embeddings" in up.output()
    assert [result["index"] for result in ranked["results"]] == [1, 0]
    assert len(embedded["data"][0]["embedding"]) == 384
