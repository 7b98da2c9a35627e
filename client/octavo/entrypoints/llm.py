"""`LLM`, under the path that vLLM's users import it from."""

from octavo.llm import LLM

__all__ = ["LLM"]
