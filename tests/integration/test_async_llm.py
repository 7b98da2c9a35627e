"""`AsyncLLM` over an engine process: what callers get when either side goes away."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.tiny_model import tiny_tokenizer, write_tiny_model

from octavo_protocol.errors import (
    ConfigError,
    GenerationError,
    UnavailableError,
    ValidationError,
)
from octavo_protocol.records import BlocksStored, KVEvent
from octavo_protocol.sampling_params import RequestOutputKind, SamplingParams
from octavo_runtime.config import EngineConfig
from octavo_runtime.engine.async_llm import AsyncLLM

pytestmark = [pytest.mark.integration]

REPOSITORY = Path(__file__).parents[2]
PROMPT = list(range(100, 140))
DEADLINE_S = 120.0
Start = Callable[..., Awaitable[AsyncLLM]]


@pytest.fixture
async def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
    """Starts engines that end with the test. step_s, start_s, failure: see `FakeEngineCore`."""
    engines: list[AsyncLLM] = []
    config = EngineConfig(model=write_tiny_model(tmp_path / "tiny"), max_model_len=256)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY), prepend=os.pathsep)

    async def start(
        *, wait: bool = True, step_s: float = 0.0, start_s: float = 0.0, failure: str = ""
    ) -> AsyncLLM:
        monkeypatch.setenv("OCTAVO_FAKE_STEP_S", str(step_s))
        monkeypatch.setenv("OCTAVO_FAKE_START_S", str(start_s))
        monkeypatch.setenv("OCTAVO_FAKE_FAILURE", failure)
        factory = "tests.fakes.fake_engine_core:FakeEngineCore"
        llm = AsyncLLM.start(config, tiny_tokenizer(), core_factory=factory)
        engines.append(llm)
        if wait:
            await asyncio.wait_for(llm.wait_ready(), DEADLINE_S)
        return llm

    yield start
    for llm in engines:
        await llm.shutdown()


def params(**fields: Any) -> SamplingParams:
    return SamplingParams(max_tokens=200, output_kind=RequestOutputKind.DELTA, **fields)


async def until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


async def is_free(llm: AsyncLLM) -> bool:
    """Nothing runs and no block is held, as far as the engine's newest statistics tell."""
    await until(lambda: llm.stats.running == 0 and llm.stats.kv_usage == 0, "blocks are freed")
    return llm.num_unfinished == 0


async def consume(llm: AsyncLLM, request_id: str) -> int:
    num_tokens = 0
    async for output in llm.generate(PROMPT, params(), request_id):
        num_tokens += len(output.outputs[0].token_ids)
    return num_tokens


async def test_outputs_come_until_the_last_one_is_finished(start: Start) -> None:
    llm = await start()

    outputs = [output async for output in llm.generate(PROMPT, params(), "r", prompt_text="p")]

    assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
    assert sum(len(output.outputs[0].token_ids) for output in outputs) == 200
    assert outputs[-1].prompt == "p"
    assert outputs[-1].outputs[0].finish_reason == "length"
    assert llm.num_unfinished == 0


@pytest.mark.parametrize("n", [1, 3])
async def test_closing_the_iterator_frees_the_request(start: Start, n: int) -> None:
    llm = await start(step_s=0.05)
    async with aclosing(llm.generate(PROMPT, params(n=n, seed=1), "r")) as outputs:  # type: ignore[type-var]
        await anext(outputs)
        await until(lambda: llm.stats.running == n, "all samples run")

    assert await is_free(llm)
    assert await consume(llm, "r") == 200  # its id can be used again


async def test_cancelling_the_consumer_frees_the_request(start: Start) -> None:
    llm = await start(step_s=0.05)
    task = asyncio.create_task(consume(llm, "r"))
    await until(lambda: llm.stats.running == 1, "the request runs")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert await is_free(llm)


async def test_stop_string_frees_the_request_in_the_engine(start: Start) -> None:
    llm = await start(step_s=0.05)
    prompt = llm.tokenizer.encode("the dog sleeps ")

    outputs = [o async for o in llm.generate(prompt, params(stop=["dog"]), "r")]

    assert "".join(o.outputs[0].text for o in outputs) == "the "
    assert (outputs[-1].outputs[0].finish_reason, outputs[-1].outputs[0].stop_reason) == (
        "stop",
        "dog",
    )
    assert await is_free(llm)


async def test_refused_requests_leave_nothing_behind(start: Start) -> None:
    llm = await start()
    for prompt in ([], [1] * 256, [-1], [10**6]):
        with pytest.raises(ValidationError):
            await anext(llm.generate(prompt, params(), "r"))

    assert llm.num_unfinished == 0
    assert await consume(llm, "r") == 200


async def test_prefix_cache_is_reset_unless_requests_run(start: Start) -> None:
    llm = await start(step_s=0.05)
    task = asyncio.create_task(consume(llm, "r"))
    await until(lambda: llm.stats.running == 1, "the request runs")

    assert await llm.reset_prefix_cache() is False
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await is_free(llm)
    assert await llm.reset_prefix_cache() is True


async def test_events_reach_those_who_listen(start: Start) -> None:
    llm = await start()
    seen: list[KVEvent] = []
    llm.on_kv_events(seen.extend)

    await consume(llm, "r")

    assert sum(len(event.hashes) for event in seen if isinstance(event, BlocksStored)) > 2


async def test_a_killed_engine_fails_every_request(start: Start) -> None:
    llm = await start(step_s=0.05)
    tasks = [asyncio.create_task(consume(llm, str(i))) for i in range(4)]
    await until(lambda: llm.stats.running == 4, "all run")
    os.kill(llm._process.process.pid, signal.SIGKILL)

    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), DEADLINE_S)

    assert [str(each) for each in results] == ["the engine process ended with status -9"] * 4
    assert all(isinstance(each, GenerationError) for each in results)
    assert not llm.is_healthy
    with pytest.raises(UnavailableError):
        await consume(llm, "late")


async def test_a_report_that_cannot_be_handled_fails_requests_instead_of_stranding_them(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    llm = await start()

    def broken(events: list[KVEvent]) -> None:
        raise RuntimeError("a listener that fails")

    llm.on_kv_events(broken)

    with pytest.raises(GenerationError, match="the engine process ended"):
        await asyncio.wait_for(consume(llm, "r"), DEADLINE_S)

    assert not llm.is_healthy
    assert "a listener that fails" in caplog.text


async def test_shutdown_fails_what_still_runs(start: Start) -> None:
    llm = await start(step_s=0.05)
    task = asyncio.create_task(consume(llm, "r"))
    await until(lambda: llm.stats.running == 1, "the request runs")

    await llm.shutdown()

    with pytest.raises(UnavailableError, match="stopping"):
        await task
    assert not llm.is_healthy


async def test_shutdown_does_not_wait_for_a_load(start: Start) -> None:
    llm = await start(wait=False, start_s=600.0)
    assert llm.is_healthy
    assert not llm.is_ready
    with pytest.raises(UnavailableError):
        await consume(llm, "early")

    async with asyncio.timeout(60.0):
        await llm.shutdown()


async def test_a_start_that_fails_says_why(start: Start) -> None:
    llm = await start(wait=False, failure="the model does not fit")

    with pytest.raises(ConfigError, match="the model does not fit"):
        await asyncio.wait_for(llm.wait_ready(), DEADLINE_S)
