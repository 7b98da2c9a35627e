"""The fair queue under random arrivals: bounds, shares, order, and nobody lost or doubled."""

import itertools

import hypothesis.strategies as st
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from octavo_router.admission.fair_queue import FairQueue, QueueFullError, Waiter

WEIGHTS = {"a": 1.0, "b": 2.0, "c": 0.5, "d": 7.0}
MAX_REQUESTS, MAX_TOKENS, QUANTUM = 12, 4000, 100


class Traffic(RuleBasedStateMachine):
    """Against a model that only knows who waits, in the order of arrival."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = FairQueue(max_requests=MAX_REQUESTS, max_tokens=MAX_TOKENS, quantum=QUANTUM)
        self.waiting: list[Waiter] = []

    @rule(
        tenant=st.sampled_from(sorted(WEIGHTS)),
        num_tokens=st.integers(0, 2 * MAX_TOKENS),
        priority=st.integers(-1, 2),
    )
    def arrive(self, tenant: str, num_tokens: int, priority: int) -> None:
        waiter = Waiter(tenant, num_tokens, WEIGHTS[tenant], priority)
        try:
            displaced = self.queue.push(waiter)
        except QueueFullError:
            assert self.is_tight(waiter)
            return
        assert len(displaced) == len(set(displaced))
        for victim in displaced:
            assert victim.priority > priority or (
                victim.priority == priority and victim.tenant != tenant
            )
            newer = self.waiting[self.waiting.index(victim) + 1 :]
            own = [each for each in newer if (each.tenant, each.priority) == self.flow(victim)]
            assert set(own) <= set(displaced), "the newest make place first"
        self.waiting = [each for each in self.waiting if each not in displaced] + [waiter]

    def is_tight(self, waiter: Waiter) -> bool:
        """Half of the bounds are always there for those of whom little waits."""
        share = 0.75 if waiter.priority > 0 else 1.0
        return (
            self.queue.num_requests + 1 > MAX_REQUESTS * share
            or self.queue.num_tokens + min(max(waiter.num_tokens, 1), MAX_TOKENS)
            > MAX_TOKENS * share
        )

    @staticmethod
    def flow(waiter: Waiter) -> tuple[str, int]:
        return waiter.tenant, waiter.priority

    @precondition(lambda self: self.waiting)
    @rule()
    def serve(self) -> None:
        served = self.queue.pop()
        assert served is not None
        assert served.priority == min(each.priority for each in self.waiting)
        first = next(each for each in self.waiting if self.flow(each) == self.flow(served))
        assert served is first
        self.waiting.remove(served)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(self.waiting))
        assert self.queue.remove(waiter)
        assert not self.queue.remove(waiter)
        self.waiting.remove(waiter)

    @invariant()
    def it_is_whole(self) -> None:
        self.queue.check()
        assert self.queue.num_requests == len(self.waiting)
        if not self.waiting:
            assert self.queue.pop() is None


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=150, stateful_step_count=40)


@given(
    sizes=st.lists(st.lists(st.integers(1, 900), min_size=1, max_size=3), min_size=2, max_size=4),
    num_served=st.integers(10, 60),
)
def test_backlogged_tenants_share_by_weight_within_a_quantum_and_a_request(
    sizes: list[list[int]], num_served: int
) -> None:
    """The bound of the paper: served tokens per weight differ by less than a quantum and, for each
    of the two, the largest request by its weight.
    """
    names = sorted(WEIGHTS)[: len(sizes)]
    queue = FairQueue(max_requests=10_000, max_tokens=10**9, quantum=QUANTUM)
    for number in range(num_served):
        for name, own in zip(names, sizes, strict=True):
            queue.push(Waiter(name, own[number % len(own)], WEIGHTS[name]))
    served = dict.fromkeys(names, 0.0)
    largest = {name: max(own) / WEIGHTS[name] for name, own in zip(names, sizes, strict=True)}
    for _ in range(num_served):  # nobody runs out meanwhile
        waiter = queue.pop()
        assert waiter is not None
        served[waiter.tenant] += waiter.num_tokens / WEIGHTS[waiter.tenant]
        for one in names:
            for other in names:
                bound = QUANTUM + largest[one] + largest[other]
                assert served[one] - served[other] <= bound


@given(
    others=st.lists(st.integers(1, 500), min_size=1, max_size=30),
    own=st.integers(1, 5000),
)
def test_nobody_starves_behind_those_of_the_same_class(others: list[int], own: int) -> None:
    """A request waits for no more than the rounds that its size takes, however many come after."""
    queue = FairQueue(max_requests=10_000, max_tokens=10**9, quantum=QUANTUM)
    for size in others:
        queue.push(Waiter("busy", size))
    mine = Waiter("quiet", own)
    queue.push(mine)
    before = 0
    for size in itertools.cycle(others):
        queue.push(Waiter("busy", size))
        if (served := queue.pop()) is mine:
            break
        assert served is not None
        before += served.num_tokens
        assert before <= own + 2 * QUANTUM + max(others)


@given(
    waiting=st.lists(
        st.tuples(st.sampled_from("abcd"), st.integers(1, 500), st.integers(0, 1)), max_size=30
    ),
    newcomer=st.tuples(st.sampled_from("abcd"), st.integers(1, 500), st.integers(0, 1)),
)
def test_tokens_ahead_tell_what_goes_before(
    waiting: list[tuple[str, int, int]], newcomer: tuple[str, int, int]
) -> None:
    """Within the error of the rounds: what each tenant of the class may be ahead or behind."""
    queue = FairQueue(max_requests=10_000, max_tokens=10**9, quantum=QUANTUM)
    for tenant, size, priority in waiting:
        queue.push(Waiter(tenant, size, WEIGHTS[tenant], priority))
    tenant, size, priority = newcomer
    mine = Waiter(tenant, size, WEIGHTS[tenant], priority)
    expected = queue.tokens_ahead(mine)
    queue.push(mine)
    actual = 0
    while (served := queue.pop()) is not mine:
        assert served is not None
        actual += served.num_tokens
    slack = sum(500 + (QUANTUM + 500 / WEIGHTS[tenant]) * weight for weight in WEIGHTS.values())
    assert abs(actual - expected) <= slack
