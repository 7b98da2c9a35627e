"""Octavo: serve large language models on Kubernetes, on a laptop, or in process.

    from octavo import LLM, SamplingParams

Names are resolved when they are first used, so that importing the package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from octavo.llm import LLM as LLM
    from octavo_protocol.outputs import CompletionOutput as CompletionOutput
    from octavo_protocol.outputs import RequestOutput as RequestOutput
    from octavo_protocol.sampling_params import SamplingParams as SamplingParams

_HOMES = {
    "LLM": "octavo.llm",
    "CompletionOutput": "octavo_protocol.outputs",
    "RequestOutput": "octavo_protocol.outputs",
    "SamplingParams": "octavo_protocol.sampling_params",
}

__all__ = ["LLM", "CompletionOutput", "RequestOutput", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("octavo")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'octavo' has no attribute {name!r}")
