"""Token ids as bytes, little-endian uint32: what is hashed, kept and sent."""

import sys
from array import array
from collections.abc import Sequence

ID_BYTES = 4


def pack(token_ids: Sequence[int]) -> bytes:
    """Token ids as little-endian uint32. Raises OverflowError for what does not fit."""
    packed = array("I", token_ids)
    assert packed.itemsize == ID_BYTES
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack(packed: bytes) -> list[int]:
    """The ids of `pack`. Raises ValueError for a length that is none of whole ids."""
    token_ids = array("I")
    token_ids.frombytes(packed)
    if sys.byteorder == "big":
        token_ids.byteswap()
    return token_ids.tolist()
