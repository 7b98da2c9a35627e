"""`AsyncLLMEngine` over a real engine process, with a small random model."""

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.fakes.lora_adapters import write_adapter
from tests.fakes.tiny_model import write_tiny_model

from octavo import LLM, AsyncEngineArgs, AsyncLLMEngine, PoolingParams, SamplingParams
from octavo.exceptions import LoRAAdapterNotFoundError
from octavo.lora.request import LoRARequest
from octavo_protocol.errors import ConfigError, GenerationError, UnavailableError, ValidationError
from octavo_protocol.outputs import RequestOutput
from octavo_protocol.sampling_params import RequestOutputKind
from octavo_protocol.structured_outputs import StructuredOutputsParams

pytestmark = pytest.mark.asyncio(loop_scope="module")

GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
LONG = SamplingParams(temperature=0.0, max_tokens=400, ignore_eos=True)


def arguments(folder: Path, **more: Any) -> AsyncEngineArgs:
    return AsyncEngineArgs(str(folder), load_format="dummy", num_gpu_blocks_override=64, **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(folder: Path) -> AsyncIterator[AsyncLLMEngine]:
    engine = AsyncLLMEngine.from_engine_args(
        arguments(folder, enable_sleep_mode=True, enable_lora=True)
    )
    yield engine
    await engine.shutdown()


async def collect(
    engine: AsyncLLMEngine, prompt: Any, params: SamplingParams, request_id: str, **more: Any
) -> list[RequestOutput]:
    return [output async for output in engine.generate(prompt, params, request_id, **more)]


async def test_outputs_equal_those_of_the_engine_in_process(
    engine: AsyncLLMEngine, folder: Path
) -> None:
    prompts: list[Any] = ["the quick dog", [40, 41], {"prompt": "hello", "cache_salt": "t"}]

    streams = await asyncio.gather(
        *(collect(engine, prompt, GREEDY, str(i)) for i, prompt in enumerate(prompts))
    )

    with LLM(str(folder), load_format="dummy", num_gpu_blocks_override=64) as llm:
        expected = llm.generate(prompts, GREEDY, use_tqdm=False)
        assert (await engine.get_model_config()) == llm.model_config
    for stream, whole in zip(streams, expected, strict=True):
        assert [output.finished for output in stream] == [False] * (len(stream) - 1) + [True]
        assert stream[-1].outputs == whole.outputs
        assert (stream[-1].prompt, stream[-1].prompt_token_ids) == (
            whole.prompt,
            whole.prompt_token_ids,
        )


async def test_deltas_add_up_and_a_final_output_comes_alone(engine: AsyncLLMEngine) -> None:
    by_kind = {}
    for kind in RequestOutputKind:
        params = GREEDY.clone()
        params.output_kind = kind
        by_kind[kind] = await collect(engine, "dog", params, kind.name)

    [final] = by_kind[RequestOutputKind.FINAL_ONLY]
    deltas = by_kind[RequestOutputKind.DELTA]
    assert "".join(output.outputs[0].text for output in deltas) == final.outputs[0].text
    assert [t for output in deltas for t in output.outputs[0].token_ids] == list(
        final.outputs[0].token_ids
    )
    assert by_kind[RequestOutputKind.CUMULATIVE][-1].outputs == final.outputs


async def test_structured_outputs_and_truncation_are_honoured(engine: AsyncLLMEngine) -> None:
    params = SamplingParams(structured_outputs=StructuredOutputsParams(choice=["dog", "fox"]))

    outputs = await collect(
        engine, "the quick dog", params, "c", tokenization_kwargs={"truncate_prompt_tokens": 1}
    )

    assert outputs[-1].outputs[0].text in ("dog", "fox")
    assert len(outputs[-1].prompt_token_ids or ()) == 1


async def test_leaving_or_aborting_a_request_ends_it(engine: AsyncLLMEngine) -> None:
    async for _ in engine.generate("dog", LONG, "left"):
        break
    stream = engine.generate("dog", LONG, "aborted")
    await anext(stream)
    await engine.abort("aborted")
    await engine.abort(["aborted", "never seen"])
    await stream.aclose()  # type: ignore[attr-defined]

    assert (await collect(engine, "dog", GREEDY, "left"))[-1].finished
    assert await engine.reset_prefix_cache(reset_running_requests=True)


async def test_reader_of_an_aborted_request_gets_its_end(engine: AsyncLLMEngine) -> None:
    outputs = []

    async for output in engine.generate("dog", LONG, "aborted while read"):
        outputs.append(output)
        await engine.abort("aborted while read")

    assert [output.finished for output in outputs] == [False, True]
    assert outputs[-1].outputs[0].finish_reason == "abort"


async def test_id_that_is_in_use_is_refused_and_its_request_goes_on(engine: AsyncLLMEngine) -> None:
    stream = engine.generate("dog", LONG, "twice")
    await anext(stream)

    with pytest.raises(ValidationError, match="request id 'twice' is in use"):
        await collect(engine, "dog", GREEDY, "twice")

    assert (await anext(stream)).request_id == "twice"
    await stream.aclose()  # type: ignore[attr-defined]
    assert (await collect(engine, "dog", GREEDY, "twice"))[-1].finished


@pytest.mark.parametrize(
    ("prompt", "params", "more", "error", "message"),
    [
        ("", GREEDY, {}, ValidationError, "prompt cannot be empty"),
        ([1] * 600, GREEDY, {}, ValidationError, "600 tokens"),
        ("a", {}, {}, TypeError, "expected SamplingParams, got dict"),
        ("a", GREEDY, {"priority": "high"}, ValidationError, "priority must be an integer"),
        ("a", SamplingParams(stop="\ud800"), {}, ValidationError, "cannot cross to the engine"),
        (
            "a",
            SamplingParams(extra_args={"made": object()}),
            {},
            ValidationError,
            "cannot cross to the engine process: Encoding objects of type object",
        ),
        (7, GREEDY, {}, TypeError, "a prompt must be"),
        ("a", GREEDY, {"lora_request": "sql"}, TypeError, "expected LoRARequest, got str"),
        ("a", GREEDY, {"data_parallel_rank": 1}, ValidationError, "there is one engine"),
        ("a", GREEDY, {"tokenization_kwargs": {"x": 1}}, ValidationError, "no option 'x'"),
    ],
)
async def test_bad_request_is_refused_and_the_engine_goes_on(
    engine: AsyncLLMEngine,
    prompt: Any,
    params: Any,
    more: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        await collect(engine, prompt, params, "bad", **more)

    await engine.check_health()
    assert engine.is_running
    assert not engine.errored


async def test_pausing_and_sleeping_hold_requests_back(engine: AsyncLLMEngine) -> None:
    expected = await collect(engine, "dog", GREEDY, "before")

    await engine.pause_generation(mode="keep")
    waiting = asyncio.create_task(collect(engine, "dog", GREEDY, "while"))
    assert await engine.is_paused()
    await engine.resume_generation()
    assert (await waiting)[-1].outputs == expected[-1].outputs

    await engine.sleep(level=1)
    assert await engine.is_sleeping()
    assert await engine.wake_up() is True
    assert (await collect(engine, "dog", GREEDY, "after"))[-1].outputs == expected[-1].outputs


async def test_adapters_are_added_used_and_removed(
    engine: AsyncLLMEngine, folder: Path, tmp_path: Path
) -> None:
    one, other = (
        LoRARequest(name, seed, str(write_adapter(tmp_path / name, folder, seed=seed, scale=4.0)))
        for seed, name in ((1, "one"), (2, "other"))
    )
    wanted = [None, one, other, None, one, other]  # of which one at a time has a slot
    streams = await asyncio.gather(
        *(
            collect(engine, "dog", GREEDY, f"lora {i}", lora_request=each)
            for i, each in enumerate(wanted)
        )
    )
    ends = [stream[-1] for stream in streams]

    assert [end.outputs for end in ends[:3]] == [end.outputs for end in ends[3:]]
    assert len({end.outputs[0].text for end in ends}) == 3
    assert [end.lora_request for end in ends] == wanted
    assert await engine.list_loras() == {1, 2}
    assert (await engine.add_lora(one), await engine.pin_lora(1)) == (True, True)
    assert (await engine.pin_lora(7), await engine.remove_lora(7)) == (False, False)
    await engine.sleep(level=1)
    await engine.wake_up()
    awake = await collect(engine, "dog", GREEDY, "awake", lora_request=one)
    assert awake[-1].outputs == ends[1].outputs
    assert [await engine.remove_lora(number) for number in (1, 2)] == [True, True]
    assert await engine.list_loras() == set()
    with pytest.raises(LoRAAdapterNotFoundError, match="no such folder"):
        await engine.add_lora(LoRARequest("a", 1, "/nowhere"))


async def test_what_is_not_there_says_so(engine: AsyncLLMEngine) -> None:
    with pytest.raises(ValidationError, match="this model generates text: it takes generate"):
        await anext(engine.encode("a", PoolingParams(), "pool"))
    with pytest.raises(ValidationError, match=r"use LLM\.collective_rpc"):
        await engine.collective_rpc("f")
    with pytest.raises(ValidationError, match="profiler"):
        await engine.start_profile()
    assert (await engine.get_tokenizer()).vocab_size == 352


async def test_requests_after_the_end_are_refused(folder: Path) -> None:
    engine = AsyncLLMEngine.from_engine_args(arguments(folder))
    assert len(await collect(engine, "dog", GREEDY, "0")) > 0

    await engine.shutdown()

    assert (engine.is_running, engine.is_stopped, engine.errored) == (False, True, False)
    with pytest.raises(UnavailableError):
        await collect(engine, "dog", GREEDY, "1")


async def test_dead_engine_is_told_to_requests_and_health_checks(folder: Path) -> None:
    engine = AsyncLLMEngine.from_engine_args(arguments(folder))
    stream = engine.generate("dog", LONG, "0")
    await anext(stream)
    assert engine._engine is not None

    engine._engine._process.process.kill()

    with pytest.raises(GenerationError, match="ended"):
        async for _ in stream:
            pass
    assert engine.errored
    with pytest.raises(GenerationError, match="ended"):
        await engine.check_health()
    with pytest.raises(GenerationError, match="ended"):
        await collect(engine, "dog", GREEDY, "1")
    await engine.shutdown()


async def test_engine_that_cannot_start_says_why(folder: Path) -> None:
    engine = AsyncLLMEngine.from_engine_args(arguments(folder, max_model_len=4096))

    with pytest.raises(ConfigError, match="max_model_len is 4096"):
        await collect(engine, "dog", GREEDY, "0")
    await engine.shutdown()


async def test_arguments_that_only_fit_an_engine_in_process_are_refused(folder: Path) -> None:
    with pytest.raises(ValidationError, match="skip_tokenizer_init is for LLM"):
        AsyncLLMEngine.from_engine_args(arguments(folder, skip_tokenizer_init=True))
    with pytest.raises(ValidationError, match="put it into a module"):
        AsyncLLMEngine.from_engine_args(arguments(folder, logits_processors=["__main__:P"]))


async def test_engine_may_be_made_before_any_loop_runs(folder: Path) -> None:
    """The way of many scripts: the engine at the top, `asyncio.run` at the end."""
    script = f"""
        import asyncio
        from octavo import AsyncEngineArgs, AsyncLLMEngine, SamplingParams

        engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(
            {str(folder)!r}, load_format="dummy", num_gpu_blocks_override=64))

        async def main():
            params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
            async for output in engine.generate("dog", params, "0"):
                pass
            print(len(output.outputs[0].token_ids))
            await engine.shutdown()

        asyncio.run(main())
    """
    run = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert (run.returncode, run.stdout) == (0, "3\n"), run.stderr
