"""Octavo: serve large language models on Kubernetes, on a laptop, or in process.

    from octavo import LLM, SamplingParams

Names are resolved when they are first used, so that importing the package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from octavo.engine.arg_utils import AsyncEngineArgs as AsyncEngineArgs
    from octavo.engine.arg_utils import EngineArgs as EngineArgs
    from octavo.engine.llm_engine import LLMEngine as LLMEngine
    from octavo.inputs import PromptType as PromptType
    from octavo.inputs import TextPrompt as TextPrompt
    from octavo.inputs import TokensPrompt as TokensPrompt
    from octavo.llm import LLM as LLM
    from octavo.model_registry import ModelRegistry as ModelRegistry
    from octavo.ray import initialize_ray_cluster as initialize_ray_cluster
    from octavo.v1.engine.async_llm import AsyncLLMEngine as AsyncLLMEngine
    from octavo_protocol.outputs import CompletionOutput as CompletionOutput
    from octavo_protocol.outputs import RequestOutput as RequestOutput
    from octavo_protocol.pooling import ClassificationOutput as ClassificationOutput
    from octavo_protocol.pooling import ClassificationRequestOutput as ClassificationRequestOutput
    from octavo_protocol.pooling import EmbeddingOutput as EmbeddingOutput
    from octavo_protocol.pooling import EmbeddingRequestOutput as EmbeddingRequestOutput
    from octavo_protocol.pooling import PoolingOutput as PoolingOutput
    from octavo_protocol.pooling import PoolingParams as PoolingParams
    from octavo_protocol.pooling import PoolingRequestOutput as PoolingRequestOutput
    from octavo_protocol.pooling import ScoringOutput as ScoringOutput
    from octavo_protocol.pooling import ScoringRequestOutput as ScoringRequestOutput
    from octavo_protocol.sampling_params import SamplingParams as SamplingParams

_NAMES_BY_HOME = {
    "octavo.engine.arg_utils": ("AsyncEngineArgs", "EngineArgs"),
    "octavo.engine.llm_engine": ("LLMEngine",),
    "octavo.inputs": ("PromptType", "TextPrompt", "TokensPrompt"),
    "octavo.llm": ("LLM",),
    "octavo.model_registry": ("ModelRegistry",),
    "octavo.ray": ("initialize_ray_cluster",),
    "octavo.v1.engine.async_llm": ("AsyncLLMEngine",),
    "octavo_protocol.outputs": ("CompletionOutput", "RequestOutput"),
    "octavo_protocol.pooling": (
        *("ClassificationOutput", "ClassificationRequestOutput"),
        *("EmbeddingOutput", "EmbeddingRequestOutput"),
        *("PoolingOutput", "PoolingParams", "PoolingRequestOutput"),
        *("ScoringOutput", "ScoringRequestOutput"),
    ),
    "octavo_protocol.sampling_params": ("SamplingParams",),
}
_HOMES = {name: home for home, names in _NAMES_BY_HOME.items() for name in names}

__all__ = [*_HOMES, "__version__", "__version_tuple__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("octavo")
    if name == "__version_tuple__":
        return tuple(int(p) if p.isdigit() else p for p in __getattr__("__version__").split("."))
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'octavo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
