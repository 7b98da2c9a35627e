"""Two ranks on the CPU, the second one a real process: in fp32 their answers are those of one."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fakes.lora_adapters import ALL_LINEAR, write_adapter
from tests.unit.runtime.gpu.test_device_path import adapted_answers
from tests.unit.runtime.test_engine_sampling import PROMPT, engine, folder, generate

from octavo_protocol.errors import ConfigError, GenerationError
from octavo_protocol.outputs import RequestOutput
from octavo_protocol.structured_outputs import StructuredOutputsParams
from octavo_runtime.config import EngineConfig, LoRAConfig
from octavo_runtime.engine.llm_engine import LLMEngine
from octavo_runtime.engine.new_core import new_core
from octavo_runtime.worker import follower
from octavo_runtime.worker.tensor_parallel import TensorParallelRunner

__all__ = ["folder"]
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True}
OPTIONS: dict[str, Any] = {
    "num_gpu_blocks_override": 9,  # of 16 tokens: fewer than the requests need together
    "max_num_seqs": 6,
    "max_num_batched_tokens": 16,
    "enable_sleep_mode": True,
    "max_logprobs": 5,
    "lora": LoRAConfig(max_loras=2, max_cpu_loras=4),
}


def processes(llm: LLMEngine) -> list[Any]:
    runner = llm.core.runner
    assert isinstance(runner, TensorParallelRunner)
    return [each.process for each in runner._followers._processes.followers]


@pytest.fixture(scope="module")
def two(folder: Path) -> Iterator[LLMEngine]:
    num_threads = torch.get_num_threads()
    llm = engine(folder, tensor_parallel_size=2, **OPTIONS)
    started = processes(llm)
    yield llm
    llm.shutdown()
    assert [process.poll() for process in started] == [0]
    assert torch.get_num_threads() == num_threads


@pytest.fixture(scope="module")
def one(folder: Path) -> LLMEngine:
    return engine(folder, **OPTIONS)


def requests() -> list[dict[str, Any]]:
    return [
        GREEDY | {"prompt": PROMPT},
        GREEDY | {"prompt": PROMPT[:30], "max_tokens": 1},
        GREEDY | {"prompt": PROMPT[3:], "logprobs": 3},
        GREEDY | {"prompt": PROMPT[:7], "prompt_logprobs": 2},
        GREEDY | {"prompt": PROMPT + PROMPT, "max_tokens": 30},
        {"prompt": PROMPT[:9], "seed": 3, "max_tokens": 9, "top_p": 0.9, "ignore_eos": True},
        GREEDY | {"structured_outputs": StructuredOutputsParams(regex="[ab]{3}c")},
    ]


def tokens_of(outputs: list[RequestOutput]) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]


def test_answers_are_those_of_one_rank(one: LLMEngine, two: LLMEngine) -> None:
    """Chunked, preempted, and the second time from the prefix cache."""
    expected = generate(one, *requests())
    for _ in range(2):
        actual = generate(two, *requests())
        assert tokens_of(actual) == tokens_of(expected)
    scored = actual[3].prompt_logprobs
    assert scored is not None
    for mine, theirs in zip(scored, expected[3].prompt_logprobs or (), strict=True):
        for token_id, found in (theirs or {}).items():
            assert (mine or {})[token_id].logprob == pytest.approx(found.logprob, abs=1e-4)
    scheduler = two.core.scheduler
    assert scheduler.num_preemptions > 0
    assert scheduler.num_hit_tokens > 0
    assert scheduler.pool.num_free == scheduler.pool.num_blocks


def test_answers_with_adapters_are_those_of_one_rank(
    one: LLMEngine, two: LLMEngine, folder: Path, tmp_path: Path
) -> None:
    kinds: list[dict[str, Any]] = [
        {"rank": 8, "targets": ALL_LINEAR},
        {"rank": 16, "targets": ("o_proj", "k_proj")},
        {"rank": 1, "targets": ("down_proj", "embed_tokens", "lm_head")},
    ]
    folders = [
        write_adapter(tmp_path / str(seed), folder, seed=seed, **each)
        for seed, each in enumerate(kinds)
    ]
    expected = adapted_answers(one.core, folders, PROMPT, 6)

    assert adapted_answers(two.core, folders, PROMPT, 6) == expected
    assert len({tuple(tokens) for tokens in expected}) == len(expected)


@pytest.mark.parametrize("level", [1, 2])
def test_all_ranks_sleep_and_wake_up(one: LLMEngine, two: LLMEngine, level: int) -> None:
    expected = generate(one, GREEDY | {})
    two.sleep(level)
    assert two.wake_up()

    assert tokens_of(generate(two, GREEDY | {})) == tokens_of(expected)


def test_a_rank_that_dies_ends_the_engine(folder: Path) -> None:
    """Qwen3's shape, of weights that are drawn: the same on one rank and on two."""
    options: dict[str, Any] = {
        "load_format": "dummy",
        "hf_overrides": {"architectures": ["Qwen3ForCausalLM"], "tie_word_embeddings": True},
    }
    expected = tokens_of(generate(engine(folder, **options), GREEDY | {}))
    llm = engine(folder, tensor_parallel_size=2, **options)
    assert tokens_of(generate(llm, GREEDY | {})) == expected
    started = processes(llm)
    os.kill(started[0].pid, signal.SIGKILL)

    with pytest.raises(GenerationError, match="rank 1 ended with status -9"):
        generate(llm, GREEDY | {})

    assert [process.poll() for process in started] == [-signal.SIGKILL]
    llm.shutdown()


def test_a_rank_ends_with_rank_0() -> None:
    """Its standard input ends then, and nothing else: the socket may have been inherited."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-m", follower.__name__, str(theirs.fileno())]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[theirs.fileno()])
        process.communicate(timeout=60)

    assert process.returncode == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tensor_parallel_size": 3}, "cannot be divided among so many: set it to 1, 2, 4"),
        ({"tensor_parallel_size": 2, "runner": "pooling"}, "models that pool run on one device"),
    ],
)
def test_what_cannot_be_divided_is_refused_before_any_process_is_started(
    folder: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        new_core(EngineConfig(model=folder, device="cpu", **options))
