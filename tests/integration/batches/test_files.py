"""/v1/files by the official client, on a real Redis and a real folder."""

import asyncio

import httpx
import openai
import pytest
from tests.fakes.batch_platform import BatchPlatform

pytestmark = pytest.mark.integration


async def test_an_uploaded_file_is_told_of_read_and_deleted(platform: BatchPlatform) -> None:
    data = bytes(range(256)) * 1000
    file = await platform.client.files.create(
        file=("some/folder/näme.jsonl", data),
        purpose="batch",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert (file.bytes, file.filename, file.purpose) == (256_000, "näme.jsonl", "batch")
    assert file.expires_at == file.created_at + 3600
    assert await platform.client.files.retrieve(file.id) == file
    assert (await platform.client.files.content(file.id)).content == data
    deleted = await platform.client.files.delete(file.id)
    assert (deleted.id, deleted.deleted) == (file.id, True)
    with pytest.raises(openai.NotFoundError):
        await platform.client.files.retrieve(file.id)
    assert list(platform.folder.iterdir()) == []


async def test_lists_are_paged_in_either_order(platform: BatchPlatform) -> None:
    ids = [await platform.upload(f"p{i}") for i in range(5)]
    newest = await platform.client.files.list(limit=2)
    assert ([each.id for each in newest.data], newest.has_more) == ([ids[4], ids[3]], True)
    assert [each.id async for each in newest] == ids[::-1]
    oldest = await platform.client.files.list(order="asc", after=ids[2])
    assert ([each.id for each in oldest.data], oldest.has_more) == (ids[3:], False)
    assert (await platform.client.files.list(purpose="user_data")).data == []


async def test_owners_do_not_see_each_others_files(platform: BatchPlatform) -> None:
    file_id = await platform.upload("mine")
    platform.owner = "other"
    assert (await platform.client.files.list()).data == []
    for work in (
        platform.client.files.retrieve,
        platform.client.files.content,
        platform.client.files.delete,
    ):
        with pytest.raises(openai.NotFoundError):
            await work(file_id)
    platform.owner = "default"
    assert (await platform.client.files.retrieve(file_id)).id == file_id


async def test_an_expired_file_is_gone_and_its_bytes_are_deleted(platform: BatchPlatform) -> None:
    kept = await platform.upload("kept")
    file = await platform.client.files.create(
        file=b"{}", purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    platform.ahead_s = 3601
    with pytest.raises(openai.NotFoundError, match="expired"):
        await platform.client.files.retrieve(file.id)
    assert [each.id for each in (await platform.client.files.list()).data] == [kept]
    await platform.files.delete_expired()
    assert [path.name for path in platform.folder.iterdir()] == [kept]


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"files": {"other": (None, b"x")}}, "no part named file"),
        ({"files": {"file": b"x"}}, "purpose must be one of batch, user_data"),
        ({"files": {"file": b"x"}, "data": {"purpose": "fine-tune"}}, "not 'fine-tune'"),
        ({"files": {"file": b""}, "data": {"purpose": "batch"}}, "the file is empty"),
        (
            {"files": {"file": b"x"}, "data": {"purpose": "batch", "color": "red"}},
            "unknown field 'color'",
        ),
        (
            {
                "files": {"file": b"x"},
                "data": {"purpose": "batch", "expires_after[seconds]": "5"},
            },
            "must be from 3600",
        ),
        ({"json": {"purpose": "batch"}}, "multipart/form-data"),
        ({"files": {"file": b"x" * (2**20 + 1)}, "data": {"purpose": "batch"}}, "larger than"),
        (
            {
                "content": b"--b\r\nno colon\r\n",
                "headers": {"content-type": "multipart/form-data; boundary=b"},
            },
            "form",
        ),
    ],
)
async def test_a_bad_upload_is_refused_and_leaves_nothing(
    platform: BatchPlatform, form: dict[str, object], message: str
) -> None:
    async with httpx.AsyncClient(base_url=platform.url) as client:
        answer = await client.post("/v1/files", **form)  # type: ignore[arg-type]
    assert answer.status_code in (400, 413)
    assert message in answer.json()["error"]["message"]
    assert not platform.folder.exists() or list(platform.folder.iterdir()) == []
    assert await platform.redis.keys("octavo:file*") == []


async def test_an_upload_that_breaks_off_leaves_nothing(platform: BatchPlatform) -> None:
    port = int(platform.url.rpartition(":")[2])
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (
        "POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n"
        "content-type: multipart/form-data; boundary=b\r\n\r\n"
        '--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\nsome bytes'
    )
    writer.write(head.encode())
    await writer.drain()
    deadline = asyncio.get_running_loop().time() + 10
    while not (platform.folder.exists() and list(platform.folder.iterdir())):
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)
    writer.close()
    while list(platform.folder.iterdir()):
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)
    assert (await platform.client.files.list()).data == []


async def test_ids_that_are_paths_reach_nothing(platform: BatchPlatform) -> None:
    async with httpx.AsyncClient(base_url=platform.url) as client:
        for name in ("..", "a%2Fb", "%2e%2e%2fetc%2fpasswd", "x" * 5000, "*"):
            answer = await client.get(f"/v1/files/{name}/content")
            assert answer.status_code == 404
