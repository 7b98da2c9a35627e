"""`LoRARequest`, under the path that vLLM's users import it from."""

from octavo_protocol.lora import LoRARequest

__all__ = ["LoRARequest"]
