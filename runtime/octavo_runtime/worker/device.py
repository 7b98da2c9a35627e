"""Which device an engine runs on, and the settings that follow from it."""

from dataclasses import fields
from typing import Literal

import torch

from octavo_protocol.errors import ConfigError
from octavo_runtime.config import EngineConfig, ResolvedConfig
from octavo_runtime.model_config import ModelConfig
from octavo_runtime.worker.gpu.step_graphs import graph_sizes
from octavo_runtime.worker.rank import new_rank_runner
from octavo_runtime.worker.served_model import StepRunner
from octavo_runtime.worker.tensor_parallel import TensorParallelRunner

Device = Literal["cpu", "cuda"]

_MAX_NUM_SEQS: dict[Device, int] = {"cpu": 64, "cuda": 256}
_MAX_NUM_BATCHED_TOKENS: dict[Device, int] = {"cpu": 512, "cuda": 8192}
_MAX_NUM_BATCHED_TOKENS_OFFLINE: dict[Device, int] = {"cpu": 512, "cuda": 16384}
# A larger step takes longer than the host needs to launch it kernel by kernel.
_MAX_CUDA_GRAPH_SIZE = 512


def resolve_device(wanted: str) -> Device:
    """auto is a GPU where there is one. Raises `ConfigError`."""
    has_gpu = torch.cuda.is_available()
    if wanted == "auto":
        return "cuda" if has_gpu else "cpu"
    if wanted == "cuda":
        if not has_gpu:
            raise ConfigError(
                "device is cuda, but torch sees no NVIDIA GPU here (torch.cuda.is_available() is "
                "false): check the driver with nvidia-smi, or set device to cpu"
            )
        return "cuda"
    return "cpu"


def resolve_config(config: EngineConfig) -> ResolvedConfig:
    """`config` with what was left to the device; values that were given stay.

    Raises `ConfigError` when the device is not there or the values contradict each other.
    """
    device = resolve_device(config.device)
    num_seqs, num_tokens = config.max_num_seqs, config.max_num_batched_tokens
    if num_seqs is None:
        num_seqs = min(_MAX_NUM_SEQS[device], num_tokens or _MAX_NUM_SEQS[device])
    if num_tokens is None:
        defaults = _MAX_NUM_BATCHED_TOKENS_OFFLINE if config.is_offline else _MAX_NUM_BATCHED_TOKENS
        num_tokens = max(defaults[device], num_seqs)
    if num_tokens < num_seqs:
        raise ConfigError(
            f"max_num_batched_tokens ({num_tokens}) must be at least max_num_seqs ({num_seqs})"
        )
    _check_ranks(config.tensor_parallel_size, device)
    given = {field.name: getattr(config, field.name) for field in fields(config)}
    resolved = {
        "device": device,
        "max_num_seqs": num_seqs,
        "max_num_batched_tokens": num_tokens,
        "cuda_graph_sizes": _cuda_graph_sizes(config, num_seqs) if device == "cuda" else (),
    }
    return ResolvedConfig(**(given | resolved))


def new_model_runner(
    config: ResolvedConfig, model_config: ModelConfig, max_model_len: int
) -> StepRunner:
    """With its model loaded. Raises `ConfigError` when it cannot be."""
    if config.tensor_parallel_size > 1:
        return TensorParallelRunner(config, model_config, max_model_len)
    return new_rank_runner(config, model_config, max_model_len)


def _check_ranks(size: int, device: Device) -> None:
    if device == "cuda" and size > max(1, count := torch.cuda.device_count()):
        raise ConfigError(
            f"tensor_parallel_size is {size}, but torch sees {count} GPUs here: set it to {count} "
            "or less, or make more of them visible (CUDA_VISIBLE_DEVICES, spec.resources.gpu)"
        )


def _cuda_graph_sizes(config: EngineConfig, max_num_seqs: int) -> tuple[int, ...]:
    sizes, limit = config.cuda_graph_sizes, config.max_cuda_graph_size
    if config.enforce_eager or limit == 0:
        return ()
    if sizes is None:
        return tuple(graph_sizes(min(limit or _MAX_CUDA_GRAPH_SIZE, max_num_seqs)))
    return tuple(sorted({size for size in sizes if size <= min(limit or size, max_num_seqs)}))
