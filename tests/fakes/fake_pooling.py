"""Tensors as a pooling model gives them: each token has a random vector, a prompt their mean."""

import numpy as np
from numpy.typing import NDArray

from octavo_protocol.pooling import PoolingParams
from octavo_runtime.engine.messages import PoolingInfo

SIZE = 8
EMBEDDER = PoolingInfo(
    tasks=["embed", "token_embed"],
    is_encoder=True,
    num_token_types=2,
    embedding_size=SIZE,
    matryoshka=True,
    matryoshka_dimensions=[4, 8],
)
CLASSIFIER = PoolingInfo(
    tasks=["classify", "token_classify"], is_encoder=True, labels=["no", "yes"]
)
RERANKER = PoolingInfo(tasks=["classify"], is_encoder=True, num_token_types=2, labels=["LABEL_0"])
LATE_INTERACTION = PoolingInfo(tasks=["token_embed"], is_encoder=True, embedding_size=SIZE)
# No model can all of this; it is for what clients may send.
ANYTHING = PoolingInfo(
    tasks=["embed", "classify", "token_embed", "token_classify"],
    is_encoder=True,
    embedding_size=SIZE,
    labels=["no", "yes"],
)


def fake_tensor(
    token_ids: list[int], params: PoolingParams, info: PoolingInfo
) -> NDArray[np.float32]:
    """[size], and [num_tokens, size] of token-level tasks. Tokens count from the left, so that
    their order matters.
    """
    embeds = params.task in ("embed", "token_embed")
    size = (params.dimensions or SIZE) if embeds else len(info.labels)
    table = np.random.default_rng(0).standard_normal((1000, SIZE)).astype(np.float32)
    rows = table[np.array(token_ids) + np.arange(len(token_ids)) % 7]
    if params.task in ("embed", "classify"):
        rows = rows.mean(0)
    rows = rows[..., :size]
    if params.use_activation is False:
        return rows
    if embeds:
        return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), np.float32)
    if size == 1:
        return np.asarray(1 / (1 + np.exp(-rows)), np.float32)
    return np.asarray(np.exp(rows) / np.exp(rows).sum(-1, keepdims=True), np.float32)
