"""How long sequences may be and how many KV blocks there are, from settings, model and memory."""

from collections.abc import Callable

from octavo_protocol.errors import ConfigError
from octavo_runtime.config import EngineConfig, ResolvedConfig
from octavo_runtime.model_config import ModelConfig


def max_model_len_limit(config: EngineConfig, model_config: ModelConfig) -> int:
    """The longest context that settings and model allow; -1 may make it shorter later."""
    limit = model_config.max_position_embeddings
    if config.max_model_len in (None, -1):
        return limit
    if not 2 <= config.max_model_len <= limit:
        raise ConfigError(
            f"max_model_len is {config.max_model_len}; this model takes 2 to {limit} tokens"
        )
    return config.max_model_len


def num_kv_blocks(
    config: ResolvedConfig,
    block_bytes: int,
    max_model_len: int,
    memory_bytes: Callable[[], int],
) -> int:
    """Blocks of the KV pool. Raises `ConfigError` when they cannot hold one full sequence.

    memory_bytes: what the device can give, where the settings do not say.
    """
    blocks_per_sequence = -(-max_model_len // config.block_size)
    if config.num_gpu_blocks_override is not None:
        num_blocks = config.num_gpu_blocks_override
    else:
        memory = config.kv_cache_memory_bytes
        if memory is None:
            memory = memory_bytes()
        num_blocks = min(memory // block_bytes, config.max_num_seqs * blocks_per_sequence)
    if num_blocks < (1 if config.max_model_len == -1 else blocks_per_sequence):
        num_tokens = num_blocks * config.block_size
        needed = blocks_per_sequence * block_bytes
        shorter = f" or set --max-model-len {num_tokens}" if num_blocks else ""
        raise ConfigError(
            f"the KV cache holds {num_blocks} blocks x {config.block_size} tokens = {num_tokens} "
            f"tokens, but max_model_len is {max_model_len}: it needs {blocks_per_sequence} blocks "
            f"x {block_bytes} bytes = {needed} bytes. Give it that much "
            f"(--kv-cache-memory-bytes, --gpu-memory-utilization){shorter}"
        )
    return num_blocks
