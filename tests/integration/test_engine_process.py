"""`AsyncLLM` over a real engine process: structured outputs, sleep, profiles."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.tiny_model import tiny_tokenizer, write_tiny_model

from octavo_protocol.errors import GenerationError, ValidationError
from octavo_protocol.outputs import RequestOutput
from octavo_protocol.sampling_params import RequestOutputKind, SamplingParams
from octavo_protocol.structured_outputs import StructuredOutputsParams
from octavo_runtime.config import EngineConfig
from octavo_runtime.engine.async_llm import AsyncLLM

pytestmark = [pytest.mark.integration]

PROMPT = list(range(100, 140))
DEADLINE_S = 120.0
Start = Callable[..., Awaitable[AsyncLLM]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    engines: list[AsyncLLM] = []

    async def start(**options: Any) -> AsyncLLM:
        folder = write_tiny_model(tmp_path / "tiny")
        config = EngineConfig(
            model=folder,
            load_format="dummy",
            max_model_len=256,
            num_gpu_blocks_override=64,
            **options,
        )
        llm = AsyncLLM.start(config, tiny_tokenizer())
        engines.append(llm)
        await asyncio.wait_for(llm.wait_ready(), DEADLINE_S)
        return llm

    yield start
    for llm in engines:
        await llm.shutdown()


async def last(llm: AsyncLLM, request_id: str, **fields: Any) -> RequestOutput:
    fields = {"max_tokens": 60, "temperature": 1.0, "seed": 1} | fields
    sampling = SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, **fields)
    outputs = [output async for output in llm.generate(PROMPT, sampling, request_id)]
    return outputs[-1]


async def test_constraints_hold_and_bad_ones_are_refused_before_anything_is_queued(
    start: Start,
) -> None:
    llm = await start()
    constraint = StructuredOutputsParams(regex="[ab]{4}c")
    outputs = await asyncio.gather(
        *(
            last(llm, str(seed), seed=seed, temperature=2.0, structured_outputs=constraint)
            for seed in range(8)
        ),
        last(llm, "free", max_tokens=5),
        last(llm, "many", n=3, structured_outputs=constraint),
    )
    texts = [sample.text for output in (*outputs[:8], outputs[9]) for sample in output.outputs]
    assert len(texts) == 11
    assert all(re.fullmatch("[ab]{4}c", text) for text in texts)
    assert len(set(texts)) > 3
    assert len(outputs[8].outputs[0].token_ids) == 5
    with pytest.raises(ValidationError, match="unclosed group") as caught:
        await last(llm, "bad", structured_outputs=StructuredOutputsParams(regex="("))
    assert caught.value.parameter == "structured_outputs"
    assert llm.num_unfinished == 0


async def test_a_parser_at_its_limits_ends_its_own_request_with_the_cause(start: Start) -> None:
    llm = await start()
    many = {"type": "object", "properties": {f"v{i}": {"type": "null"} for i in range(1500)}}
    outcome, other = await asyncio.gather(
        last(llm, "many", structured_outputs=StructuredOutputsParams(json=many)),
        last(llm, "free", max_tokens=5),
        return_exceptions=True,
    )
    assert isinstance(outcome, ValidationError)
    assert "max is 2000" in outcome.message
    assert isinstance(other, RequestOutput)
    assert llm.num_unfinished == 0


async def test_sleep_waits_for_requests_and_holds_new_ones_back(start: Start) -> None:
    llm = await start(enable_sleep_mode=True)
    running = asyncio.create_task(last(llm, "running", max_tokens=150, ignore_eos=True))
    while llm.stats.running == 0:
        await asyncio.sleep(0.005)
    await llm.sleep(2, mode="wait")
    assert (await running).outputs[0].finish_reason == "length"
    assert await llm.is_sleeping()
    late = asyncio.create_task(last(llm, "late", max_tokens=3))
    await asyncio.sleep(0.2)
    assert not late.done()
    assert llm.stats.sleep_level == 2
    assert not await llm.wake_up(["weights"])
    assert await llm.wake_up()
    assert (await late).outputs[0].finish_reason is not None
    with pytest.raises(ValidationError, match="level"):
        await llm.sleep(7)


async def test_wake_up_answers_a_sleep_that_still_waits(start: Start) -> None:
    llm = await start()
    running = asyncio.create_task(last(llm, "running", max_tokens=200, ignore_eos=True))
    while llm.stats.running == 0:
        await asyncio.sleep(0.005)
    sleep = asyncio.create_task(llm.sleep(0, mode="wait"))
    await asyncio.sleep(0)  # its command is sent
    assert await llm.wake_up()
    with pytest.raises(ValidationError, match="woken up"):
        await sleep
    assert (await running).outputs[0].finish_reason == "length"


async def test_aborted_requests_say_so(start: Start) -> None:
    llm = await start()
    running = asyncio.create_task(last(llm, "running", max_tokens=200, ignore_eos=True))
    while llm.stats.running == 0:
        await asyncio.sleep(0.005)
    await llm.sleep(0)
    assert (await running).outputs[0].finish_reason == "abort"
    assert await llm.wake_up()


async def test_profiles_and_unknown_methods(start: Start, tmp_path: Path) -> None:
    llm = await start(profiler_dir=tmp_path / "profiles")
    await llm.start_profile("p")
    await last(llm, "r")
    path = await llm.stop_profile()
    assert path in [str(file) for file in (tmp_path / "profiles").iterdir()]
    with pytest.raises(ValidationError, match="no method"):
        await llm.control("shutdown")
    assert await llm.reset_prefix_cache(reset_running_requests=True)


async def test_a_constraint_that_the_engine_cannot_serve_is_refused_with_the_cause(
    start: Start, tmp_path: Path
) -> None:
    llm = await start(tokenizer=tmp_path / "nowhere")
    constraint = StructuredOutputsParams(regex="a")
    with pytest.raises(ValidationError, match=r"no tokenizer\.json"):
        await last(llm, "r", structured_outputs=constraint)
    try:
        await last(llm, "free", max_tokens=2)
    except GenerationError:
        pytest.fail("the engine goes on")
