"""A real model says the same through chat completions, responses and messages."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from octavo_protocol.serving import DrainingServer, bind
from octavo_protocol.tokenizer import Tokenizer
from octavo_runtime.config import EngineConfig
from octavo_runtime.engine.async_llm import AsyncLLM
from octavo_runtime.server.app import create_app
from octavo_runtime.server.metrics import ServerMetrics
from octavo_runtime.server.state import ServerState

pytestmark = [pytest.mark.integration, pytest.mark.model]

SYSTEM = "You answer briefly."
QUESTION: Any = [{"role": "user", "content": "Name three colours."}]
START_S = 120.0
NUM_TOKENS = 24


@pytest.fixture
async def url(smollm2: Path) -> AsyncIterator[str]:
    llm = AsyncLLM.start(
        EngineConfig(model=smollm2, max_model_len=512), Tokenizer.from_folder(smollm2)
    )
    try:
        await asyncio.wait_for(llm.wait_ready(), START_S)
        state = ServerState(
            llm=llm,
            served_names=("smollm2",),
            max_body_bytes=2**20,
            metrics=ServerMetrics(llm),
            is_registered=True,
        )
        server = DrainingServer(create_app(state))
        sock = bind("127.0.0.1", 0)
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        server.should_exit = True
        await serving
        sock.close()
    finally:
        await llm.shutdown()


async def test_three_apis_say_the_same(url: str) -> None:
    async with (
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as gpt,
        anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0) as claude,
    ):
        chat = await gpt.chat.completions.create(
            model="smollm2",
            messages=[{"role": "system", "content": SYSTEM}, *QUESTION],
            temperature=0,
            max_tokens=NUM_TOKENS,
        )
        expected = chat.choices[0].message.content
        assert expected
        asked: Any = {
            "model": "smollm2",
            "input": QUESTION,
            "instructions": SYSTEM,
            "temperature": 0,
            "max_output_tokens": NUM_TOKENS,
        }
        response = await gpt.responses.create(**asked)
        stream = await gpt.responses.create(**asked, stream=True)
        events = [event async for event in stream]
        told: Any = {
            "model": "smollm2",
            "messages": QUESTION,
            "system": SYSTEM,
            "max_tokens": NUM_TOKENS,
            "extra_body": {"temperature": 0},
        }
        message = await claude.messages.create(**told)
        async with claude.messages.stream(**told) as spoken:
            streamed = await spoken.get_final_message()
        counted = await claude.messages.count_tokens(
            model="smollm2", messages=QUESTION, system=SYSTEM
        )

    assert response.output_text == expected
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == expected
    for each in (message, streamed):
        assert [block.to_dict() for block in each.content] == [{"type": "text", "text": expected}]
        assert each.usage.output_tokens == chat.usage.completion_tokens  # type: ignore[union-attr]
    assert response.usage is not None
    assert counted.input_tokens == response.usage.input_tokens
    cached = message.usage.cache_read_input_tokens or 0
    assert counted.input_tokens == message.usage.input_tokens + cached
