"""One model on two GPUs: in fp32 its answers are those of one GPU, with graphs and without."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fakes.lora_adapters import ALL_LINEAR, write_adapter
from tests.gpu.conftest import PROMPT, NewEngine, Replays, TinyModel
from tests.gpu.test_engine_on_gpu import DRAWN, GREEDY, keep_device_busy, requests, tokens_of
from tests.unit.runtime.gpu.test_device_path import adapted_answers
from tests.unit.runtime.test_engine_sampling import generate

from octavo_protocol.errors import GenerationError
from octavo_runtime.config import LoRAConfig
from octavo_runtime.worker.tensor_parallel import TensorParallelRunner

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        torch.cuda.device_count() < 2, reason="needs two GPUs that torch sees in this machine"
    ),
]


def mixed() -> list[dict[str, Any]]:
    """Greedy ones, drawn ones, and one that is sampled on the host."""
    return [*requests(), DRAWN | {"prompt": PROMPT}, GREEDY | {"repetition_penalty": 1.5}]


@pytest.mark.parametrize(
    "options",
    [
        {"enable_sleep_mode": True, "lora": LoRAConfig(max_loras=2, max_cpu_loras=4)},
        {"enforce_eager": True, "num_gpu_blocks_override": 9, "max_num_batched_tokens": 16},
        {"num_gpu_blocks_override": None, "gpu_memory_utilization": 0.3, "kv_cache_dtype": "fp8"},
    ],
    ids=["graphs-adapters-sleep", "eager-chunked-preempted", "profiled-fp8"],
)
def test_answers_are_those_of_one_gpu(
    tiny: TinyModel,
    new_engine: NewEngine,
    replays: Replays,
    tmp_path: Path,
    options: dict[str, Any],
) -> None:
    one, two = (new_engine(**options, tensor_parallel_size=size) for size in (1, 2))
    expected = tokens_of(generate(one, *mixed()))
    replays.count = 0
    for level in (0, 1, 2):  # the second time from the prefix cache, or after sleep
        keep_device_busy()
        assert tokens_of(generate(two, *mixed())) == expected
        if level and "enable_sleep_mode" in options:
            two.sleep(level)
            assert two.wake_up()
    assert (replays.count > 0) == ("enforce_eager" not in options)
    assert two.core.scheduler.pool.num_free == two.core.scheduler.pool.num_blocks
    if "lora" in options:
        folders = [
            write_adapter(tmp_path / str(seed), tiny.folder, seed=seed, targets=targets)
            for seed, targets in enumerate(
                [ALL_LINEAR, ("q_proj", "embed_tokens", "lm_head"), ("o_proj", "down_proj")]
            )
        ]
        answers = adapted_answers(one.core, folders, PROMPT, 14)
        assert adapted_answers(two.core, folders, PROMPT, 14) == answers


def test_a_rank_that_dies_while_the_gpus_wait_for_it_ends_the_engine(
    new_engine: NewEngine,
) -> None:
    llm = new_engine(tensor_parallel_size=2)
    expected = tokens_of(generate(llm, GREEDY | {}))
    assert tokens_of(generate(llm, GREEDY | {})) == expected
    runner = llm.core.runner
    assert isinstance(runner, TensorParallelRunner)
    [process] = [each.process for each in runner._followers._processes.followers]
    os.kill(process.pid, signal.SIGSTOP)  # it takes part in nothing more
    killer = threading.Timer(1.0, os.kill, (process.pid, signal.SIGKILL))
    killer.start()

    with pytest.raises(GenerationError, match="rank 1 ended with status -9"):
        generate(llm, GREEDY | {"max_tokens": 40})

    killer.join()
    assert process.poll() == -signal.SIGKILL
