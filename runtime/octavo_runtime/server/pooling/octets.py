"""Vectors as a body of bytes, one after the other, which a header may describe."""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray
from starlette.responses import Response

from octavo_protocol.errors import ValidationError
from octavo_protocol.openai.pooling import EmbedDType, Endianness, VectorRequest
from octavo_protocol.openai.pooling_answers import Embeddings, Pooled, PoolingUsage
from octavo_runtime.server.pooling.responses import BYTES, respond
from octavo_runtime.server.pooling.vectors import as_bytes

# Clients and proxies refuse longer ones.
_MAX_HEADER_BYTES = 8000


class _Place(msgspec.Struct):
    """Bytes [start, end) of the body are the tensor at `index`."""

    index: int
    embed_dtype: EmbedDType
    endianness: Endianness
    start: int
    end: int
    shape: tuple[int, ...]


class _Metadata(msgspec.Struct):
    id: str
    created: int
    model: str
    data: list[_Place]
    usage: PoolingUsage


async def octets(
    body: VectorRequest, answer: Embeddings | Pooled, found: Sequence[NDArray[np.float32]]
) -> Response:
    """The answer in the format bytes, or bytes_only. Raises `ValidationError` for more vectors
    than a header can describe.
    """
    parts = (as_bytes(each, body.embed_dtype, body.endianness) for each in found)
    if body.encoding_format == "bytes_only":
        return await respond(parts, BYTES)
    places: list[_Place] = []
    size = 0
    for index, each in enumerate(found):
        end = size + each.size * _WIDTHS[body.embed_dtype]
        shape = (index, body.embed_dtype, body.endianness, size, end, each.shape)
        places.append(_Place(*shape))
        size = end
    metadata = _Metadata(answer.id, answer.created, answer.model, places, answer.usage)
    header = msgspec.json.encode(metadata)
    if len(header) > _MAX_HEADER_BYTES:
        raise ValidationError(
            f"encoding_format bytes describes each of the {len(found)} vectors in a header, where "
            "they have no room: use bytes_only, which has the same body, or base64",
            parameter="encoding_format",
        )
    return await respond(parts, BYTES, {"metadata": header.decode()})


_WIDTHS: dict[EmbedDType, int] = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "fp8_e4m3": 1,
    "fp8_e5m2": 1,
}
