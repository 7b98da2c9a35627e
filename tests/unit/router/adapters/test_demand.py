"""How demand is measured, and how many copies it asks for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_router.adapters.demand import (
    MIN_DEMAND,
    TARGET_SHARE,
    TIME_CONSTANT_S,
    AdapterDemand,
    wanted_copies,
)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_demand_is_the_requests_in_flight_on_average() -> None:
    clock = Clock()
    demand = AdapterDemand(clock)
    for _ in range(3000):  # four requests a second, of half a second each: two in flight
        with demand.request("sql"), demand.request("sql"):
            clock.now += 0.1
            with demand.request("sql"):
                clock.now += 0.0
        with demand.request("sql"), demand.request("sql"):
            clock.now += 0.1
    assert demand.measure()["sql"] == pytest.approx(2.0, rel=0.01)


def test_demand_fades_and_is_forgotten() -> None:
    clock = Clock()
    demand = AdapterDemand(clock)
    with demand.request("sql"):
        clock.now += TIME_CONSTANT_S
        assert demand.measure() == {"sql": pytest.approx(0.632, abs=0.001)}
        clock.now += 100 * TIME_CONSTANT_S
        assert demand.measure() == {"sql": pytest.approx(1)}
    clock.now += 12 * TIME_CONSTANT_S
    assert demand.measure() == {}


def test_copies_follow_demand_and_do_not_swing_with_it() -> None:
    """A replica of eight sequences carries four requests in flight."""
    copies, seen = 0, []
    for demand in (0.01, 3.9, 4.1, 3.9, 4.1, 2.1, 1.9, 9.0, 4.1, 3.9, 0.01, 0.0):
        copies = wanted_copies(demand, 8, copies)
        seen.append(copies)
    assert seen == [1, 1, 2, 2, 2, 2, 1, 3, 3, 1, 1, 0]


@given(st.floats(0, 1e4), st.integers(1, 512), st.integers(0, 50))
def test_copies_always_carry_the_demand_and_are_half_used(
    demand: float, max_num_seqs: int, current: int
) -> None:
    copies = wanted_copies(demand, max_num_seqs, current)
    carried = TARGET_SHARE * max_num_seqs
    assert (copies == 0) == (demand < MIN_DEMAND)
    assert copies * carried >= demand or copies == 0
    assert copies <= 1 or demand >= 0.5 * carried * (copies - 1) * (1 - 1e-9)
    assert copies == 0 or wanted_copies(demand, max_num_seqs, copies) == copies
