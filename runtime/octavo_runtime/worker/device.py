"""Which device an engine runs on."""

import torch

from octavo_protocol.errors import ConfigError
from octavo_runtime.config import EngineConfig
from octavo_runtime.model_config import ModelConfig
from octavo_runtime.worker.cpu_runner import CpuModelRunner
from octavo_runtime.worker.model_runner import ModelRunner


def resolve_device(wanted: str) -> str:
    """ "cpu" or "cuda"; auto is a GPU where there is one. Raises `ConfigError`."""
    has_gpu = torch.cuda.is_available()
    if wanted == "auto":
        return "cuda" if has_gpu else "cpu"
    if wanted == "cuda" and not has_gpu:
        raise ConfigError(
            "device is cuda, but torch sees no NVIDIA GPU here (torch.cuda.is_available() is "
            "false): check the driver with nvidia-smi, or set device to cpu"
        )
    return wanted


def new_model_runner(
    config: EngineConfig, model_config: ModelConfig, max_model_len: int
) -> ModelRunner:
    if resolve_device(config.device) == "cpu":
        return CpuModelRunner(config, model_config, max_model_len)
    from octavo_runtime.worker.gpu.runner import GpuModelRunner

    return GpuModelRunner(config, model_config, max_model_len)
