"""Two ranks of a GPU's runner, run on the CPU with the references of its kernels, the second one in
a thread: their outputs are those of one rank, while the host runs a step ahead.
"""

import pickle
import socket
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.lora_adapters import ALL_LINEAR, write_adapter
from tests.unit.runtime.gpu.test_device_path import adapted_answers, requests
from tests.unit.runtime.test_engine_sampling import PROMPT, engine, folder, generate

from octavo_kernels import use_cpu_backend
from octavo_runtime.config import LoRAConfig, ResolvedConfig
from octavo_runtime.engine.llm_engine import LLMEngine
from octavo_runtime.model_config import ModelConfig
from octavo_runtime.parallel.group import Group
from octavo_runtime.worker import follower, followers, tensor_parallel
from octavo_runtime.worker.gpu.runner import GpuModelRunner

__all__ = ["folder"]


class ThreadFollower:
    """A rank as `Followers` knows it. Its thread is its process."""

    def __init__(self, rank: int, *start: Any) -> None:
        self.rank = rank
        self.process = self
        self.returncode: int | None = None
        ours, theirs = socket.socketpair()
        self.connection = Connection(ours.detach())
        self.connection.send_bytes(pickle.dumps((rank, *start)))
        self._thread = threading.Thread(target=self._run, args=(Connection(theirs.detach()),))
        self._thread.start()

    def _run(self, connection: Connection) -> None:
        with connection:
            self.returncode = follower.serve(connection)

    def wait(self) -> None:
        self._thread.join()

    def kill(self) -> None: ...

    def stop(self, timeout_s: float) -> None:
        self.connection.close()
        self._thread.join(timeout_s)


def new_rank_runner(
    config: ResolvedConfig, model_config: ModelConfig, max_model_len: int, group: Group
) -> GpuModelRunner:
    return GpuModelRunner(config, model_config, max_model_len, device="cpu", group=group)


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[LLMEngine]:
    monkeypatch.setattr(followers, "_Follower", ThreadFollower)
    for module in (follower, tensor_parallel):
        monkeypatch.setattr(module, "new_rank_runner", new_rank_runner)
    with use_cpu_backend("reference"):
        llm = engine(
            folder,
            tensor_parallel_size=2,
            num_gpu_blocks_override=9,
            max_num_seqs=4,
            max_num_batched_tokens=16,
            lora=LoRAConfig(max_loras=2, max_cpu_loras=4),
            enable_sleep_mode=True,
        )
        yield llm
        llm.shutdown()


def test_outputs_are_those_of_one_rank(folder: Path, two_ranks: LLMEngine, tmp_path: Path) -> None:
    """Sampled on rank 0, on its host too; chunked, preempted, asleep in between, with adapters."""
    mixed = [*requests(), {"temperature": 0.0, "repetition_penalty": 1.5, "max_tokens": 9}]
    one = engine(folder, max_num_batched_tokens=16, lora=LoRAConfig(max_loras=2, max_cpu_loras=4))
    expected = generate(one, *[dict(each) for each in mixed])
    for level in (1, 2):
        actual = generate(two_ranks, *[dict(each) for each in mixed])
        for mine, theirs in zip(actual, expected, strict=True):
            assert mine.outputs[0].token_ids == theirs.outputs[0].token_ids
        two_ranks.sleep(level)
        two_ranks.wake_up()
    assert two_ranks.core.runner.overlaps
    assert two_ranks.core.scheduler.num_preemptions > 0

    folders = [
        write_adapter(tmp_path / str(seed), folder, seed=seed, targets=targets)
        for seed, targets in enumerate([ALL_LINEAR, ("down_proj", "embed_tokens", "lm_head")])
    ]
    answers = adapted_answers(one.core, folders, PROMPT, 6)
    assert adapted_answers(two_ranks.core, folders, PROMPT, 6) == answers
