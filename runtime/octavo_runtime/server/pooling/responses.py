"""Long answers go out piece by piece, as they are encoded: they are never whole in memory."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping

from starlette.responses import Response, StreamingResponse

JSON = "application/json"
BYTES = "application/octet-stream"
_PIECE_BYTES = 2**16


async def respond(
    pieces: Iterable[bytes], media_type: str, headers: Mapping[str, str] | None = None
) -> Response:
    """An answer of `pieces`; a short one is sent as a whole, with its length."""
    chunks = _chunks(pieces)
    first = await anext(chunks, b"")
    if len(first) < _PIECE_BYTES:  # there is no other
        return Response(first, media_type=media_type, headers=headers)
    return StreamingResponse(_after(first, chunks), media_type=media_type, headers=headers)


async def _chunks(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    """`pieces`, joined to chunks of some size; other requests run between them."""
    gathered: list[bytes] = []
    size = 0
    for piece in pieces:
        gathered.append(piece)
        size += len(piece)
        if size >= _PIECE_BYTES:
            yield b"".join(gathered)
            gathered, size = [], 0
            await asyncio.sleep(0)
    if gathered:
        yield b"".join(gathered)


async def _after(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk
