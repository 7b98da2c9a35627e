"""Which core runs a model: the one that generates or the one that pools."""

from octavo_runtime.config import EngineConfig
from octavo_runtime.engine.engine_core import EngineCore
from octavo_runtime.engine.pooling_core import PoolingCore
from octavo_runtime.model_config import ModelConfig
from octavo_runtime.models.runner_type import resolve_runner


def new_core(config: EngineConfig) -> EngineCore | PoolingCore:
    """The core with its model loaded. Raises `ConfigError` when it cannot be."""
    return PoolingCore(config) if is_pooling(config) else EngineCore(config)


def is_pooling(config: EngineConfig) -> bool:
    """Whether the model pools under these settings. Raises `ConfigError`."""
    architecture = ModelConfig.from_folder(config.model, config.hf_overrides).architecture
    return resolve_runner(config, architecture).runner == "pooling"
