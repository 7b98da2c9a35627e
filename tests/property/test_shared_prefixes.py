"""Tenants share the blocks inside a declared prefix and no others; router and replica agree."""

from itertools import takewhile

from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.tiny_model import tiny_tokenizer

from octavo_protocol.bounded_memo import BoundedMemo
from octavo_protocol.hashing import (
    BlockHasher,
    HashIdentity,
    SharedPrefix,
    block_hashes,
    shared_hashes,
)
from octavo_protocol.packed_ids import pack, unpack
from octavo_router.shared_prefixes import SharedPrefixes, common_beginning
from octavo_router.tenancy.directory import make_directory
from octavo_router.tenancy.tenant import Tenant

DECLARED = "the quick brown fox jumps over the lazy dog and sleeps until the morning "
DIRECTORY = make_directory(
    {
        "f": f"""
secret: {"s" * 32}
tenants: [{{name: a}}, {{name: b}}, {{name: stranger}}]
shared_prefixes: [{{name: p, text: "{DECLARED}", tenants: [a, b]}}]
""".encode()
    }
)
TOKENIZER = tiny_tokenizer()
PREFIX = TOKENIZER.encode(DECLARED)
_IDS = st.lists(st.integers(0, 3) | st.integers(0, 2**32 - 1), max_size=60)
_PROMPTS = st.builds(
    lambda num_kept, rest: PREFIX[:num_kept] + rest, st.integers(0, len(PREFIX)), _IDS
)


def replica_hashes(
    tenant: str, prompt: list[int], block_size: int, prefix: SharedPrefix | None
) -> list[bytes]:
    salt = DIRECTORY.cache_salt(Tenant(tenant), None)
    identity = HashIdentity("m", cache_salt=salt)
    known = shared_hashes(prompt, block_size, identity, prefix)
    return block_hashes(prompt, block_size, identity.extra(), known=known)


def routed(tenant: str, prompt: list[int], block_size: int) -> list[bytes]:
    """Hashes as the router computes them, after a check that a replica has the same."""
    declared = DIRECTORY.prefixes_of(Tenant(tenant))
    memo: BoundedMemo[bytes] = BoundedMemo(2**20)
    prefix = SharedPrefixes(memo).find(declared, pack(prompt), TOKENIZER)
    identity = HashIdentity("m", cache_salt=DIRECTORY.cache_salt(Tenant(tenant), None))
    hashes = BlockHasher(memo).hashes(pack(prompt), block_size, identity, prefix)
    assert hashes == replica_hashes(tenant, prompt, block_size, prefix)
    return hashes


def num_common(*sequences: list[bytes] | list[int]) -> int:
    return len(list(takewhile(lambda each: len(set(each)) == 1, zip(*sequences, strict=False))))


@given(first=_PROMPTS, second=_PROMPTS, block_size=st.integers(1, 20))
def test_two_tenants_share_exactly_the_blocks_inside_the_declared_prefix(
    first: list[int], second: list[int], block_size: int
) -> None:
    hashes = routed("a", first, block_size), routed("b", second, block_size)
    num_shared = num_common(first, second, PREFIX) // block_size
    assert num_common(*hashes) == num_shared
    assert not set(hashes[0][num_shared:]) & set(hashes[1][num_shared:])


@given(prompt=_PROMPTS, block_size=st.integers(1, 20))
def test_who_may_not_use_a_prefix_shares_nothing_with_anybody(
    prompt: list[int], block_size: int
) -> None:
    own = routed("stranger", prompt, block_size)
    assert own == replica_hashes("stranger", prompt, block_size, None)
    assert not set(own) & set(routed("a", prompt, block_size))


@given(prompt=_PROMPTS, told=_PROMPTS, block_size=st.integers(1, 20))
def test_a_replica_shares_nothing_of_a_prompt_that_begins_otherwise_than_it_was_told(
    prompt: list[int], told: list[int], block_size: int
) -> None:
    prefix = SharedPrefix.of(pack(told), "shared")
    hashes = replica_hashes("a", prompt, block_size, prefix)
    if prompt[: len(told)] != told:
        assert hashes == replica_hashes("a", prompt, block_size, None)


@given(first=_PROMPTS, second=_PROMPTS)
def test_the_common_beginning_is_of_whole_ids(first: list[int], second: list[int]) -> None:
    number = num_common(first, second)
    assert unpack(common_beginning(pack(first), pack(second))) == first[:number]
