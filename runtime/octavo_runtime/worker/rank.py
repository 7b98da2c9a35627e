"""The runner of one rank, which is all there is where the model is on one device."""

from octavo_runtime.config import ResolvedConfig
from octavo_runtime.model_config import ModelConfig
from octavo_runtime.parallel.group import ALONE, Group
from octavo_runtime.worker.cpu_runner import CpuModelRunner
from octavo_runtime.worker.model_runner import ModelRunner


def new_rank_runner(
    config: ResolvedConfig, model_config: ModelConfig, max_model_len: int, group: Group = ALONE
) -> ModelRunner:
    """On the current GPU, or on the CPU. model_config: of the whole model."""
    if config.device == "cpu":
        return CpuModelRunner(config, model_config, max_model_len, group)
    from octavo_runtime.worker.gpu.runner import GpuModelRunner

    return GpuModelRunner(config, model_config, max_model_len, group=group)
