"""How large an encoder's steps are. They have no KV cache, and hold whole prompts."""

from dataclasses import replace

from octavo_protocol.errors import ConfigError
from octavo_runtime.config import EngineConfig
from octavo_runtime.worker.device import Device, resolve_device

# On a CPU larger steps use it better: all-MiniLM-L6-v2 took 14 % less of it per token with 1,024
# tokens than with 512, and 18 % less with 2,048, which a prompt that comes meanwhile waits for.
_MAX_NUM_SEQS: dict[Device, int] = {"cpu": 128, "cuda": 1024}
_MAX_NUM_BATCHED_TOKENS: dict[Device, int] = {"cpu": 1024, "cuda": 8192}
_MAX_NUM_SEQS_OFFLINE: dict[Device, int] = {"cpu": 256, "cuda": 1024}
_MAX_NUM_BATCHED_TOKENS_OFFLINE: dict[Device, int] = {"cpu": 2048, "cuda": 16384}


def with_encoder_limits(config: EngineConfig, max_model_len: int) -> EngineConfig:
    """`config` with the limits of a step that it leaves open; it then holds the longest prompt.

    Raises `ConfigError` where the given budget does not.
    """
    given = config.max_num_batched_tokens
    if given is not None and given < max_model_len:
        raise ConfigError(
            f"max_num_batched_tokens is {given}, but an encoder takes whole prompts of up to "
            f"max_model_len ({max_model_len}) tokens: raise it to that, or lower max_model_len"
        )
    device = resolve_device(config.device)
    seqs = _MAX_NUM_SEQS_OFFLINE if config.is_offline else _MAX_NUM_SEQS
    tokens = _MAX_NUM_BATCHED_TOKENS_OFFLINE if config.is_offline else _MAX_NUM_BATCHED_TOKENS
    budget = given or max(tokens[device], max_model_len, config.max_num_seqs or 0)
    return replace(
        config,
        max_num_seqs=config.max_num_seqs or min(seqs[device], budget),
        max_num_batched_tokens=budget,
    )
