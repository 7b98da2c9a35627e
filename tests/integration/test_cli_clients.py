"""`octavo serve`, and the commands that talk to it, as a user runs them: a small random model."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.fakes.tiny_model import write_tiny_model

from octavo.local.ports import free_ports

pytestmark = [pytest.mark.integration]

START_TIMEOUT_S = 90.0
KEY = "secret"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server configured the way of vLLM: a file, flags over it, variables."""
    folder = tmp_path_factory.mktemp("serve")
    (port,) = free_ports(1)
    model = write_tiny_model(folder / "tiny")
    config = folder / "serve.yaml"
    config.write_text(
        f"model: {model}\nport: 1\nload_format: dummy\nnum-gpu-blocks-override: 64\n"
        "override-generation-config: {temperature: 0.0}\nthreads: 1\n"
    )
    flags = f"--config {config} --port {port} --served_model_name tiny tiny-two --enforce-eager"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "octavo", "serve", *flags.split()],
            env=os.environ | {"VLLM_API_KEY": KEY},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    base = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(base, process, folder / "log")
        yield base
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, (folder / "log").read_text()


def _wait_until_ready(base: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            if httpx.get(f"{base}/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)


def octavo(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "octavo", *arguments], capture_output=True, text=True, check=False
    )


def test_serve_honours_file_flags_and_variables(url: str) -> None:
    assert httpx.get(f"{url}/v1/models").status_code == 401
    models = httpx.get(f"{url}/v1/models", headers={"authorization": f"Bearer {KEY}"}).json()
    assert [each["id"] for each in models["data"]] == ["tiny", "tiny-two"]


@pytest.mark.parametrize("command", ["chat", "complete"])
def test_one_question_is_answered(url: str, command: str) -> None:
    flags = ("--url", f"{url}/v1", "--api-key", KEY, "--stats", "--max-tokens", "4")
    result = octavo(command, "-q", "the dog", *flags)
    assert result.returncode == 0, result.stderr
    assert "prompt tokens" in result.stdout.splitlines()[-1]


def test_a_wrong_key_is_said_in_one_line(url: str) -> None:
    result = octavo("complete", "-q", "the dog", "--url", url, "--api-key", "wrong")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("octavo: the server answered 401")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("backend", ["openai", "openai-chat", "openai-responses"])
def test_bench_serve_measures_each_api(url: str, backend: str, tmp_path: Path) -> None:
    flags = (
        f"--base-url {url} --api-key {KEY} --backend {backend} --num-prompts 4 --input-len 8 "
        "--output-len 3-5 --vocab-size 352 --max-concurrency 2 --num-warmups 1 "
        "--ready-check-timeout-sec 5 --goodput e2el:60000 --metric-percentiles 50,99 "
        "--metadata commit=abc --save-result --save-detailed --result-filename r.json"
    )
    result = octavo("bench", "serve", *flags.split(), "--result-dir", str(tmp_path / "results"))
    assert result.returncode == 0, result.stderr
    assert "Successful requests:                     4         " in result.stdout, result.stderr
    assert "Mean TTFT (ms):" in result.stdout
    written = json.loads((tmp_path / "results" / "r.json").read_text())
    assert (written["completed"], written["failed"], written["commit"]) == (4, 0, "abc")
    assert (written["backend"], written["model_id"]) == (backend, "tiny")
    assert written["request_goodput"] == written["request_throughput"]
    assert written["max_concurrent_requests"] == 2
    assert all(3 <= length <= 5 for length in written["output_lens"])
    assert written["errors"] == [""] * 4


@pytest.mark.parametrize(
    ("command", "keys"),
    [
        ("throughput --num-prompts 3 --random-input-len 6", {"num_requests", "elapsed_time"}),
        ("latency --num-iters 1 --num-iters-warmup 0 --batch-size 2", {"avg_latency"}),
    ],
)
def test_the_engine_is_measured_here(tmp_path: Path, command: str, keys: set[str]) -> None:
    model, out = write_tiny_model(tmp_path / "tiny"), tmp_path / "out.json"
    flags = "--output-len 3 --load-format dummy --num_gpu_blocks_override 64 --threads 1"
    result = octavo(
        "bench",
        *command.split(),
        *flags.split(),
        *("--model", str(model), "--output-json", str(out)),
    )
    assert result.returncode == 0, result.stderr
    assert keys <= set(json.loads(out.read_text()))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("throughput --backend vllm --num-prompts 1 --input-len 9000", "more than the context of"),
        ("latency --input-len 9000", "more than the context of"),
        ("latency --num-iters 1 --output-json /nowhere/x", "cannot write /nowhere/x: No such file"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(
    tmp_path: Path, command: str, message: str
) -> None:
    model = write_tiny_model(tmp_path / "tiny")
    flags = "--output-len 3 --load-format dummy --num_gpu_blocks_override 64 --threads 1"
    result = octavo("bench", *command.split(), *flags.split(), "--model", str(model))
    assert result.returncode == 2
    assert message in result.stderr.splitlines()[-1]


def test_bench_serve_spreads_its_requests_over_adapters(url: str, tmp_path: Path) -> None:
    """Where `tiny-two`, another name of the model, stands for one."""
    flags = f"--base-url {url} --api-key {KEY} --num-prompts 4 --input-len 4 --output-len 2"
    saved = f"--vocab-size 352 --save-result --save-detailed --result-dir {tmp_path}"
    named = "--result-filename r.json --lora-modules tiny-two nobody --lora-assignment round-robin"
    result = octavo("bench", "serve", *flags.split(), *saved.split(), *named.split())
    assert result.returncode == 0, result.stderr
    written = json.loads((tmp_path / "r.json").read_text())
    assert (written["completed"], written["failed"]) == (2, 2)
    assert (written["model_id"], written["lora_modules"]) == ("tiny", ["tiny-two", "nobody"])
    assert [error[:3] for error in written["errors"]] == ["", "404", "", "404"]


def test_a_run_without_one_answer_is_an_error(url: str) -> None:
    flags = "--num-prompts 2 --input-len 4 --output-len 2 --model nobody"
    result = octavo("bench", "serve", "--base-url", url, "--api-key", KEY, *flags.split())
    assert result.returncode == 2
    assert "Failed requests:                         2         " in result.stdout
    assert result.stderr.splitlines()[-1] == "octavo: no request was answered"
