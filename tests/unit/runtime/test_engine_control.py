"""Sleep, wake-up, prefix cache and profiles of an engine in this process."""

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.tiny_model import tiny_tokenizer, write_tiny_model

from octavo_protocol.errors import ConfigError, UnavailableError, ValidationError
from octavo_protocol.outputs import RequestOutput
from octavo_protocol.sampling_params import RequestOutputKind, SamplingParams
from octavo_protocol.structured_outputs import StructuredOutputsParams
from octavo_runtime.config import EngineConfig
from octavo_runtime.engine.llm_engine import LLMEngine

PROMPT = list(range(100, 140))
NewEngine = Callable[..., LLMEngine]


@pytest.fixture
def new_engine(tmp_path: Path) -> Iterator[NewEngine]:
    folder = write_tiny_model(tmp_path / "tiny")
    engines = []

    def new(**options: Any) -> LLMEngine:
        options = {"enable_sleep_mode": True, "num_gpu_blocks_override": 64} | options
        config = EngineConfig(model=folder, load_format="dummy", max_model_len=256, **options)
        engines.append(LLMEngine(config, tiny_tokenizer()))
        return engines[-1]

    yield new
    for engine in engines:
        engine.shutdown()


def add(llm: LLMEngine, request_id: str = "r", max_tokens: int = 20, **fields: Any) -> None:
    kind = RequestOutputKind.FINAL_ONLY
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, output_kind=kind, **fields)
    llm.add_request(request_id, PROMPT, sampling)


def finish(llm: LLMEngine) -> dict[str, RequestOutput]:
    outputs: dict[str, RequestOutput] = {}
    while llm.has_unfinished_requests():
        outputs |= {output.request_id: output for output in llm.step()}
        if not llm.is_sleeping():
            llm.core.scheduler.check()
    return outputs


def answer(llm: LLMEngine) -> list[int]:
    add(llm)
    return list(finish(llm)["r"].outputs[0].token_ids)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_an_engine_answers_after_sleep_as_before(new_engine: NewEngine, level: int) -> None:
    llm = new_engine()
    before = answer(llm)
    llm.sleep(level)
    assert llm.is_sleeping()
    assert llm.core.step().stats.sleep_level == level
    assert bool(llm.core.runner.kv_caches) == (level == 0)
    assert hasattr(llm.core.runner, "model") == (level < 2)
    assert llm.wake_up()
    assert not llm.is_sleeping()
    assert llm.core.step().stats.sleep_level is None
    assert answer(llm) == before


@pytest.mark.parametrize("level", [0, 1, 2])
def test_kept_requests_go_on_after_sleep(new_engine: NewEngine, level: int) -> None:
    llm = new_engine()
    expected = answer(llm)
    add(llm)
    for _ in range(5):
        llm.step()
    llm.sleep(level, mode="keep")
    assert not llm.core.has_work()
    llm.wake_up()
    assert finish(llm)["r"].outputs[0].token_ids == expected


def test_abort_ends_unfinished_requests_and_says_so(new_engine: NewEngine) -> None:
    llm = new_engine()
    add(llm, "running")
    llm.step()
    add(llm, "waiting")
    llm.sleep(1, mode="abort")
    outputs = finish(llm)
    assert {key: o.outputs[0].finish_reason for key, o in outputs.items()} == {
        "running": "abort",
        "waiting": "abort",
    }
    assert not llm.core.scheduler.has_work
    assert llm.wake_up()


def test_wait_finishes_requests_first(new_engine: NewEngine) -> None:
    llm = new_engine()
    add(llm)
    add(llm, "constrained", structured_outputs=StructuredOutputsParams(regex="[a-z]{3}"))
    llm.sleep(1, mode="wait")
    assert llm.is_sleeping()
    outputs = finish(llm)
    assert (outputs["r"].outputs[0].finish_reason) == "length"
    assert (outputs["constrained"].outputs[0].finish_reason) == "stop"


def test_requests_that_arrive_asleep_or_draining_wait(new_engine: NewEngine) -> None:
    llm = new_engine()
    expected = answer(llm)
    add(llm, "first")
    assert not llm.core.sleep(0, "wait")
    add(llm, "draining")
    assert llm.core.step().stats.waiting == 1
    while not llm.core.sleep(0, "wait"):
        llm.step()
    add(llm, "asleep")
    assert not llm.core.has_work()
    with pytest.raises(UnavailableError, match="wake_up"):
        llm.step()
    llm.wake_up()
    outputs = finish(llm)
    assert [outputs[key].outputs[0].token_ids for key in ("draining", "asleep")] == [expected] * 2


def test_held_requests_are_aborted_too(new_engine: NewEngine) -> None:
    llm = new_engine()
    add(llm, "first")
    assert not llm.core.sleep(0, "wait")
    add(llm, "held")
    llm.abort_request(["held", "first"])
    assert llm.core.sleep(0, "wait")
    llm.wake_up()
    assert not llm.core.has_work()


def test_parts_wake_one_by_one(new_engine: NewEngine) -> None:
    llm = new_engine()
    llm.sleep(2)
    assert not llm.wake_up(["weights"])
    assert llm.is_sleeping()
    assert hasattr(llm.core.runner, "model")
    assert not llm.core.runner.kv_caches
    assert not llm.wake_up(["scheduling"])  # it was not asleep by itself
    assert llm.wake_up(["kv_cache"])
    assert answer(llm)


def test_a_deeper_sleep_adds_to_a_lighter_one(new_engine: NewEngine) -> None:
    llm = new_engine()
    llm.sleep(0)
    llm.sleep(1)
    llm.sleep(2)
    assert not llm.wake_up(["weights", "kv_cache"])
    assert llm.wake_up(["scheduling"])
    assert answer(llm)


def test_weights_that_cannot_be_read_again_leave_the_engine_asleep(
    new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = new_engine()
    llm.sleep(2)

    def fail() -> None:
        raise ConfigError("the checkpoint is gone")

    with monkeypatch.context() as patched:
        patched.setattr(llm.core.runner, "load_model", fail)
        with pytest.raises(ConfigError, match="gone"):
            llm.wake_up()
    assert llm.is_sleeping()
    assert llm.wake_up()
    assert answer(llm)


@pytest.mark.parametrize("level", [1, 2])
def test_first_steps_without_room_leave_the_engine_asleep_and_its_memory_free(
    new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch, level: int
) -> None:
    llm = new_engine()
    llm.sleep(level)

    def fail(max_model_len: int) -> None:
        raise ConfigError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(llm.core.runner, "warm_up", fail)
        with pytest.raises(ConfigError, match="no room"):
            llm.wake_up()
    assert llm.is_sleeping()
    assert llm.core.runner.kv_caches == []
    assert llm.wake_up()
    assert answer(llm)


def test_sleep_forgets_the_prefix_cache_with_the_kv_cache(new_engine: NewEngine) -> None:
    llm = new_engine()
    answer(llm)
    llm.sleep(1)
    llm.wake_up()
    add(llm)
    assert finish(llm)["r"].num_cached_tokens == 0


@pytest.mark.parametrize(
    ("arguments", "parameter"),
    [((3,), "level"), ((-1,), "level"), (("1",), "level"), ((0, "later"), "mode")],
)
def test_an_unknown_sleep_is_refused(
    new_engine: NewEngine, arguments: tuple[Any, ...], parameter: str
) -> None:
    llm = new_engine()
    with pytest.raises(ValidationError) as caught:
        llm.sleep(*arguments)
    assert caught.value.parameter == parameter
    with pytest.raises(ValidationError, match="'all'"):
        llm.wake_up(["all"])
    assert not llm.is_sleeping()


def test_sleep_that_frees_memory_must_be_enabled(new_engine: NewEngine) -> None:
    llm = new_engine(enable_sleep_mode=False)
    with pytest.raises(ValidationError, match="enable_sleep_mode"):
        llm.sleep(1)
    llm.sleep(0)
    assert llm.is_sleeping()
    assert llm.wake_up()


def test_running_requests_can_be_made_to_compute_their_prefix_again(
    new_engine: NewEngine,
) -> None:
    llm = new_engine()
    expected = answer(llm)
    add(llm)
    for _ in range(4):
        llm.step()
    assert not llm.reset_prefix_cache()
    assert llm.reset_prefix_cache(reset_running_requests=True)
    assert llm.core.scheduler.pool.num_free == llm.info.num_blocks
    output = finish(llm)["r"]
    assert output.outputs[0].token_ids == expected
    assert llm.stats.preemptions_total == 1


def test_a_profile_is_written_where_it_was_configured(
    new_engine: NewEngine, tmp_path: Path
) -> None:
    folder = tmp_path / "profiles"
    llm = new_engine(profiler_dir=folder)
    with pytest.raises(ValidationError, match="no profile is running"):
        llm.stop_profile()
    llm.start_profile("mine")
    with pytest.raises(ValidationError, match="running already"):
        llm.start_profile()
    answer(llm)
    path = Path(llm.stop_profile())
    assert path.parent == folder
    assert path.name.startswith("mine-")
    with gzip.open(path) as file:
        assert json.load(file)["traceEvents"]
    llm.start_profile()
    llm.stop_profile()
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("prefix", ["../up", "a/b", "", "a" * 101, "a\0"])
def test_a_profile_stays_in_its_folder(new_engine: NewEngine, tmp_path: Path, prefix: str) -> None:
    llm = new_engine(profiler_dir=tmp_path / "profiles")
    with pytest.raises(ValidationError) as caught:
        llm.start_profile(prefix)
    assert caught.value.parameter == "profile_prefix"


def test_profiles_must_be_configured(new_engine: NewEngine) -> None:
    with pytest.raises(ValidationError, match="not configured"):
        new_engine().start_profile()
