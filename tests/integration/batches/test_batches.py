"""/v1/batches by the official client: what becomes of every line."""

import asyncio
import errno
import re
from typing import Any

import openai
import pytest
from tests.fakes.batch_platform import BatchPlatform, completion, request
from tests.fakes.router_cluster import until

from octavo_router.batches.planning import CHUNK_LINES
from octavo_router.batches.worker import LANE_CHUNKS, MAX_CHUNKS

pytestmark = pytest.mark.integration


def prompts(count: int) -> list[str]:
    return [f"prompt {i}" for i in range(count)]


async def test_every_line_gets_its_answer_in_the_order_of_the_input(
    platform: BatchPlatform,
) -> None:
    platform.worker()
    asked = prompts(3 * CHUNK_LINES + 5)
    batch = await platform.ended(await platform.submit(*asked))
    counts = batch.request_counts
    assert (batch.status, batch.model) == ("completed", "fake")
    assert (counts.total, counts.completed, counts.failed) == (len(asked), len(asked), 0)
    output = await platform.lines(batch.output_file_id)
    assert [line["custom_id"] for line in output] == asked
    assert [line["response"]["body"] for line in output] == [completion(each) for each in asked]
    assert all(line["response"]["status_code"] == 200 and not line["error"] for line in output)
    assert len({line["id"] for line in output}) == len(asked)
    assert batch.error_file_id is None
    assert (batch.usage.input_tokens, batch.usage.output_tokens) == (3 * len(asked), 2 * len(asked))
    assert batch.usage.input_tokens_details.cached_tokens == len(asked)
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    output_file = await platform.client.files.retrieve(batch.output_file_id)
    assert (output_file.purpose, output_file.filename) == (
        "batch_output",
        f"{batch.id}_output.jsonl",
    )


async def test_an_ended_batch_leaves_only_its_files_and_its_record(
    platform: BatchPlatform,
) -> None:
    platform.worker()
    batch = await platform.ended(await platform.submit("a", "b"))
    names = {path.name for path in platform.folder.rglob("*") if path.is_file()}
    assert names == {batch.input_file_id, batch.output_file_id}
    keys = await platform.redis.keys("octavo:batch:*")
    assert keys == [f"octavo:batch:{batch.id}".encode()]


async def test_lines_that_are_no_requests_end_in_the_error_file(platform: BatchPlatform) -> None:
    platform.worker()
    platform.model.statuses = {"refused": [(400, "bad")]}
    batch = await platform.ended(
        await platform.submit(
            "good",
            "raw: this is no JSON",
            request("get", method="GET"),
            request("elsewhere", url="/v1/embeddings"),
            request("streamed", body={"prompt": "x", "stream": True}),
            "refused",
            "good",
            "last",
        )
    )
    assert batch.status == "completed"
    assert (batch.request_counts.completed, batch.request_counts.failed) == (2, 6)
    assert [x["custom_id"] for x in await platform.lines(batch.output_file_id)] == ["good", "last"]
    errors = await platform.lines(batch.error_file_id)
    told = [(line["custom_id"], str(line["error"])) for line in errors]
    assert [each for each, _ in told] == [None, "get", "elsewhere", "streamed", "refused", "good"]
    assert "line 2: the line is not JSON" in told[0][1]
    assert "method must be POST, not 'GET'" in told[1][1]
    assert "these can: /v1/completions" in told[2][1]
    assert "cannot be streamed" in told[3][1]
    assert errors[4]["response"]["status_code"] == 400
    assert errors[4]["response"]["body"]["error"]["code"] == "bad"
    assert "that of an earlier line" in told[5][1]


async def test_a_line_waits_for_capacity_and_is_given_up_where_it_fails_replicas(
    platform: BatchPlatform,
) -> None:
    platform.model.statuses = {
        "patient": [(503, "service_unavailable"), (429, "rate_limit_exceeded")],
        "poison": [(503, "replicas_failed")] * 9,
        "unlucky": [(500, "internal_error")],
    }
    platform.worker()
    batch = await platform.ended(await platform.submit("patient", "poison", "unlucky"))
    output = await platform.lines(batch.output_file_id)
    assert [line["custom_id"] for line in output] == ["patient", "unlucky"]
    (error,) = await platform.lines(batch.error_file_id)
    assert (error["custom_id"], error["error"]["code"]) == ("poison", "replicas_failed")
    assert "5 tries failed" in error["error"]["message"]
    assert platform.model.asked == {"patient": 3, "poison": 5, "unlucky": 2}


@pytest.mark.parametrize(
    ("lines", "limits", "message"),
    [
        (["raw: x"] * 3, {"max_lines": 2}, "more than 2 lines"),
        (["x" * 200], {"max_line_bytes": 100}, "line 1 is longer than 100 bytes"),
    ],
)
async def test_a_file_that_cannot_be_a_batch_fails_it(
    platform: BatchPlatform, lines: list[Any], limits: dict[str, int], message: str
) -> None:
    platform.worker(**limits)
    batch = await platform.ended(await platform.submit(*lines))
    assert (batch.status, batch.output_file_id) == ("failed", None)
    assert message in batch.errors.data[0].message


async def test_a_deleted_input_file_fails_the_batch(platform: BatchPlatform) -> None:
    batch_id = await platform.submit("a")
    batch = await platform.client.batches.retrieve(batch_id)
    await platform.client.files.delete(batch.input_file_id)
    platform.worker()
    batch = await platform.ended(batch_id)
    assert batch.status == "failed"
    assert "there is no file" in batch.errors.data[0].message


async def test_a_cancelled_batch_keeps_what_is_done(platform: BatchPlatform) -> None:
    platform.room = 1
    platform.model.held = {"prompt 1"}
    platform.worker()
    batch_id = await platform.submit(*prompts(3))
    await until(lambda: platform.model.asked["prompt 1"])
    cancelled = await platform.client.batches.cancel(batch_id)
    assert cancelled.status == "cancelling"
    batch = await platform.ended(batch_id)
    assert batch.status == "cancelled"
    output = await platform.lines(batch.output_file_id)
    errors = await platform.lines(batch.error_file_id)
    assert [line["custom_id"] for line in output] == ["prompt 0"]
    assert [line["custom_id"] for line in errors] == ["prompt 1", "prompt 2"]
    assert {line["error"]["code"] for line in errors} == {"batch_cancelled"}
    assert platform.model.num_open == 0
    with pytest.raises(openai.BadRequestError, match="the batch is cancelled"):
        await platform.client.batches.cancel(batch_id)


async def test_a_batch_that_no_worker_saw_yet_can_be_cancelled(platform: BatchPlatform) -> None:
    batch_id = await platform.submit("a")
    await platform.client.batches.cancel(batch_id)
    platform.worker()
    batch = await platform.ended(batch_id)
    assert (batch.status, platform.model.asked) == ("cancelled", {})


async def test_the_end_of_the_window_ends_the_batch(platform: BatchPlatform) -> None:
    platform.room = 2
    batch_id = await platform.submit(*prompts(4), window="30m")
    platform.worker()
    await until(lambda: sum(platform.model.asked.values()) == 4)
    assert (await platform.ended(batch_id)).status == "completed"
    platform.model.held = set(prompts(4))
    late = await platform.submit(*prompts(4), window="30m")
    await until(lambda: platform.model.num_open == 2)
    platform.ahead_s = 1801
    batch = await platform.ended(late)
    assert (batch.status, batch.expired_at is not None) == ("expired", True)
    errors = await platform.lines(batch.error_file_id)
    assert [line["error"]["code"] for line in errors] == ["batch_expired"] * 4


async def test_the_batch_that_ends_first_goes_first_and_like_lines_go_together(
    platform: BatchPlatform,
) -> None:
    platform.room = 0
    platform.worker()
    slow = await platform.submit("b 1", "a 1", "b 2", "a 2", window="7d")
    urgent = await platform.submit("urgent", window="1h")
    await until(lambda: platform.newest.num_waiting == 5)
    platform.room = 1
    assert (await platform.ended(urgent)).status == "completed"
    assert (await platform.ended(slow)).status == "completed"
    assert platform.model.order == ["urgent", "a 1", "a 2", "b 1", "b 2"]
    assert platform.model.most_open == 1


async def test_a_worker_holds_a_bounded_part_of_a_large_batch(platform: BatchPlatform) -> None:
    """As many lines in its memory as it leases, and as many chunks of results in Redis."""
    platform.room = 0
    platform.worker()
    count = (MAX_CHUNKS + 6) * CHUNK_LINES
    batch_id = await platform.submit(*prompts(count))
    await until(lambda: platform.newest.num_waiting == MAX_CHUNKS * CHUNK_LINES)
    platform.room = 50
    most_waiting = most_keys = 0
    while platform.newest.num_waiting:
        most_waiting = max(most_waiting, platform.newest.num_waiting)
        most_keys = max(most_keys, len(await platform.redis.keys("octavo:batch:*:results:*")))
    batch = await platform.ended(batch_id)
    assert batch.request_counts.completed == count
    assert most_waiting <= MAX_CHUNKS * CHUNK_LINES
    assert most_keys <= MAX_CHUNKS


async def test_a_batch_that_cannot_go_on_keeps_no_other_from_its_turn(
    platform: BatchPlatform,
) -> None:
    """A model without replicas: its lines may wait for a day."""
    platform.rooms["fake"] = 0
    platform.worker()
    stuck = await platform.submit(*prompts((MAX_CHUNKS + 4) * CHUNK_LINES), window="1h")
    await until(lambda: platform.newest.num_waiting == MAX_CHUNKS * CHUNK_LINES)
    asked = prompts((LANE_CHUNKS + 1) * CHUNK_LINES)
    bodies = [{"model": "other", "prompt": prompt} for prompt in asked]
    lines = [request(body["prompt"], body=body) for body in bodies]
    batch = await platform.ended(await platform.submit(*lines))
    assert (batch.status, batch.request_counts.completed) == ("completed", len(asked))
    assert platform.newest.num_waiting == MAX_CHUNKS * CHUNK_LINES
    await platform.client.batches.cancel(stuck)
    assert (await platform.ended(stuck)).request_counts.completed == 0


async def test_a_batch_whose_input_is_deleted_fails_with_what_was_done(
    platform: BatchPlatform,
) -> None:
    platform.room = 0
    platform.worker()
    asked = prompts((MAX_CHUNKS + 2) * CHUNK_LINES)
    batch_id = await platform.submit(*asked)
    await until(lambda: platform.newest.num_waiting == MAX_CHUNKS * CHUNK_LINES)
    input_id = (await platform.client.batches.retrieve(batch_id)).input_file_id
    await platform.client.files.delete(input_id)
    platform.room = 50
    batch = await platform.ended(batch_id)
    assert batch.status == "failed"
    assert [each.code for each in batch.errors.data] == ["input_file_gone"]
    counts = batch.request_counts
    assert (counts.total, counts.failed, batch.error_file_id) == (len(asked), 0, None)
    output = [line["custom_id"] for line in await platform.lines(batch.output_file_id)]
    assert len(output) == counts.completed > 0
    assert output == [each for each in asked if each in set(output)]


async def test_a_batch_whose_input_is_deleted_can_be_cancelled(platform: BatchPlatform) -> None:
    platform.room = 0
    platform.worker()
    batch_id = await platform.submit("a", "raw: b")
    await until(lambda: platform.newest.num_waiting == 1)
    batch = await platform.client.batches.retrieve(batch_id)
    await platform.client.files.delete(batch.input_file_id)
    await platform.client.batches.cancel(batch_id)
    assert (await platform.ended(batch_id)).status == "cancelled"


async def test_lists_are_paged_and_belong_to_their_owner(platform: BatchPlatform) -> None:
    ids = [await platform.submit("x") for _ in range(3)]
    page = await platform.client.batches.list(limit=2)
    assert ([each.id for each in page.data], page.has_more) == ([ids[2], ids[1]], True)
    assert [each.id async for each in page] == ids[::-1]
    platform.owner = "other"
    assert (await platform.client.batches.list()).data == []
    with pytest.raises(openai.NotFoundError):
        await platform.client.batches.retrieve(ids[0])
    with pytest.raises(openai.NotFoundError):
        await platform.client.batches.cancel(ids[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"endpoint": "/v1/audio"}, "endpoint"),
        ({"completion_window": "1 day"}, 'write it as "24h"'),
        ({"completion_window": "99d"}, 'at most "30d"'),
        ({"metadata": {str(i): "x" for i in range(17)}}, "at most 16 pairs"),
        ({"input_file_id": "file-none"}, "there is no file 'file-none'"),
        ({"extra_body": {"colour": 1}}, "unknown field 'colour'"),
    ],
)
async def test_a_bad_batch_is_refused(
    platform: BatchPlatform, fields: dict[str, Any], message: str
) -> None:
    good = {"input_file_id": await platform.upload("a"), "endpoint": "/v1/completions"}
    with pytest.raises((openai.BadRequestError, openai.NotFoundError), match=message):
        await platform.client.batches.create(**{"completion_window": "24h", **good, **fields})


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENOSPC, "the storage for files is full"),
        (errno.EIO, "the storage for files cannot be used now (OSError)"),
    ],
)
async def test_a_storage_that_fails_is_told_and_the_batch_goes_on_when_it_works(
    platform: BatchPlatform, monkeypatch: pytest.MonkeyPatch, number: int, told: str
) -> None:
    def failing(*arguments: object, **keywords: object) -> None:
        raise OSError(number, "failed")

    monkeypatch.setattr("octavo_router.batches.worker._PAUSE_S", 0.05)
    batch_id = await platform.submit(*prompts(5))
    with monkeypatch.context() as patch:
        patch.setattr("octavo_router.files.storage.os.fsync", failing)
        platform.worker()

        async def is_told() -> bool:
            batch: Any = await platform.client.batches.retrieve(batch_id)
            return bool(batch.status_details)

        await until(is_told)
        batch: Any = await platform.client.batches.retrieve(batch_id)
        assert batch.status_details == told
        with pytest.raises(openai.InternalServerError, match=re.escape(told)):
            await platform.upload("more")
    batch = await platform.ended(batch_id)
    assert (batch.status, batch.request_counts.completed) == ("completed", 5)
    assert set(platform.model.asked.values()) == {1}
    assert batch.status_details is None


async def test_a_key_makes_one_batch_however_often_it_is_sent(platform: BatchPlatform) -> None:
    file_id = await platform.upload("a")
    headers = {"Idempotency-Key": "nightly"}

    async def create(**fields: Any) -> Any:
        return await platform.client.batches.create(
            **{
                "input_file_id": file_id,
                "endpoint": "/v1/completions",
                "completion_window": "24h",
                "extra_headers": headers,
                **fields,
            }
        )

    made = await asyncio.gather(*(create() for _ in range(8)))
    assert len({batch.id for batch in made}) == 1
    with pytest.raises(openai.UnprocessableEntityError, match="used for another batch"):
        await create(completion_window="1h")
    platform.owner = "other"
    file_id = await platform.upload("a")
    assert (await create()).id != made[0].id, "keys of tenants have nothing to do with each other"


async def test_batches_of_a_lower_priority_number_go_first(platform: BatchPlatform) -> None:
    platform.room = 1
    for prompt, priority in (("late", 1), ("next", 0), ("first", -1)):
        await platform.client.batches.create(
            input_file_id=await platform.upload(prompt),
            endpoint="/v1/completions",
            completion_window="24h" if prompt != "late" else "30m",  # type: ignore[arg-type]
            extra_body={"priority": priority},
        )
    open_ids = await platform.store.open_ids()
    ranked = [(await platform.store.get(each)).priority for each in open_ids]
    assert ranked == [-1, 0, 1]
