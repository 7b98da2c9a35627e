"""`octavo batch` as a user runs it, against a served API."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest
from tests.fakes.batch_platform import BatchPlatform, completion, request

pytestmark = pytest.mark.integration


async def octavo(*words: object, url: str) -> tuple[int, str, str]:
    """(exit status, standard output, standard error) of `octavo batch`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "octavo", "batch", *map(str, words)),
        env={**os.environ, "OCTAVO_URL": url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, error = await process.communicate()
    return process.returncode or 0, out.decode(), error.decode()


async def test_a_file_is_submitted_watched_and_its_results_are_written(
    platform: BatchPlatform, tmp_path: Path
) -> None:
    platform.worker()
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(request(each)) + "\n" for each in ("a", "b")) + "nonsense")
    code, out, _ = await octavo(
        *("submit", source, "--endpoint", "/v1/completions", "--watch"),
        *("--metadata", "team=search", "--priority", "-1"),
        url=platform.url,
    )
    batch_id, state = out.splitlines()
    assert (code, state) == (0, "completed: 2 of 3 answered, 1 failed")

    code, out, _ = await octavo("status", batch_id, url=platform.url)
    told = json.loads(out)
    assert (code, told["metadata"], told["priority"]) == (0, {"team": "search"}, -1)
    code, out, _ = await octavo("status", url=platform.url)
    assert (code, out.split()[0]) == (0, batch_id)

    target = tmp_path / "out.jsonl"
    assert await octavo("results", batch_id, "-o", target, url=platform.url) == (0, "", "")
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert [line["response"]["body"] for line in lines] == [completion("a"), completion("b")]
    code, out, _ = await octavo("results", batch_id, "--errors", url=platform.url)
    assert (code, "line 3" in json.loads(out)["error"]["message"]) == (0, True)


async def test_a_batch_is_cancelled_and_says_that_it_has_no_answers(
    platform: BatchPlatform, tmp_path: Path
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps(request("a")))
    words = ("submit", source, "--endpoint", "/v1/completions")
    batch_id = (await octavo(*words, url=platform.url))[1].strip()
    code, out, _ = await octavo("cancel", batch_id, url=platform.url)
    assert (code, out.split(":")[0]) == (0, "cancelling")
    platform.worker()
    await platform.ended(batch_id)
    code, out, _ = await octavo("watch", batch_id, url=platform.url)
    assert (code, out.split(":")[0]) == (1, "cancelled")
    code, _, error = await octavo("results", batch_id, url=platform.url)
    assert code == 2
    assert "the batch has no file of answers; it is cancelled" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("submit", "/no/such/file"), "cannot read /no/such/file"),
        (("status", "batch_none"), "there is no batch 'batch_none'"),
        (("watch", "x", "--url", "http://127.0.0.1:9"), "nothing answers at"),
    ],
)
async def test_what_goes_wrong_is_said_in_one_line(
    platform: BatchPlatform, words: tuple[str, ...], message: str
) -> None:
    code, _, error = await octavo(*words, url=platform.url)
    assert code == 2
    assert message in error
    assert error.count("\n") == 1
