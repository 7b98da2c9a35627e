"""`AsyncLLMEngine`, under the path that vLLM's users import it from."""

from octavo.v1.engine.async_llm import AsyncLLMEngine

__all__ = ["AsyncLLMEngine"]
