"""A model on several devices of this node, which an engine's core runs as if it were on one.

    core ──launch──▶ TensorParallelRunner ──▶ rank 0's runner, in this process
                              └──the same, in few bytes──▶ ranks 1, 2, …, a process each

All ranks do the same in the same order. Their devices exchange what a step needs of the others;
rank 0 samples. A rank that fails or ends is the end of the engine.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from octavo_runtime.config import ResolvedConfig
from octavo_runtime.lora.adapter import LoRAAdapter
from octavo_runtime.model_config import ModelConfig
from octavo_runtime.parallel.shards import ModelShards
from octavo_runtime.worker.follower import join, use_device
from octavo_runtime.worker.followers import Followers
from octavo_runtime.worker.model_runner import RunningStep, SampleWork, StepResult
from octavo_runtime.worker.rank import new_rank_runner
from octavo_runtime.worker.rank_messages import Call, PutAdapter, StepWriter
from octavo_runtime.worker.shared_adapter import AdapterShare
from octavo_runtime.worker.step_input import StepSequence


@dataclass(frozen=True, slots=True)
class SharedStep:
    """Rank 0's part of a step that all ranks compute."""

    step: RunningStep
    followers: Followers

    def result(self) -> StepResult:
        with self.followers.together():
            result = self.step.result()
            self.followers.check()
        return result

    def is_done(self) -> bool:
        return self.step.is_done()


class TensorParallelRunner:
    """A `StepRunner`. Raises what the ranks raise, and `GenerationError` once one of them is gone;
    only what frees memory, and `close`, may follow then.
    """

    def __init__(
        self, config: ResolvedConfig, model_config: ModelConfig, max_model_len: int
    ) -> None:
        ModelShards(model_config, 0, config.tensor_parallel_size)  # refuses before it starts any
        self._num_threads = torch.get_num_threads()
        config = _of_each_rank(config)
        without_sampling = replace(config, logits_processors=(), logprobs_mode="raw_logprobs")
        self._writer = StepWriter()
        self._followers = Followers(without_sampling, max_model_len)
        with self._followers.together():
            use_device(0, config)
            self._followers.answers()
            group = join(0, config, self._followers.store)
            self._followers.end_exchanges_of(group)
            self._runner = new_rank_runner(config, model_config, max_model_len, group)
            self._followers.answers()
        self._adapters = AdapterShare(self._runner, model_config, group)

    # -- what rank 0's runner says ------------------------------------------------------------

    @property
    def model(self) -> Any:
        """Rank 0's shards of it."""
        return self._runner.model

    @property
    def overlaps(self) -> bool:
        return self._runner.overlaps

    @property
    def num_graphs(self) -> int:
        return self._runner.num_graphs

    @property
    def stages(self) -> dict[str, float]:
        return self._runner.stages

    @property
    def device(self) -> torch.device:
        return self._runner.device

    @property
    def dtype(self) -> torch.dtype:
        return self._runner.dtype

    @property
    def kv_dtype(self) -> torch.dtype:
        return self._runner.kv_dtype

    @property
    def kv_block_bytes(self) -> int:
        """On each rank."""
        return self._runner.kv_block_bytes

    @property
    def kv_caches(self) -> list[Any]:
        return self._runner.kv_caches

    @property
    def adapter_dtype(self) -> torch.dtype:
        return self._runner.adapter_dtype

    @property
    def adapter_targets(self) -> Mapping[str, tuple[int, int]]:
        """Of the whole model."""
        return self._adapters.targets

    # -- what all ranks do --------------------------------------------------------------------

    def launch(
        self,
        sequences: Sequence[StepSequence],
        work: SampleWork,
        released: Sequence[str] = (),
    ) -> SharedStep:
        with self._followers.together():
            self._followers.check()
            self._followers.send(self._writer.write(sequences, work, released))
            step = self._runner.launch(sequences, work, released)
        return SharedStep(step, self._followers)

    def set_adapter(self, slot: int, adapter: LoRAAdapter | None) -> None:
        lora_ranks = None
        if adapter is not None:
            lora_ranks = {name: len(each.a) for name, each in adapter.modules.items()}
        with self._followers.together():
            self._followers.send(PutAdapter(slot, lora_ranks))
            self._adapters.put(slot, lora_ranks, adapter)

    def kv_memory_bytes(self) -> int:
        """Of the rank that has least."""
        return min(int(each) for each in self._call("kv_memory_bytes"))

    def warm_up(self, max_model_len: int) -> None:
        self._call("warm_up", max_model_len)

    def load_model(self) -> None:
        self._call("load_model")

    def drop_model(self) -> None:
        self._call("drop_model")

    def offload_model(self) -> None:
        self._call("offload_model")

    def restore_model(self) -> None:
        self._call("restore_model")

    def allocate_kv_cache(self, num_blocks: int) -> None:
        self._call("allocate_kv_cache", num_blocks)

    def drop_kv_cache(self) -> None:
        self._writer = StepWriter()
        self._call("drop_kv_cache")

    def close(self) -> None:
        self._followers.close()
        torch.set_num_threads(self._num_threads)

    def _call(self, method: str, *arguments: int) -> list[Any]:
        """What each rank answers."""
        with self._followers.together():
            self._followers.send(Call(method, list(arguments)))
            own = getattr(self._runner, method)(*arguments)
            return [own, *self._followers.answers()]


def _of_each_rank(config: ResolvedConfig) -> ResolvedConfig:
    """The ranks of a CPU share its threads."""
    if config.device == "cuda":
        return config
    num_threads = config.num_threads or torch.get_num_threads()
    return replace(config, num_threads=max(1, num_threads // config.tensor_parallel_size))
