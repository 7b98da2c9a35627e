"""What custom logits processors are made of, under the path that vLLM's users import it from."""

from octavo_runtime.layers.sampling.processors import (
    BatchUpdate,
    LogitsProcessor,
    MoveDirectionality,
)

__all__ = ["BatchUpdate", "LogitsProcessor", "MoveDirectionality"]
