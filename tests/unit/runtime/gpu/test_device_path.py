"""The runner of a GPU, run on the CPU with the references of its kernels: its outputs are those of
the CPU's runner, one step behind the device or not. Graphs and events are all that is missing here.
"""

import importlib.util
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.lora_adapters import ALL_LINEAR, write_adapter
from tests.unit.runtime.test_engine_sampling import PROMPT, TOKENIZER, engine, folder, generate

from octavo_kernels import use_cpu_backend
from octavo_kernels.sampling import gather_logprobs
from octavo_protocol.sampling_params import SamplingParams
from octavo_protocol.structured_outputs import StructuredOutputsParams
from octavo_runtime.config import LoRAConfig, ResolvedConfig
from octavo_runtime.engine import engine_core
from octavo_runtime.engine.llm_engine import LLMEngine
from octavo_runtime.engine.messages import EngineRequest
from octavo_runtime.model_config import ModelConfig
from octavo_runtime.worker.gpu import device_sampler, step_forward
from octavo_runtime.worker.gpu.runner import GpuModelRunner

__all__ = ["folder"]
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True}


@pytest.fixture
def device_engine(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Any]:
    """A function that makes engines with the device's runner."""
    has_triton = importlib.util.find_spec("triton") is not None

    def new_runner(
        config: ResolvedConfig, model_config: ModelConfig, max_model_len: int
    ) -> GpuModelRunner:
        made = GpuModelRunner(config, model_config, max_model_len, device="cpu")
        if has_triton:
            made._compile_kernels()  # goes through its steps; there is nothing to compile
        return made

    def new(**options: Any) -> LLMEngine:
        monkeypatch.setattr(engine_core, "new_model_runner", new_runner)
        made = engine(folder, **options)
        monkeypatch.undo()
        return made

    with use_cpu_backend("reference"):
        yield new


def requests() -> list[dict[str, Any]]:
    """Plain and not, of all lengths; some end by themselves."""
    return [
        GREEDY | {"prompt": PROMPT},
        GREEDY | {"prompt": PROMPT[:30], "max_tokens": 1},
        GREEDY | {"prompt": PROMPT[3:], "logprobs": 3},
        GREEDY | {"prompt": PROMPT[:1], "stop": [TOKENIZER.decode([PROMPT[5]])]},
        GREEDY | {"prompt": PROMPT + PROMPT, "ignore_eos": False, "max_tokens": 30},
    ]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_num_seqs": 2, "max_num_batched_tokens": 16},
        {"num_gpu_blocks_override": 9},
        {"enable_prefix_caching": False, "block_size": 8, "num_gpu_blocks_override": 40},
    ],
    ids=["all-at-once", "two-at-a-time", "preempted", "uncached"],
)
def test_outputs_are_those_of_the_cpu(
    folder: Path, device_engine: Any, options: dict[str, Any]
) -> None:
    expected = generate(engine(folder, **options), *requests())
    llm = device_engine(**options)

    for _ in range(2):  # the second time from the prefix cache
        actual = generate(llm, *requests())
        for mine, theirs in zip(actual, expected, strict=True):
            assert mine.outputs[0].token_ids == theirs.outputs[0].token_ids
            assert mine.outputs[0].finish_reason == theirs.outputs[0].finish_reason
            assert mine.outputs[0].text == theirs.outputs[0].text
    assert llm.core.scheduler.pool.num_free == llm.core.scheduler.pool.num_blocks


def test_log_probabilities_are_those_of_the_cpu(folder: Path, device_engine: Any) -> None:
    wanted = GREEDY | {"logprobs": 3, "prompt_logprobs": 2}
    [expected] = generate(engine(folder), dict(wanted))
    [actual] = generate(device_engine(), dict(wanted))

    for mine, theirs in (
        (actual.outputs[0].logprobs, expected.outputs[0].logprobs),
        (actual.prompt_logprobs, expected.prompt_logprobs),
    ):
        assert mine is not None
        assert theirs is not None
        for left, right in zip(mine, theirs, strict=True):
            assert (left is None) == (right is None)
            others = right or {}
            for token_id, found in (left or {}).items():
                assert found.rank == others[token_id].rank
                assert found.logprob == pytest.approx(others[token_id].logprob, abs=1e-4)


def test_seeded_draws_do_not_depend_on_neighbours_or_steps(device_engine: Any) -> None:
    drawn = {"temperature": 1.0, "seed": 7, "max_tokens": 20, "ignore_eos": True, "top_p": 0.9}
    [alone] = generate(device_engine(), dict(drawn))
    together = generate(
        device_engine(max_num_batched_tokens=16, max_num_seqs=8),
        dict(drawn),
        *requests(),
        drawn | {"seed": 8},
    )

    assert together[0].outputs[0].token_ids == alone.outputs[0].token_ids
    assert together[-1].outputs[0].token_ids != alone.outputs[0].token_ids


def test_rows_that_need_the_host_run_beside_plain_ones(folder: Path, device_engine: Any) -> None:
    rules: list[dict[str, Any]] = [
        GREEDY | {"repetition_penalty": 1.5},
        GREEDY | {"logit_bias": {9: 50.0}, "max_tokens": 3},
        GREEDY | {"ignore_eos": False, "min_tokens": 5},
        GREEDY | {"structured_outputs": StructuredOutputsParams(regex="[ab]{3}c")},
    ]
    both = [*rules, *requests()]
    expected = generate(engine(folder), *[dict(each) for each in both])
    actual = generate(device_engine(), *[dict(each) for each in both])

    for mine, theirs in zip(actual, expected, strict=True):
        assert mine.outputs[0].token_ids == theirs.outputs[0].token_ids
    assert re.fullmatch("[ab]{3}c", actual[3].outputs[0].text)


def test_the_host_is_one_step_behind(device_engine: Any) -> None:
    llm = device_engine()
    for name in ("a", "b"):
        llm.core.add_request(EngineRequest(name, PROMPT[:9], SamplingParams(max_tokens=3), 0.0))

    new_tokens = []
    while llm.core.has_work():
        new_tokens.append([len(each.new_token_ids) for each in llm.core.step().outputs])

    assert new_tokens == [[], [1, 1], [1, 1], [1, 1]]


def test_prompts_a_token_at_a_time_sample_at_their_end_alone(
    folder: Path, device_engine: Any
) -> None:
    """Such steps have one token of every sequence, and only some of them are sampled."""
    expected = generate(engine(folder), *requests())
    actual = generate(device_engine(long_prefill_token_threshold=1), *requests())

    for mine, theirs in zip(actual, expected, strict=True):
        assert mine.outputs[0].token_ids == theirs.outputs[0].token_ids


def test_blocks_that_do_not_fit_the_copy_of_a_step_are_sent_beside_it(
    monkeypatch: pytest.MonkeyPatch, folder: Path, device_engine: Any
) -> None:
    expected = generate(engine(folder), *requests())
    with monkeypatch.context() as patched:
        patched.setattr(step_forward, "_MAX_NEW_BLOCKS", 3)
        llm = device_engine()
    actual = generate(llm, *requests())

    for mine, theirs in zip(actual, expected, strict=True):
        assert mine.outputs[0].token_ids == theirs.outputs[0].token_ids


@pytest.mark.parametrize("level", [1, 2])
def test_requests_that_hold_all_rows_go_on_after_sleep(
    folder: Path, device_engine: Any, level: int
) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=9, ignore_eos=True)
    [expected] = generate(engine(folder), GREEDY | {"max_tokens": 9})
    llm = device_engine(max_num_seqs=2, enable_sleep_mode=True)
    for name in ("a", "b", "c"):
        llm.add_request(name, PROMPT, params)
    for _ in range(4):
        llm.step()

    for _ in range(2):  # the second time asleep already
        llm.sleep(level, mode="keep")
    llm.wake_up()
    done: dict[str, Any] = {}
    while llm.has_unfinished_requests():
        done |= {output.request_id: output.outputs[0].token_ids for output in llm.step()}

    assert done == dict.fromkeys(("a", "b", "c"), expected.outputs[0].token_ids)


def test_a_reader_of_many_log_probabilities_costs_its_neighbours_none(
    monkeypatch: pytest.MonkeyPatch, device_engine: Any
) -> None:
    """It is scored on the host; those of the device are gathered for the others alone."""
    gathered: list[int] = []

    def count(logits: Any, token_ids: Any, wanted: int) -> Any:
        gathered.append(wanted)
        return gather_logprobs(logits, token_ids, wanted)

    llm = device_engine(max_logprobs=-1)
    monkeypatch.setattr(device_sampler, "gather_logprobs", count)
    wanted = GREEDY | {"max_tokens": 2}
    generate(llm, wanted | {"logprobs": -1}, wanted | {"logprobs": 2})

    assert gathered == [2, 2]


def test_an_engine_of_one_sequence_starts_and_answers(folder: Path, device_engine: Any) -> None:
    [expected] = generate(engine(folder, max_num_seqs=1), dict(GREEDY))
    [actual] = generate(device_engine(max_num_seqs=1), dict(GREEDY))

    assert actual.outputs[0].token_ids == expected.outputs[0].token_ids


def adapted_answers(
    core: Any, folders: Sequence[Path], prompt: Sequence[int], count: int
) -> list[list[int]]:
    """Greedy tokens of requests of all lengths, with each adapter in turn and with none."""
    identities = [""]
    for number, adapter in enumerate(folders):
        answer = core.load_adapter(str(number), str(adapter))
        core.finish_loads()
        identities.append(f"{number}@{answer.result(0)['version']}")
    tokens: dict[str, list[int]] = {}
    for number in range(count):
        params = SamplingParams(temperature=0.0, max_tokens=3 + number, ignore_eos=True)
        adapter_name = identities[number % len(identities)]
        tokens[str(number)] = []
        core.add_request(
            EngineRequest(
                str(number), list(prompt[: 1 + 3 * number]), params, 0.0, adapter=adapter_name
            )
        )
    while core.has_work():
        for output in core.step().outputs:
            tokens[output.request_id] += output.new_token_ids
    return list(tokens.values())


def test_answers_with_adapters_are_those_of_the_cpu(
    folder: Path, device_engine: Any, tmp_path: Path
) -> None:
    """More adapters than slots: they are copied while a step runs that the next one overlaps."""
    kinds: list[dict[str, Any]] = [
        {"rank": 8, "targets": ALL_LINEAR},
        {"rank": 16},
        {"rank": 1, "targets": ("down_proj", "embed_tokens", "lm_head")},
    ]
    folders = [
        write_adapter(tmp_path / str(seed), folder, seed=seed, **each)
        for seed, each in enumerate(kinds)
    ]
    lora = LoRAConfig(max_loras=2, max_cpu_loras=4)
    options: dict[str, Any] = {"max_num_batched_tokens": 16, "max_num_seqs": 4, "lora": lora}
    expected = adapted_answers(engine(folder, **options).core, folders, PROMPT, 6)
    core = device_engine(**options).core

    assert adapted_answers(core, folders, PROMPT, 6) == expected
    assert len({tuple(tokens) for tokens in expected}) == len(expected)
    assert core.scheduler.pool.num_free == core.scheduler.pool.num_blocks
