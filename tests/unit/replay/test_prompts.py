"""Made-up prompts share what the trace says they share, and nothing else."""

from hypothesis import given
from hypothesis import strategies as st

from octavo.replay.prompts import PromptMaker
from octavo.sim.trace import TraceRequest

BLOCK = 8


def request(num_tokens: int, *ids: int) -> TraceRequest:
    return TraceRequest(0.0, num_tokens, 1, tuple(str(each).encode() for each in ids))


def shared(first: list[int], second: list[int]) -> int:
    """Leading tokens in common."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(first), len(second)))


@given(
    common=st.lists(st.integers(0, 9), max_size=4, unique=True),
    ends=st.tuples(st.integers(10, 19), st.integers(20, 29)),
    num_own=st.integers(1, BLOCK - 1),
)
def test_prompts_share_tokens_exactly_as_far_as_ids(
    common: list[int], ends: tuple[int, int], num_own: int
) -> None:
    maker = PromptMaker(BLOCK, vocab_size=50_000)
    length = BLOCK * (len(common) + 1) + num_own
    first, second = (maker.prompt(request(length, *common, end), end) for end in ends)
    assert len(first) == len(second) == length
    assert shared(first, second) == BLOCK * len(common)
    assert maker.prompt(request(length, *common, ends[0]), ends[0]) == first


def test_the_rest_after_the_last_block_is_of_one_request_alone() -> None:
    maker = PromptMaker(BLOCK, vocab_size=50_000)
    first, second = (maker.prompt(request(2 * BLOCK, 1), number) for number in (1, 2))
    assert shared(first, second) == BLOCK


def test_a_block_that_is_not_full_is_cut() -> None:
    maker = PromptMaker(BLOCK, vocab_size=50_000)
    whole, cut = maker.prompt(request(2 * BLOCK, 1, 2), 0), maker.prompt(request(11, 1, 2), 1)
    assert cut == whole[:11]


def test_tokens_are_ordinary_ones_of_the_vocabulary() -> None:
    tokens = PromptMaker(512, vocab_size=1200).prompt(request(2048, 1, 2, 3, 4), 0)
    assert (min(tokens), max(tokens)) == (600, 1199)
    assert max(PromptMaker(64, 2).prompt(request(64, 1), 0)) == 1


def test_another_seed_shares_nothing_with_this_one() -> None:
    makers = [PromptMaker(BLOCK, 50_000, seed) for seed in (0, 1)]
    first, second = (maker.prompt(request(3 * BLOCK, 1, 2), 0) for maker in makers)
    assert not set(first) & set(second)
