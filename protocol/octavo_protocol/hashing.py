"""Block hashes: the one definition that the router and every replica share.

    extra = SHA-256(model, revision, adapter, adapter version, cache salt), cut to 16 bytes
    h[0]  = H(SEED,   extra, tokens[0:B])
    h[i]  = H(h[i-1], extra, tokens[iB:(i+1)B])

`H` is SHA-256 cut to 16 bytes over the concatenation; tokens are little-endian uint32. Only full
blocks have a hash. A hash names its whole prefix, so equal hashes mean equal KV contents.
"""

import array
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

HASH_BYTES = 16
SEED = b"octavo-block-v1\0"

assert len(SEED) == HASH_BYTES


@dataclass(frozen=True, slots=True)
class HashIdentity:
    """What besides tokens decides a block's contents, and who may share it.

    model: model id with its revision, as `name@revision`. adapter: `name@version`, or empty.
    cache_salt: tenant's salt; requests with different salts never share blocks.
    """

    model: str
    adapter: str = ""
    cache_salt: str = ""

    def extra(self) -> bytes:
        """16 bytes that enter every block's hash. Fields are length-prefixed: no two collide."""
        digest = hashlib.sha256()
        for part in (self.model, self.adapter, self.cache_salt):
            raw = part.encode()
            digest.update(len(raw).to_bytes(4, "little"))
            digest.update(raw)
        return digest.digest()[:HASH_BYTES]


def block_hashes(
    token_ids: Sequence[int],
    block_size: int,
    extra: bytes,
    *,
    known: Sequence[bytes] = (),
) -> list[bytes]:
    """Hashes of every full block of `token_ids`, in order.

    known: hashes of the first blocks if they were computed before; they are not recomputed.
    """
    hashes = list(known)
    num_blocks = len(token_ids) // block_size
    if num_blocks <= len(hashes):
        return hashes[:num_blocks]
    start = len(hashes) * block_size
    raw = _token_bytes(token_ids[start : num_blocks * block_size])
    parent = hashes[-1] if hashes else SEED
    width = 4 * block_size
    for offset in range(0, len(raw), width):
        parent = hashlib.sha256(parent + extra + raw[offset : offset + width]).digest()[:HASH_BYTES]
        hashes.append(parent)
    return hashes


def cached_tokens(num_matched_blocks: int, block_size: int, num_prompt_tokens: int) -> int:
    """Prompt tokens that `num_matched_blocks` cached blocks save: all but the last at most."""
    return min(num_matched_blocks * block_size, num_prompt_tokens - 1)


def _token_bytes(token_ids: Sequence[int]) -> bytes:
    packed = array.array("I", token_ids)
    assert packed.itemsize == 4
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()
