"""`octavo run-batch` as a user runs it, with a small model of random weights."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.fakes.tiny_model import write_tiny_model

pytestmark = [pytest.mark.integration]


def test_a_file_of_requests_is_answered_in_order(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "tiny")
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    chat = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
    requests = [
        {"custom_id": "chat", "method": "POST", "url": "/v1/chat/completions", "body": chat},
        {
            "custom_id": "text",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"model": "tiny", "prompt": "the", "max_tokens": 2, "ignore_eos": True},
        },
        {
            "custom_id": "unknown",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"model": "other", "prompt": "the"},
        },
    ]
    source.write_text("\n".join([*map(json.dumps, requests), "junk"]) + "\n")
    command = [sys.executable, "-m", "octavo", "run-batch", "-i", str(source), "-o", str(target)]
    flags = "--served-model-name tiny --load-format dummy --num_gpu_blocks_override 64 --threads 1"
    result = subprocess.run(
        [*command, "--model", str(model), *flags.split()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    answers = [json.loads(line) for line in target.read_text().splitlines()]
    assert [each["custom_id"] for each in answers] == ["chat", "text", "unknown", None]
    assert [each["response"]["status_code"] for each in answers] == [200, 200, 404, 400]
    assert answers[0]["response"]["body"]["object"] == "chat.completion"
    assert answers[1]["response"]["body"]["usage"]["completion_tokens"] == 2
    assert "'other' does not exist" in answers[2]["error"]["message"]
    assert answers[3]["error"]["message"].startswith("line 4: the line is not JSON")
