"""What requests return, under the path that vLLM's users import it from."""

from octavo_protocol.outputs import CompletionOutput, RequestOutput, RequestStateStats
from octavo_protocol.pooling import (
    ClassificationOutput,
    ClassificationRequestOutput,
    EmbeddingOutput,
    EmbeddingRequestOutput,
    PoolingOutput,
    PoolingRequestOutput,
    ScoringOutput,
    ScoringRequestOutput,
)

__all__ = [
    "ClassificationOutput",
    "ClassificationRequestOutput",
    "CompletionOutput",
    "EmbeddingOutput",
    "EmbeddingRequestOutput",
    "PoolingOutput",
    "PoolingRequestOutput",
    "RequestOutput",
    "RequestStateStats",
    "ScoringOutput",
    "ScoringRequestOutput",
]
