"""`ModelRegistry`: which architectures this process can run."""

from collections.abc import Callable, Set
from typing import Any

from octavo_runtime.models import registry


class ModelRegistry:
    """Architectures by the names that config.json gives them."""

    @staticmethod
    def get_supported_archs() -> Set[str]:
        return registry.supported_architectures()

    @staticmethod
    def register_model(model_arch: str, model_cls: Callable[..., Any] | str) -> None:
        """Runs `model_arch` with `model_cls`: a class of Octavo's form, or "module:Class".

        Octavo's form is `model_cls(model_config, dtype)`, with the methods and module names of
        `octavo_runtime.models.llama.LlamaForCausalLM`. It holds for engines of this process (`LLM`,
        `LLMEngine`), not for `AsyncLLMEngine`, whose engine is a process of its own.
        """
        registry.register_architecture(model_arch, model_cls)
