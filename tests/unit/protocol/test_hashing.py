"""Block hashes: what makes them equal, and that they stay what they are."""

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_protocol.bounded_memo import BoundedMemo
from octavo_protocol.hashing import SEED, BlockHasher, HashIdentity, block_hashes, cached_tokens
from octavo_protocol.packed_ids import pack

MEMO: BoundedMemo[bytes] = BoundedMemo(2**20)

TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=60)
BLOCK_SIZES = st.integers(1, 17)
EXTRA = HashIdentity("model@1").extra()
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


def test_values_are_pinned() -> None:
    """Routers and replicas of different releases meet: a change here empties every cache."""
    extra = HashIdentity("smollm2@abc123", "sql@2", "tenant").extra()

    assert extra.hex() == "17f7d76b33436054319d43299dbff1c3"
    assert [each.hex() for each in block_hashes(range(12), 4, extra)] == [
        "6a2bc3aa14359a59a4b6905fa5d3058c",
        "7e8e8c67826e13221ba244c6dc8e7f17",
        "eeca9eba10ae2bf8b33dbb331bdeed55",
    ]


@given(tokens=TOKENS, block_size=BLOCK_SIZES)
def test_hashes_follow_their_definition(tokens: list[int], block_size: int) -> None:
    parent, expected = SEED, []
    for start in range(0, len(tokens) - block_size + 1, block_size):
        raw = struct.pack(f"<{block_size}I", *tokens[start : start + block_size])
        parent = hashlib.sha256(parent + EXTRA + raw).digest()[:16]
        expected.append(parent)

    assert block_hashes(tokens, block_size, EXTRA) == expected


@given(tokens=TOKENS, tail=TOKENS, block_size=BLOCK_SIZES)
def test_longer_sequence_has_the_hashes_of_its_prefix(
    tokens: list[int], tail: list[int], block_size: int
) -> None:
    hashes = block_hashes(tokens, block_size, EXTRA)

    assert block_hashes(tokens + tail, block_size, EXTRA)[: len(hashes)] == hashes


@given(tokens=st.lists(st.integers(0, 99), min_size=1, max_size=60), data=st.data())
def test_changed_token_changes_its_block_and_all_later_ones(
    tokens: list[int], data: st.DataObject
) -> None:
    position = data.draw(st.integers(0, len(tokens) - 1))
    changed = [*tokens[:position], tokens[position] + 1, *tokens[position + 1 :]]

    before, after = block_hashes(tokens, 4, EXTRA), block_hashes(changed, 4, EXTRA)

    assert [a == b for a, b in zip(before, after, strict=True)] == [
        index < position // 4 for index in range(len(before))
    ]


@given(tokens=TOKENS, block_size=BLOCK_SIZES, num_known=st.integers(0, 60))
def test_known_hashes_are_as_good_as_recomputed_ones(
    tokens: list[int], block_size: int, num_known: int
) -> None:
    hashes = block_hashes(tokens, block_size, EXTRA)

    assert block_hashes(tokens, block_size, EXTRA, known=hashes[:num_known]) == hashes


def test_more_known_hashes_than_blocks_are_cut() -> None:
    hashes = block_hashes(range(8), 4, EXTRA)

    assert block_hashes(range(7), 4, EXTRA, known=hashes) == hashes[:1]


def test_only_full_blocks_have_a_hash() -> None:
    assert [len(block_hashes(range(n), 4, EXTRA)) for n in (0, 3, 4, 7, 8)] == [0, 0, 1, 1, 2]


@given(one=st.tuples(NAMES, NAMES, NAMES), other=st.tuples(NAMES, NAMES, NAMES))
def test_model_adapter_and_salt_keep_caches_apart(
    one: tuple[str, str, str], other: tuple[str, str, str]
) -> None:
    assert (HashIdentity(*one).extra() == HashIdentity(*other).extra()) == (one == other)


def test_fields_cannot_flow_into_each_other() -> None:
    assert len({HashIdentity(*each).extra() for each in (("ab",), ("a", "b"), ("a", "", "b"))}) == 3


def test_different_identities_share_no_hash() -> None:
    extras = [HashIdentity("m", salt).extra() for salt in ("", "a", "b")]
    hashes = [h for extra in extras for h in block_hashes(range(16), 4, extra)]

    assert len(set(hashes)) == 12


@pytest.mark.parametrize(
    ("num_blocks", "num_prompt", "saved"), [(0, 5, 0), (1, 5, 4), (2, 9, 8), (2, 8, 7), (1, 4, 3)]
)
def test_at_least_one_prompt_token_is_always_computed(
    num_blocks: int, num_prompt: int, saved: int
) -> None:
    assert cached_tokens(num_blocks, 4, num_prompt) == saved


@given(
    tokens=st.lists(st.integers(0, 9), max_size=700),
    kept=st.integers(0, 700),
    more=st.lists(st.integers(0, 9), max_size=300),
    block_size=st.sampled_from([1, 2, 16]),
    salts=st.lists(st.sampled_from(["a", "b"]), min_size=2, max_size=2),
)
def test_hashes_with_a_memo_are_the_same(
    tokens: list[int], kept: int, more: list[int], block_size: int, salts: list[str]
) -> None:
    hasher = BlockHasher(MEMO)
    for prompt, salt in zip((tokens, tokens[:kept] + more), salts, strict=True):
        identity = HashIdentity("m", cache_salt=salt)
        expected = block_hashes(prompt, block_size, identity.extra())
        assert hasher.hashes(pack(prompt), block_size, identity) == expected


def test_the_memo_has_the_hashes_of_a_prompts_beginning() -> None:
    memo: BoundedMemo[bytes] = BoundedMemo(2**20)
    hasher = BlockHasher(memo)
    hasher.hashes(pack([1] * 3000), 16, HashIdentity("m"))
    num_kept = len(memo)
    hasher.hashes(pack([1] * 3000 + [2] * 900), 16, HashIdentity("m"))
    # Of 64 and 16 blocks: 2 and 3 of 187; of 243, one and 3 more.
    assert (num_kept, len(memo)) == (5, 9)
