"""A request's adapter is there when the engine has the request, or is loaded and tried again."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from tests.fakes.fake_engine_process import FakeEngineProcess
from tests.fakes.fake_llm import byte_tokenizer

from octavo_protocol.errors import AdapterNotFoundError, UnavailableError, ValidationError
from octavo_protocol.lora import LoRARequest
from octavo_protocol.outputs import RequestOutput
from octavo_protocol.sampling_params import SamplingParams
from octavo_runtime.engine.async_llm import AsyncLLM
from octavo_runtime.engine.core_client import EngineProcess
from octavo_runtime.engine.messages import (
    AbortRequests,
    EngineInfo,
    EngineRequest,
    LoRAInfo,
    SequenceOutput,
)

PROMPT = [1, 2, 3]
INFO = EngineInfo(
    model="m",
    cache_model="m",
    dtype="float32",
    block_size=16,
    num_blocks=8,
    max_model_len=64,
    max_num_seqs=4,
    vocab_size=257,
    eos_token_ids=[256],
    stages={},
    lora=LoRAInfo(max_loras=1, max_cpu_loras=1, max_lora_rank=16),
)


@pytest.fixture
async def engine() -> FakeEngineProcess:
    return FakeEngineProcess()


@pytest.fixture
async def llm(engine: FakeEngineProcess) -> AsyncIterator[AsyncLLM]:
    llm = AsyncLLM(cast(EngineProcess, engine), byte_tokenizer(), SamplingParams())
    engine.reports.put_nowait(INFO)
    await llm.wait_ready()
    yield llm
    await llm.shutdown()


@pytest.fixture
def sql(tmp_path: Path) -> LoRARequest:
    (tmp_path / "adapter_config.json").write_text("{}")
    return LoRARequest("sql", 1, str(tmp_path))


def loaded(version: str) -> dict[str, Any]:
    return {"name": "sql", "version": version, "seconds": 0.1, "evicted": []}


def refusal(request: EngineRequest) -> SequenceOutput:
    return SequenceOutput(
        request.request_id,
        [],
        finish_reason="error",
        error=f"there is no adapter {request.adapter}",
        error_kind="AdapterNotFoundError",
    )


def begin(llm: AsyncLLM, wanted: LoRARequest | str, n: int = 1) -> "asyncio.Task[RequestOutput]":
    params = SamplingParams(max_tokens=2, ignore_eos=True, n=n, temperature=1.0)

    async def last() -> RequestOutput:
        [*_, output] = [
            output async for output in llm.generate(PROMPT, params, "r", lora_request=wanted)
        ]
        return output

    return asyncio.create_task(last())


async def test_request_is_sent_when_its_adapter_is_loaded(
    llm: AsyncLLM, engine: FakeEngineProcess, sql: LoRARequest
) -> None:
    answer = begin(llm, sql)
    load = await engine.next_call("load_adapter")
    engine.answer(load, loaded("1"))
    request = await engine.next_request()
    engine.give(SequenceOutput(request.request_id, [65, 66], finish_reason="length"))

    assert load.arguments["name"] == "sql"
    assert request.adapter == "sql@1"
    output = await answer
    assert output.lora_request == sql
    assert list(output.outputs[0].token_ids) == [65, 66]


async def test_adapter_that_the_engine_lost_is_loaded_again_and_the_request_begins_anew(
    llm: AsyncLLM, engine: FakeEngineProcess, sql: LoRARequest
) -> None:
    """Of two samples one is refused; what the other one gives until it is taken back is dropped."""
    answer = begin(llm, sql, n=2)
    engine.answer(await engine.next_call("load_adapter"), loaded("1"))
    first, second = await engine.next_request(), await engine.next_request()
    engine.give(refusal(first), SequenceOutput(second.request_id, [90]))
    compare = await engine.next_call("list_adapters")
    engine.give(SequenceOutput(second.request_id, [91]))
    engine.answer(compare, [])
    engine.answer(await engine.next_call("load_adapter"), loaded("2"))
    again = [await engine.next_request(), await engine.next_request()]
    engine.give(
        *(SequenceOutput(each.request_id, [65, 66], finish_reason="length") for each in again)
    )

    output = await answer
    assert [each.adapter for each in again] == ["sql@2"] * 2
    assert [list(each.token_ids) for each in output.outputs] == [[65, 66]] * 2
    ids = [first.request_id, second.request_id]
    assert AbortRequests(ids) in engine.sent


async def test_adapter_that_is_lost_again_and_again_is_an_error(
    llm: AsyncLLM, engine: FakeEngineProcess, sql: LoRARequest
) -> None:
    answer = begin(llm, sql)
    for version in ("1", "2", "3"):
        engine.answer(await engine.next_call("load_adapter"), loaded(version))
        engine.give(refusal(await engine.next_request()))
        if version != "3":
            engine.answer(await engine.next_call("list_adapters"), [])

    with pytest.raises(AdapterNotFoundError, match="no adapter sql@3"):
        await answer
    assert llm.num_unfinished == 0


async def test_unloaded_adapter_is_not_loaded_for_a_request_by_its_name(
    llm: AsyncLLM, engine: FakeEngineProcess, sql: LoRARequest
) -> None:
    adding = asyncio.create_task(llm.adapters.load(sql))
    engine.answer(await engine.next_call("load_adapter"), loaded("1"))
    await adding
    answer = begin(llm, "sql")
    request = await engine.next_request()
    removing = asyncio.create_task(llm.adapters.unload("sql"))
    engine.answer(await engine.next_call("unload_adapter"), None)
    await removing
    engine.give(refusal(request))
    engine.answer(await engine.next_call("list_adapters"), [])

    with pytest.raises(AdapterNotFoundError, match="'sql' cannot be found"):
        await answer


async def test_engine_without_room_refuses_adapters(
    engine: FakeEngineProcess, llm: AsyncLLM, sql: LoRARequest
) -> None:
    assert llm.info is not None
    llm.info.lora = None

    with pytest.raises(ValidationError, match="takes no LoRA adapters"):
        await begin(llm, sql)
    assert engine.sent == []


async def test_load_ends_when_the_engine_dies_or_stops(
    llm: AsyncLLM, engine: FakeEngineProcess, sql: LoRARequest
) -> None:
    adding = asyncio.create_task(llm.adapters.load(sql))
    await engine.next_call("load_adapter")
    await llm.shutdown()

    with pytest.raises((UnavailableError, asyncio.CancelledError)):
        await adding
    with pytest.raises(UnavailableError, match="the engine has ended"):
        await llm.adapters.load(sql)
