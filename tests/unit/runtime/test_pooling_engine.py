"""The pooling engine in this process: batches, aborts, sleep, priorities, and what it refuses."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.fakes.tiny_model import write_tiny_model
from tests.unit.models.encoder_checkpoints import VOCAB, write_checkpoint

from octavo_protocol.errors import ConfigError, UnavailableError, ValidationError
from octavo_protocol.pooling import LateChunkingParams, PoolingParams
from octavo_runtime.config import EngineConfig, PoolerConfig
from octavo_runtime.engine.llm_engine import LLMEngine
from octavo_runtime.engine.new_core import is_pooling, new_core
from octavo_runtime.engine.pooling_engine import Pooled, PoolingEngine

EMBED = PoolingParams()
MAX_LEN = 64
NewEngine = Callable[..., PoolingEngine]
# The lengths make every kind of step: many prompts, one alone, one that leaves no room.
PROMPTS = [
    np.random.default_rng(n).integers(5, VOCAB, n).tolist()
    for n in (1, 2, 3, 7, 16, 17, 31, 48, 63, 64)
]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    write_checkpoint(folder, "BertModel")
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("llama") / "tiny")


@pytest.fixture(scope="module")
def encoder(bert: Path) -> Iterator[PoolingEngine]:
    engine = PoolingEngine(EngineConfig(model=bert, dtype="float32", max_num_batched_tokens=80))
    yield engine
    engine.shutdown()


@pytest.fixture(scope="module")
def decoder(llama: Path) -> Iterator[PoolingEngine]:
    engine = PoolingEngine(decoder_config(llama))
    yield engine
    engine.shutdown()


@pytest.fixture(scope="module")
def encoder_alone(encoder: PoolingEngine) -> list[NDArray[np.float32]]:
    return [run(encoder, [prompt])[0] for prompt in PROMPTS]


@pytest.fixture(scope="module")
def decoder_alone(decoder: PoolingEngine) -> list[NDArray[np.float32]]:
    return [run(decoder, [prompt])[0] for prompt in PROMPTS]


@pytest.fixture
def new_engine() -> Iterator[NewEngine]:
    engines = []

    def new(config: EngineConfig) -> PoolingEngine:
        engines.append(PoolingEngine(config))
        return engines[-1]

    yield new
    for engine in engines:
        engine.shutdown()


def decoder_config(folder: Path, **options: Any) -> EngineConfig:
    fixed: dict[str, Any] = {
        "convert": "embed",
        "load_format": "dummy",
        "dtype": "float32",
        "max_model_len": MAX_LEN,
        "num_gpu_blocks_override": 6,
        "max_num_batched_tokens": 24,
        "max_num_seqs": 4,
    }
    return EngineConfig(model=folder, **fixed | options)


def finish(engine: PoolingEngine) -> list[Pooled]:
    outputs: list[Pooled] = []
    while engine.has_unfinished_requests():
        outputs += engine.step()
        engine.core.scheduler.check()
    assert not engine.core.has_work()
    return outputs


def run(
    engine: PoolingEngine, prompts: Sequence[list[int]], params: PoolingParams = EMBED
) -> list[NDArray[np.float32]]:
    for index, prompt in enumerate(prompts):
        engine.add_request(str(index), prompt, params)
    outputs = {int(output.request_id): output.outputs.data for output in finish(engine)}
    return [outputs[index] for index in range(len(prompts))]


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(chosen=st.lists(st.integers(0, len(PROMPTS) - 1), min_size=1, max_size=12))
def test_a_result_does_not_depend_on_what_runs_beside_it(
    request: pytest.FixtureRequest, kind: str, chosen: list[int]
) -> None:
    engine = request.getfixturevalue(kind)
    alone = request.getfixturevalue(f"{kind}_alone")

    together = run(engine, [PROMPTS[index] for index in chosen])

    for index, result in zip(chosen, together, strict=True):
        np.testing.assert_allclose(result, alone[index], atol=2e-6)


def test_an_encoder_has_no_kv_cache(encoder: PoolingEngine) -> None:
    info = encoder.info

    assert (info.num_blocks, info.enable_prefix_caching, info.max_model_len) == (0, False, MAX_LEN)
    assert info.pooling is not None
    assert info.pooling.is_encoder
    assert info.pooling.num_token_types == 2
    assert (info.runner_type, info.supported_tasks) == ("pooling", ("embed", "token_embed"))
    assert encoder.reset_prefix_cache() is True


def test_token_types_reach_the_encoder(encoder: PoolingEngine) -> None:
    prompt = PROMPTS[4]
    encoder.add_request("typed", prompt, EMBED, token_type_ids=[0] * 8 + [1] * 8)
    encoder.add_request("plain", prompt, EMBED)
    encoder.add_request("zero", prompt, EMBED, token_type_ids=[0] * 16)

    data = {output.request_id: output.outputs.data for output in finish(encoder)}

    np.testing.assert_allclose(data["plain"], data["zero"], atol=2e-6)
    assert abs(data["typed"] - data["plain"]).max() > 1e-3


def test_an_aborted_request_leaves_nothing_behind(decoder: PoolingEngine) -> None:
    expected = run(decoder, PROMPTS[-1:])[0]
    assert decoder.reset_prefix_cache() is True
    decoder.add_request("running", PROMPTS[-1], EMBED)
    decoder.add_request("waiting", PROMPTS[-2], EMBED)
    decoder.add_request("other", PROMPTS[-1], EMBED)
    assert decoder.step() == []

    decoder.abort_request(["running", "waiting", "unknown"])
    decoder.core.scheduler.check()
    decoder.add_request("running", PROMPTS[-1], EMBED)

    outputs = finish(decoder)
    assert [output.request_id for output in outputs] == ["other", "running"]
    for output in outputs:
        np.testing.assert_allclose(output.outputs.data, expected, atol=2e-6)
    assert decoder.stats.kv_usage == 0
    assert (decoder.stats.running, decoder.stats.waiting, decoder.stats.waiting_tokens) == (0, 0, 0)


@pytest.mark.parametrize(
    ("params", "pooling_type", "num_cached"),
    [
        (EMBED, None, [0, 48, 48]),
        (PoolingParams(skip_reading_prefix_cache=True), None, [0, 0, 0]),
        (PoolingParams(task="token_embed"), None, [0, 0, 0]),
        (EMBED, "MEAN", [0, 0, 0]),
    ],
)
def test_the_prefix_cache_is_read_where_only_the_last_token_counts(
    new_engine: NewEngine,
    llama: Path,
    params: PoolingParams,
    pooling_type: str | None,
    num_cached: list[int],
) -> None:
    pooler = PoolerConfig(seq_pooling_type=pooling_type)
    engine = new_engine(decoder_config(llama, pooler_config=pooler))
    first, same, longer = PROMPTS[-2], PROMPTS[-2], [*PROMPTS[-2], 9]
    seen = []

    for prompt in (first, same, longer):
        engine.add_request("r", prompt, params)
        seen += [output.num_cached_tokens for output in finish(engine)]

    assert seen == num_cached
    assert engine.stats.prefix_hit_tokens_total == sum(num_cached)


def test_urgent_prompts_come_first(new_engine: NewEngine, bert: Path) -> None:
    engine = new_engine(EngineConfig(model=bert, scheduling_policy="priority", max_num_seqs=1))
    for priority, name in ((1, "late"), (0, "first"), (1, "last"), (0, "second")):
        engine.add_request(name, PROMPTS[0], EMBED, priority=priority)

    assert [output.request_id for output in finish(engine)] == ["first", "second", "late", "last"]


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("mode", ["keep", "abort", "wait"])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_an_engine_pools_after_sleep_as_before(
    request: pytest.FixtureRequest, new_engine: NewEngine, kind: str, level: int, mode: str
) -> None:
    folder = request.getfixturevalue(kind)
    options: dict[str, Any] = {"enable_sleep_mode": True}
    engine = new_engine(
        decoder_config(folder, **options)
        if kind == "llama"
        else EngineConfig(model=folder, dtype="float32", **options)
    )
    expected = run(engine, PROMPTS[-1:])[0]
    assert engine.reset_prefix_cache() is True
    engine.add_request("r", PROMPTS[-1], EMBED)
    if kind == "llama":
        assert engine.step() == []  # in the middle of its chunks

    engine.sleep(level, mode)

    assert engine.is_sleeping()
    if mode == "keep":
        with pytest.raises(UnavailableError, match="the engine sleeps"):
            engine.step()
    assert engine.wake_up() is True
    outputs = finish(engine)
    assert [output.request_id for output in outputs] == ([] if mode == "abort" else ["r"])
    for output in outputs:
        np.testing.assert_allclose(output.outputs.data, expected, atol=2e-6)
    np.testing.assert_allclose(run(engine, PROMPTS[-1:])[0], expected, atol=2e-6)


@pytest.mark.parametrize(
    ("prompt", "options", "error", "message"),
    [
        ([], {}, ValidationError, "prompt cannot be empty"),
        ([5] * 65, {}, ValidationError, "the prompt has 65 tokens; this model takes 64: shorten"),
        ([5, VOCAB], {}, ValidationError, "token id 120 is outside the vocabulary of 120 tokens"),
        ([-1], {}, ValidationError, "token id -1 is outside the vocabulary"),
        ([float("nan")], {}, ValidationError, "prompt must be integers, got nan"),
        ([1.0], {}, ValidationError, "prompt must be integers, got 1.0"),
        ([True], {}, ValidationError, "prompt must be integers, got True"),
        (["a"], {}, ValidationError, "prompt must be integers, got 'a'"),
        ([5], {"task": "classify"}, ValidationError, "cannot classify: its tasks are embed, tok"),
        ([5], {"dimensions": 8}, ValidationError, "was trained for 64 dimensions alone"),
        ([5], {"step_tag_id": 3}, ValidationError, "step_tag_id is for token_classify, not for"),
        ([5], {"returned_token_ids": [3]}, ValidationError, "returned_token_ids is for token_cl"),
        ([5], {"extra_kwargs": {"a": 1}}, ValidationError, "extra_kwargs is not supported"),
        (
            [5],
            {"task": "token_embed", "late_chunking_params": LateChunkingParams(4)},
            ValidationError,
            "late_chunking_params is not supported",
        ),
    ],
)
def test_what_the_model_cannot_take_is_refused(
    encoder: PoolingEngine, prompt: Any, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        encoder.add_request("r", prompt, PoolingParams(**options))

    assert not encoder.has_unfinished_requests()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"token_type_ids": [0]}, ValidationError, "1 token_type_ids for 2 tokens"),
        ({"token_type_ids": [0, 2]}, ValidationError, "token_type_ids must be from 0 to 1"),
        ({"token_type_ids": [0, None]}, ValidationError, "token_type_ids must be integers"),
        ({"priority": "high"}, ValidationError, "priority must be an integer of 64 bits"),
        ({"request_id": 3}, TypeError, "request_id must be a string, not int"),
        ({"params": {"task": "embed"}}, TypeError, "expected PoolingParams, got dict"),
        ({"request_id": "known"}, ValidationError, "'known' is not finished yet"),
    ],
)
def test_a_request_that_cannot_be_one_is_refused(
    encoder: PoolingEngine, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    encoder.add_request("known", [5], EMBED)
    request: dict[str, Any] = {"request_id": "r", "params": EMBED} | options

    with pytest.raises(error, match=message):
        encoder.add_request(prompt_token_ids=[5, 6], **request)

    assert [output.request_id for output in finish(encoder)] == ["known"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runner": "generate"}, "runner is generate, but BertModel does not generate text"),
        ({"max_num_batched_tokens": 63}, "an encoder takes whole prompts of up to max_model_len"),
        ({"max_model_len": 65}, "max_model_len is 65; this model takes 2 to 64 tokens"),
    ],
)
def test_an_encoder_that_cannot_run_so_says_why(
    bert: Path, options: dict[str, Any], message: str
) -> None:
    settings: dict[str, Any] = {"max_num_seqs": 4} | options

    with pytest.raises(ConfigError, match=message):
        new_core(EngineConfig(model=bert, **settings))


@pytest.mark.parametrize(
    ("options", "pools"),
    [
        ({}, False),
        ({"runner": "generate"}, False),
        ({"runner": "pooling"}, True),
        ({"convert": "embed"}, True),
        ({"convert": "classify"}, True),
        ({"convert": "none"}, False),
    ],
)
def test_a_decoder_pools_where_it_is_told_to(
    llama: Path, options: dict[str, Any], pools: bool
) -> None:
    assert is_pooling(EngineConfig(model=llama, **options)) is pools


def test_a_decoder_with_files_of_sentence_transformers_pools(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "tiny")
    (folder / "modules.json").write_text("[]")

    assert is_pooling(EngineConfig(model=folder)) is True
    assert is_pooling(EngineConfig(model=folder, runner="generate")) is False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runner": "generate", "convert": "embed"}, "convert is embed, which is for pooling"),
        ({"runner": "pooling", "convert": "none"}, "it needs convert embed or classify"),
    ],
)
def test_contradictions_are_refused(llama: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        is_pooling(EngineConfig(model=llama, **options))


def test_an_engine_that_generates_does_not_pool(llama: Path) -> None:
    engine = LLMEngine(
        EngineConfig(model=llama, load_format="dummy", num_gpu_blocks_override=64), None
    )

    assert (engine.info.runner_type, engine.info.supported_tasks) == ("generate", ("generate",))
    engine.shutdown()
