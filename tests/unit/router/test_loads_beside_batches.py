"""Background work is in nobody's way but its like's, and so in nobody's choice of a replica."""

from collections.abc import Mapping

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.fake_presence import new_record

from octavo_protocol.keys import Keys
from octavo_protocol.records import encode
from octavo_router.decisions import PromptKey, choose
from octavo_router.deployment import Deployment
from octavo_router.prefix_index import IndexBudget

KEY = PromptKey(num_tokens=300)


def fleet(**records: Mapping[str, int]) -> Deployment:
    """A deployment with a replica for each name; its record has these fields."""
    deployment = Deployment(Keys("n", "d"), budget=IndexBudget(2**20), clock=lambda: 1.0)
    deployment.take(
        {
            name: encode(
                msgspec.structs.replace(
                    new_record(name, prefill_tokens_per_s=400.0, decode_tokens_per_s=30.0),
                    incarnation=name,
                    **fields,
                )
            )
            for name, fields in records.items()
        }
    )
    return deployment


def costs(deployment: Deployment, *, is_background: bool) -> tuple[float, ...]:
    return choose(deployment, None, KEY, is_background=is_background).costs


@given(
    running=st.integers(0, 8), waiting=st.integers(0, 8), tokens=st.integers(0, 5000),
    own=st.lists(st.integers(0, 1000), max_size=4),
)  # fmt: skip
def test_a_request_s_choice_is_the_same_whatever_background_work_there_is(
    running: int, waiting: int, tokens: int, own: list[int]
) -> None:
    quiet = fleet(a={"running": 1, "waiting_tokens": 200}, b={})
    busy = fleet(
        a={
            "running": 1 + running,
            "waiting": waiting,
            "waiting_tokens": 200 + tokens,
            "background_running": running,
            "background_waiting": waiting,
            "background_waiting_tokens": tokens,
        },
        b={},
    )
    for num_tokens in own:
        busy.background_loads.sent("b", num_tokens)
    assert costs(busy, is_background=False) == costs(quiet, is_background=False)


@pytest.mark.parametrize("is_background", [False, True])
def test_background_work_counts_for_its_like_beside_all_others(is_background: bool) -> None:
    deployment = fleet(
        a={"background_running": 3, "running": 3, "background_waiting_tokens": 500,
           "waiting_tokens": 500},
        b={"running": 3, "waiting_tokens": 500},
        c={},
    )  # fmt: skip
    a, b, c = costs(deployment, is_background=is_background)
    assert a == (b if is_background else c)
    assert c < b


def test_a_replica_that_leaves_takes_its_background_load_along() -> None:
    deployment = fleet(a={"background_running": 3, "running": 3}, b={})
    deployment.take({"b": encode(new_record("b"))})
    assert deployment.background_loads.num_running("a") == 0
