"""Pooling parameters, under the path that vLLM's users import them from."""

from octavo_protocol.pooling import LateChunkingParams, PoolingParams

__all__ = ["LateChunkingParams", "PoolingParams"]
