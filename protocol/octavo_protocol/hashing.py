"""Block hashes: the one definition that the router and every replica share.

    extra = SHA-256(model, revision, adapter, adapter version, cache salt), cut to 16 bytes
    h[0]  = H(SEED,   extra, tokens[0:B])
    h[i]  = H(h[i-1], extra, tokens[iB:(i+1)B])

`H` is SHA-256 cut to 16 bytes over the concatenation; tokens are little-endian uint32. Only full
blocks have a hash. A hash names its whole prefix, so equal hashes mean equal KV contents.

A prompt may begin with a `SharedPrefix`. Blocks that lie wholly inside it have the `extra` of its
salt, all others that of the prompt's own:

    tokens  | shared prefix ........ | the rest ................
    blocks  |   0    |   1    |   2    |   3    |   4    |
    extra   |  its   |  its   |  own   |  own   |  own   |
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from octavo_protocol.bounded_memo import BoundedMemo
from octavo_protocol.packed_ids import ID_BYTES, pack

HASH_BYTES = 16
_CHUNK_SIZES = (64, 16)  # in blocks: long prompts by large ones, their ends by small ones
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

    def salted(self, cache_salt: str) -> "HashIdentity":
        """The same with another salt."""
        return replace(self, cache_salt=cache_salt)


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """The first tokens of a prompt, where others have them in common with it and may know that.

    digest: of their ids, so that a prompt which begins otherwise shares nothing. cache_salt: under
    which their blocks are hashed.
    """

    num_tokens: int
    digest: str
    cache_salt: str

    @classmethod
    def of(cls, packed: bytes, cache_salt: str) -> "SharedPrefix":
        """packed: the ids, as `pack` writes them."""
        return cls(len(packed) // ID_BYTES, _digest(packed), cache_salt)

    def begins(self, token_ids: Sequence[int]) -> bool:
        """Whether a prompt begins with it."""
        first = token_ids[: self.num_tokens]
        return len(first) == self.num_tokens and _digest(pack(first)) == self.digest


def shared_hashes(
    token_ids: Sequence[int], block_size: int, identity: HashIdentity, prefix: SharedPrefix | None
) -> list[bytes]:
    """Hashes of the blocks inside `prefix`: what `block_hashes` of this prompt goes on from."""
    if prefix is None or not prefix.begins(token_ids):
        return []
    extra = identity.salted(prefix.cache_salt).extra()
    return block_hashes(token_ids[: prefix.num_tokens], block_size, extra)


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
    raw = pack(token_ids[start : num_blocks * block_size])
    hashes += _chain(hashes[-1] if hashes else SEED, extra, raw, ID_BYTES * block_size)
    return hashes


class BlockHasher:
    """`block_hashes` of packed ids, of which whole chunks that were hashed before are looked up."""

    def __init__(self, memo: BoundedMemo[bytes]) -> None:
        self._memo = memo

    def hashes(
        self,
        packed: bytes,
        block_size: int,
        identity: HashIdentity,
        prefix: SharedPrefix | None = None,
    ) -> list[bytes]:
        """Hashes of every full block of the ids, in order. prefix: with which they begin."""
        if prefix is None:
            return self._hashes(packed, block_size, identity.extra(), SEED)
        end = ID_BYTES * block_size * (prefix.num_tokens // block_size)
        extra = identity.salted(prefix.cache_salt).extra()
        shared = self._hashes(packed[:end], block_size, extra, SEED)
        parent = shared[-1] if shared else SEED
        return shared + self._hashes(packed[end:], block_size, identity.extra(), parent)

    def _hashes(self, packed: bytes, block_size: int, extra: bytes, parent: bytes) -> list[bytes]:
        hashes: list[bytes] = []
        width = ID_BYTES * block_size
        end = len(packed) // width * width
        start = 0
        for size in _CHUNK_SIZES:
            while (stop := start + size * width) <= end:
                hashes += self._chunk(parent, extra, packed[start:stop], width)
                parent, start = hashes[-1], stop
        return hashes + _chain(parent, extra, packed[start:end], width)

    def _chunk(self, parent: bytes, extra: bytes, chunk: bytes, width: int) -> list[bytes]:
        # What the hashes are computed from names them; the prefix keeps other digests apart.
        key = hashlib.sha256(b"blocks%d:" % width + parent + extra + chunk).digest()[:HASH_BYTES]
        if (known := self._memo.get(key)) is not None:
            return [known[at : at + HASH_BYTES] for at in range(0, len(known), HASH_BYTES)]
        hashes = _chain(parent, extra, chunk, width)
        self._memo.put(key, b"".join(hashes), HASH_BYTES * len(hashes))
        return hashes


def _digest(packed: bytes) -> str:
    return hashlib.sha256(packed).hexdigest()[: 2 * HASH_BYTES]


def _chain(parent: bytes, extra: bytes, raw: bytes, width: int) -> list[bytes]:
    """Hashes of the blocks of `width` bytes that follow `parent`."""
    hashes = []
    for offset in range(0, len(raw), width):
        parent = hashlib.sha256(parent + extra + raw[offset : offset + width]).digest()[:HASH_BYTES]
        hashes.append(parent)
    return hashes


def cached_tokens(num_matched_blocks: int, block_size: int, num_prompt_tokens: int) -> int:
    """Prompt tokens that `num_matched_blocks` cached blocks save: all but the last at most."""
    return min(num_matched_blocks * block_size, num_prompt_tokens - 1)
