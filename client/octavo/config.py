"""Groups of settings that `LLM` takes as objects or dicts. Names are vLLM's."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from octavo.engine.vllm_config import ModelConfig, VllmConfig
from octavo_protocol.errors import ValidationError
from octavo_runtime.config import PoolerConfig

__all__ = [
    "AttentionConfig",
    "CompilationConfig",
    "KVEventsConfig",
    "KVTransferConfig",
    "ModelConfig",
    "PoolerConfig",
    "ProfilerConfig",
    "StructuredOutputsConfig",
    "VllmConfig",
]

Config = TypeVar("Config")


class AttentionConfig:
    """How vLLM picks attention kernels. Any settings are taken; they change nothing here."""

    def __init__(self, **settings: Any) -> None:
        self.__dict__.update(settings)


class CompilationConfig:
    """How vLLM compiles and captures a model. What captures CUDA graphs counts here.

    cudagraph_capture_sizes: batch sizes that get a graph; None = a ladder of them.
    max_cudagraph_capture_size: the largest of them. cudagraph_mode: "NONE" = no graphs; the others
    are one here. settings: all others, of vLLM's compiler; they change nothing.
    """

    def __init__(
        self,
        *,
        cudagraph_capture_sizes: Sequence[int] | None = None,
        max_cudagraph_capture_size: int | None = None,
        cudagraph_mode: Any = None,
        **settings: Any,
    ) -> None:
        self.cudagraph_capture_sizes = cudagraph_capture_sizes
        self.max_cudagraph_capture_size = max_cudagraph_capture_size
        self.cudagraph_mode = cudagraph_mode
        self.__dict__.update(settings)

    @classmethod
    def of(cls, value: Any) -> "CompilationConfig":
        """From one of it, a dict of its settings, a level, or None. Raises `ValidationError`."""
        if isinstance(value, cls):
            return value
        if isinstance(value, Mapping):
            return cls(**value)
        if value is None or isinstance(value, int):
            return cls(mode=value)
        raise ValidationError(
            f"compilation_config must be a CompilationConfig or a dict, not {type(value).__name__}",
            parameter="compilation_config",
        )

    @property
    def has_graphs(self) -> bool:
        mode = getattr(self.cudagraph_mode, "name", self.cudagraph_mode)
        return str(mode).upper() != "NONE" or self.cudagraph_mode is None


@dataclass
class StructuredOutputsConfig:
    """backend: any of vLLM's names; there is one library here (llguidance)."""

    backend: str = "auto"
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    reasoning_parser: str = ""
    enable_in_reasoning: bool = False


@dataclass
class ProfilerConfig:
    """profiler: "torch" or None. torch_profiler_dir: where traces are written."""

    profiler: str | None = None
    torch_profiler_dir: str = ""

    def __post_init__(self) -> None:
        if self.profiler not in (None, "torch"):
            raise ValidationError(
                f"profiler_config.profiler must be 'torch', got {self.profiler!r}",
                parameter="profiler_config",
            )
        if self.profiler is not None and not self.torch_profiler_dir:
            raise ValidationError(
                "profiler_config.torch_profiler_dir must name a folder for the traces",
                parameter="profiler_config",
            )

    @property
    def folder(self) -> Path | None:
        return Path(self.torch_profiler_dir).absolute() if self.profiler else None


@dataclass
class KVEventsConfig:
    """Publishing of cache events over ZeroMQ; Octavo's replicas publish theirs to Redis."""

    enable_kv_cache_events: bool = False
    publisher: str | None = None
    endpoint: str = "tcp://*:5557"
    replay_endpoint: str | None = None
    buffer_steps: int = 10_000
    hwm: int = 100_000
    max_queue_size: int = 100_000
    topic: str = ""


@dataclass
class KVTransferConfig:
    """Transfer of KV blocks between engines; not supported yet."""

    kv_connector: str | None = None
    kv_role: str | None = None
    engine_id: str | None = None
    kv_buffer_device: str = "cuda"
    kv_port: int = 14579
    kv_connector_extra_config: dict[str, Any] = field(default_factory=dict)
    kv_connector_module_path: str | None = None
    kv_load_failure_policy: str = "fail"


def as_config(kind: type[Config], name: str, value: Any) -> Config:
    """`value` as a `kind`: one of it, a dict of its fields, or None for its defaults.

    Raises `ValidationError` that names an unknown field or a wrong type.
    """
    if value is None:
        return kind()
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise ValidationError(
            f"{name} must be a {kind.__name__} or a dict, not {type(value).__name__}",
            parameter=name,
        )
    known = {each.name for each in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(value) - known)
    if unknown:
        raise ValidationError(
            f"{name} has no field {unknown[0]!r}; it has {', '.join(sorted(known))}",
            parameter=name,
        )
    return kind(**value)
