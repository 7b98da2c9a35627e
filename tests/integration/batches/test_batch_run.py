"""`octavo batch run`: from URL to URL, whatever kills it in between."""

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.fakes.batch_platform import BatchPlatform, completion, request
from tests.fakes.router_cluster import until
from tests.integration.batches.test_batch_command import octavo

from octavo.batch_client import BatchClient
from octavo.batch_run import BatchRun, RunSpec
from octavo_protocol.batch_runs import RunSummary, decode_summary
from octavo_protocol.errors import ConfigError

pytestmark = pytest.mark.integration

PROMPTS = ("a", "b", "c")


class Killed(BaseException):
    """The process ends, as by a signal that cannot be handled."""


class DeadlyTransport(httpx.HTTPTransport):
    """Lets so many calls happen; the next one is the last, and its answer is not seen."""

    def __init__(self, calls: int, *, is_sent: bool) -> None:
        super().__init__()
        self._calls = calls
        self._is_sent = is_sent

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self._calls -= 1
        if self._calls >= 0:
            return super().handle_request(request)
        if self._is_sent:
            super().handle_request(request).read()
        raise Killed


class FlakyTransport(httpx.HTTPTransport):
    """Every other call fails, after the batch was submitted."""

    is_flaky = False
    _is_turn = False

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self._is_turn = self.is_flaky and not self._is_turn
        if self._is_turn:
            raise httpx.ConnectError("away")
        response = super().handle_request(request)
        self.is_flaky |= request.method == "POST" and request.url.path == "/v1/batches"
        return response


def spec(folder: Path, **fields: Any) -> RunSpec:
    source = folder / "in.jsonl"
    if not source.exists():
        source.write_text("".join(json.dumps(request(each)) + "\n" for each in PROMPTS))
    settings = {
        "input": str(source),
        "output": str(folder / "out.jsonl"),
        "errors": str(folder / "errors.jsonl"),
        "endpoint": "/v1/completions",
        "key": "uid-1",
        **fields,
    }
    return RunSpec(**settings)


async def run(
    platform: BatchPlatform, what: RunSpec, transport: httpx.BaseTransport | None = None
) -> RunSummary:
    """One run in a thread; it looks at its batch as often as it can."""
    client = BatchClient(platform.url, transport=transport or httpx.HTTPTransport())
    try:
        made = BatchRun(client, what, progress=lambda _: None, sleep=lambda _: time.sleep(0.02))
        return await asyncio.to_thread(made.run)
    finally:
        client.close()


def results(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_a_run_that_is_killed_at_every_call_submits_once_and_writes_every_line(
    platform: BatchPlatform, tmp_path: Path
) -> None:
    platform.worker()
    calls, is_done = 0, False
    while not is_done:
        for is_sent in (False, True):
            try:
                await run(platform, spec(tmp_path), DeadlyTransport(calls, is_sent=is_sent))
                is_done = True
            except Killed:
                continue
        calls += 1
    assert calls > 4
    assert [each.metadata async for each in platform.client.batches.list()] == [
        {"octavo.dev/key": "uid-1"}
    ]
    assert len([each async for each in platform.client.files.list(purpose="batch")]) == 1
    lines = results(tmp_path / "out.jsonl")
    assert [line["custom_id"] for line in lines] == list(PROMPTS)
    assert [line["response"]["body"] for line in lines] == [completion(each) for each in PROMPTS]
    assert platform.model.asked == dict.fromkeys(PROMPTS, 1)
    assert set(os.listdir(tmp_path)) == {"files", "in.jsonl", "out.jsonl"}


async def test_two_runs_of_one_key_at_once_share_a_batch(
    platform: BatchPlatform, tmp_path: Path
) -> None:
    platform.worker()
    summaries = await asyncio.gather(*(run(platform, spec(tmp_path)) for _ in range(4)))
    assert len({each.batch_id for each in summaries}) == 1
    assert platform.model.asked == dict.fromkeys(PROMPTS, 1)


async def test_a_platform_that_is_away_now_and_then_is_waited_for(
    platform: BatchPlatform, tmp_path: Path
) -> None:
    platform.worker()
    summary = await run(platform, spec(tmp_path), FlakyTransport())
    assert (summary.status, summary.completed) == ("completed", 3)
    assert len(results(tmp_path / "out.jsonl")) == 3


async def test_lines_that_fail_go_to_the_errors_and_an_old_file_of_errors_goes(
    platform: BatchPlatform, tmp_path: Path
) -> None:
    platform.worker()
    platform.model.statuses["b"] = [(400, "bad")]
    summary = await run(platform, spec(tmp_path))
    assert (summary.status, summary.completed, summary.failed) == ("completed", 2, 1)
    assert [line["custom_id"] for line in results(tmp_path / "errors.jsonl")] == ["b"]
    summary = await run(platform, spec(tmp_path, key="again"))
    assert (summary.failed, summary.errors) == (0, None)
    assert not (tmp_path / "errors.jsonl").exists()


async def test_all_lines_ask_the_model_of_the_run(platform: BatchPlatform, tmp_path: Path) -> None:
    platform.worker()
    summary = await run(platform, spec(tmp_path, model="tuned", priority=-3, window="2h"))
    batch = await platform.store.get(summary.batch_id)
    assert (batch.fields["model"], batch.priority) == ("tuned", -3)
    assert batch.fields["completion_window"] == "2h"


async def test_an_output_that_cannot_be_written_is_told_before_anything_is_sent(
    platform: BatchPlatform, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="cannot write"):
        await run(platform, spec(tmp_path, output=str(tmp_path)))
    assert [each async for each in platform.client.files.list()] == []


async def test_an_input_that_breaks_off_leaves_no_file_and_no_batch(
    platform: BatchPlatform, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        await run(platform, spec(tmp_path, input=str(tmp_path / "none.jsonl")))
    assert [each async for each in platform.client.files.list()] == []
    assert [each async for each in platform.client.batches.list()] == []


async def test_the_command_writes_answers_and_says_how_it_ended(
    platform: BatchPlatform, tmp_path: Path
) -> None:
    platform.worker()
    what = spec(tmp_path)
    words = ("run", "--input", what.input, "--output", what.output, "--endpoint", what.endpoint)
    summary_file = tmp_path / "summary"
    code, out, error = await octavo(
        *words, "--key", "nightly", "--summary-file", summary_file, url=platform.url
    )
    assert (code, out) == (0, "completed: 3 of 3 answered, 0 failed\n")
    summary = decode_summary(summary_file.read_text())
    assert summary is not None
    assert (summary.status, summary.output, summary.errors) == ("completed", what.output, None)
    assert f"octavo: {summary.batch_id} is completed" in error


def test_a_key_that_cannot_be_part_of_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a key has 1 to 128 letters"):
        BatchRun(BatchClient("http://x"), spec(tmp_path, key="no key"), progress=print)


async def test_a_batch_that_was_cancelled_is_the_exit_status_1(
    platform: BatchPlatform, tmp_path: Path
) -> None:
    platform.model.held |= set(PROMPTS)
    platform.worker()
    what = spec(tmp_path)
    words = ("run", "--input", what.input, "--output", what.output, "--endpoint", what.endpoint)
    running = asyncio.create_task(octavo(*words, url=platform.url))
    await until(lambda: platform.model.num_open == len(PROMPTS), seconds=60)
    [batch] = [each async for each in platform.client.batches.list()]
    await platform.client.batches.cancel(batch.id)
    code, out, error = await running
    assert (code, out.split(":")[0]) == (1, "cancelled")
    assert "the key of this run is " in error
    assert len(results(tmp_path / "out.errors.jsonl")) == 3
