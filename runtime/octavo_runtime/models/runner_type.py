"""Whether a model generates or pools, and what it is turned into, where the user leaves it open."""

from dataclasses import dataclass
from typing import Literal

from octavo_protocol.errors import ConfigError
from octavo_runtime.config import EngineConfig
from octavo_runtime.models.registry import (
    pooling_architectures,
    pooling_model_class,
    supported_architectures,
)

SENTENCE_TRANSFORMERS = "modules.json"


@dataclass(frozen=True, slots=True)
class RunnerChoice:
    """convert: what a pooling model gives: vectors or classes; none of a model that generates.
    is_encoder: it takes whole prompts and has no KV cache.
    """

    runner: Literal["generate", "pooling"]
    convert: Literal["none", "embed", "classify"] = "none"
    is_encoder: bool = False


def resolve_runner(config: EngineConfig, architecture: str) -> RunnerChoice:
    """What `config.runner` and `config.convert` mean for a model of this architecture.

    A model pools where it cannot generate, where its folder has sentence-transformers' files, or
    where `convert` says so. Raises `ConfigError` for a choice that the model cannot honour.
    """
    generates = architecture in supported_architectures()
    is_pooling = architecture in pooling_architectures()
    runner = config.runner
    if runner == "auto":
        wants_pooling = config.convert in ("embed", "classify")
        has_files = (config.model / SENTENCE_TRANSFORMERS).is_file()
        runner = "pooling" if is_pooling or has_files or wants_pooling else "generate"
    if runner == "generate":
        if not generates and is_pooling:
            raise ConfigError(
                f"runner is generate, but {architecture} does not generate text: set runner to "
                "pooling or auto"
            )
        if config.convert not in ("auto", "none"):
            raise ConfigError(
                f"convert is {config.convert}, which is for pooling: set runner to pooling or auto"
            )
        return RunnerChoice("generate")
    if generates and not is_pooling and config.convert == "none":
        raise ConfigError(
            f"{architecture} generates text: to pool, it needs convert embed or classify (or auto)"
        )
    is_encoder = pooling_model_class(architecture).is_encoder
    if config.convert in ("embed", "classify"):
        return RunnerChoice("pooling", config.convert, is_encoder)
    convert: Literal["embed", "classify"] = "classify" if _classifies(architecture) else "embed"
    return RunnerChoice("pooling", convert, is_encoder)


def _classifies(architecture: str) -> bool:
    return architecture.endswith(("ForSequenceClassification", "ForTokenClassification"))
