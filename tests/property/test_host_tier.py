"""Adapters in host memory under random calls: never over the bound, never gone while in use."""

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from octavo_protocol.errors import AdapterNotFoundError, UnavailableError
from octavo_runtime.lora.adapter import LoRAAdapter
from octavo_runtime.lora.host_tier import HostTier

NAMES = st.sampled_from(["a", "b", "c", "org/d@home"])


def adapter(name: str, version: int = 1) -> LoRAAdapter:
    return LoRAAdapter(name, str(version), 8, {})


class HostTierMachine(RuleBasedStateMachine):
    """present: what came and has not left, as `on_leave` tells."""

    @initialize(capacity=st.integers(1, 4))
    def start(self, capacity: int) -> None:
        self.present: set[str] = set()
        self.tier = HostTier(capacity, self.present.remove)
        self.requests: list[str] = []

    @rule(name=NAMES, version=st.integers(1, 3), pinned=st.booleans())
    def load(self, name: str, version: int, pinned: bool) -> None:
        added = adapter(name, version)
        before = [each.identity for each in self.tier.known]
        try:
            evicted = self.tier.add(added, pinned=pinned)
        except UnavailableError:
            assert [each.identity for each in self.tier.known] == before
            assert all(
                self.tier.is_pinned(each.name) or self.tier.num_requests(each.identity)
                for each in self.tier.known
                if each.name != name
            )
            return
        self.present.add(added.identity)
        assert not any(victim in self.tier for victim in evicted)
        assert self.tier.known[-1].identity == added.identity

    @rule(name=NAMES)
    def unload(self, name: str) -> None:
        if name in self.tier:
            self.tier.remove(name)
        else:
            with pytest.raises(AdapterNotFoundError, match="is loaded"):
                self.tier.remove(name)
        assert name not in self.tier

    @rule(name=NAMES)
    def pin(self, name: str) -> None:
        if name in self.tier:
            self.tier.pin(name)

    @rule(name=NAMES, version=st.integers(1, 3))
    def begin(self, name: str, version: int) -> None:
        identity = adapter(name, version).identity
        if identity in {each.identity for each in self.tier.known}:
            self.tier.acquire(identity)
            self.requests.append(identity)
        else:
            with pytest.raises(AdapterNotFoundError, match="load it again"):
                self.tier.acquire(identity)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        identity = data.draw(st.sampled_from(self.requests))
        self.requests.remove(identity)
        self.tier.release(identity)

    @invariant()
    def consistent(self) -> None:
        self.tier.check()
        assert len(self.present) == len(self.tier)
        for identity in self.requests:
            assert self.tier.get(identity).identity == identity

    def teardown(self) -> None:
        if not hasattr(self, "tier"):
            return
        for identity in self.requests:
            self.tier.release(identity)
        for each in self.tier.known:
            self.tier.remove(each.name)
        assert self.present == set()


TestHostTier = HostTierMachine.TestCase
TestHostTier.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_the_one_used_longest_ago_goes_first() -> None:
    gone: list[str] = []
    tier = HostTier(3, gone.append)
    for name in "abc":
        tier.add(adapter(name))
    tier.acquire("a@1")
    tier.release("a@1")

    assert tier.add(adapter("d")) == ["b"]
    assert tier.add(adapter("e")) == ["c"]
    assert gone == ["b@1", "c@1"]
    assert [each.name for each in tier.known] == ["a", "d", "e"]


def test_a_replaced_version_stays_for_its_requests_and_counts() -> None:
    gone: list[str] = []
    tier = HostTier(2, gone.append)
    tier.add(adapter("a", 1))
    tier.acquire("a@1")
    tier.add(adapter("a", 2))

    assert len(tier) == 2
    assert tier.get("a@1").version == "1"
    with pytest.raises(AdapterNotFoundError):
        tier.acquire("a@1")
    tier.acquire("a@2")
    with pytest.raises(UnavailableError, match="all 2 places"):
        tier.add(adapter("b"))
    tier.release("a@1")
    assert gone == ["a@1"]
    assert tier.add(adapter("b")) == []
