"""One device's model and KV cache: loaded, put to sleep, woken up."""

import time
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn

from octavo_kernels.kv_cache import new_kv_cache
from octavo_protocol.errors import ConfigError
from octavo_runtime.config import ResolvedConfig
from octavo_runtime.layers.attention import KVCache
from octavo_runtime.model_config import ModelConfig, resolve_dtype, resolve_kv_cache_dtype
from octavo_runtime.models.loader import load_dummy_weights, load_weights
from octavo_runtime.parallel.shards import ModelShards


class LoadedModel(ABC):
    """Loads a model onto `device` and owns its KV cache. A subclass runs steps with it.

    stages: seconds of start-up by stage, in order. shards: the parts of the weights that this
    device has, where `model_config` is that of these; None: it has all.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        model_config: ModelConfig,
        device: str,
        shards: ModelShards | None = None,
    ) -> None:
        self.stages: dict[str, float] = {}
        self.device = torch.device(device)
        self.model_config = model_config
        self._shards = shards
        self.block_size = config.block_size
        self.dtype = resolve_dtype(config.dtype, model_config.dtype, device)
        self.kv_dtype = resolve_kv_cache_dtype(config.kv_cache_dtype, self.dtype, self.device.type)
        self.kv_caches: list[KVCache] = []
        self._config = config
        started = time.perf_counter()
        self.load_model()
        self.stages["weights"] = time.perf_counter() - started

    @abstractmethod
    def _build(self) -> nn.Module:
        """The model with empty weights. Raises `ConfigError`."""

    @abstractmethod
    def kv_memory_bytes(self) -> int:
        """What the KV cache may take of this device's memory. Raises `ConfigError`."""

    @abstractmethod
    def warm_up(self, max_model_len: int) -> None:
        """Pays what the first steps would cost more; writes only to block 0 and its successors."""

    @property
    def kv_block_bytes(self) -> int:
        """Bytes of one block over all layers, keys and values."""
        config = self.model_config
        elements = 2 * config.num_layers * self.block_size * config.num_kv_heads * config.head_dim
        return elements * self.kv_dtype.itemsize

    def load_model(self) -> None:
        """Builds the model and reads its weights; also what `drop_model` gave up.

        Raises `ConfigError` where they cannot be read or do not fit.
        """
        with torch.device(self.device):
            self.model: Any = self._build()
        if self._config.load_format == "dummy":
            load_dummy_weights(self.model, self._config.seed, self._shards)
        else:
            load_weights(self.model, self._config.model, shards=self._shards)

    def drop_model(self) -> None:
        """Frees the weights; no step may follow before `load_model`. Again: nothing."""
        self.__dict__.pop("model", None)

    def offload_model(self) -> None:  # noqa: B027  # a CPU's weights are there already
        """Moves the weights to host memory; no step may follow before `restore_model`."""

    def restore_model(self) -> None:  # noqa: B027
        """Takes back what `offload_model` moved. Raises `ConfigError`; may then be repeated."""

    def close(self) -> None:  # noqa: B027
        """Ends what else it has started; no call may follow."""

    def allocate_kv_cache(self, num_blocks: int) -> None:
        """Raises `ConfigError` with the arithmetic when the memory cannot be had."""
        config = self.model_config
        try:
            self.kv_caches = [
                KVCache(
                    *new_kv_cache(
                        num_blocks,
                        self.block_size,
                        config.num_kv_heads,
                        config.head_dim,
                        dtype=self.kv_dtype,
                        device=self.device,
                    )
                )
                for _ in range(config.num_layers)
            ]
        except RuntimeError as error:
            raise ConfigError(
                f"cannot allocate the KV cache: {num_blocks} blocks x {self.kv_block_bytes} bytes "
                f"= {num_blocks * self.kv_block_bytes / 2**30:.2f} GiB. Lower "
                "--kv-cache-memory-bytes or --max-model-len"
            ) from error

    def drop_kv_cache(self) -> None:
        """Frees the KV cache; no step may follow before `allocate_kv_cache`."""
        self.kv_caches.clear()
