"""The official client, sync and async, through the router."""

import asyncio

import openai
import pytest
from tests.fakes.fake_replica import words
from tests.fakes.router_cluster import RouterCluster

pytestmark = pytest.mark.integration


async def test_the_async_client_chats_streams_and_completes(cluster: RouterCluster) -> None:
    await cluster.replica("a")
    router = await cluster.router(1)
    async with openai.AsyncOpenAI(base_url=f"{router.url}/v1", api_key="none") as client:
        assert [model.id async for model in client.models.list()] == ["fake"]
        chat = await client.chat.completions.create(
            model="fake", messages=[{"role": "user", "content": "hello"}]
        )
        assert chat.choices[0].message.content == words(8)
        stream = await client.chat.completions.create(
            model="fake", messages=[{"role": "user", "content": "hello"}], stream=True
        )
        parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(parts) == words(8)
        text = await client.completions.create(model="fake", prompt="hello")
        assert text.choices[0].text == words(8)
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            await client.completions.create(model="other", prompt="hello")
        with pytest.raises(openai.BadRequestError, match="temperature"):
            await client.completions.create(model="fake", prompt="hello", temperature=-1)


async def test_the_sync_client_chats_and_streams(cluster: RouterCluster) -> None:
    await cluster.replica("a")
    router = await cluster.router(1)

    def use() -> tuple[str | None, str]:
        with openai.OpenAI(base_url=f"{router.url}/v1", api_key="none") as client:
            chat = client.chat.completions.create(
                model="fake", messages=[{"role": "user", "content": "hello"}]
            )
            stream = client.completions.create(model="fake", prompt="hello", stream=True)
            streamed = "".join(chunk.choices[0].text for chunk in stream)
            return chat.choices[0].message.content, streamed

    assert await asyncio.to_thread(use) == (words(8), words(8))
