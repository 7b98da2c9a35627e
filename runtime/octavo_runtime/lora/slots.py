"""Which adapter is in which slot of the device. Pure: it tells what is to be copied, and copies
nothing.

    slot       0      1      2      3
    contents   a@1    b@7    -      c@2
    users      3      0      0      1        running sequences
               held   idle   empty  held

An idle slot keeps its contents until another adapter needs it; empty ones are taken first, then the
one that has been idle for longest.
"""

_EMPTY = ""


class SlotTable:
    """`num_slots` slots, all empty. An adapter stands in at most one of them."""

    def __init__(self, num_slots: int) -> None:
        self._contents = [_EMPTY] * num_slots
        self._slot_of: dict[str, int] = {}
        self._num_users: dict[str, int] = {}
        self._idle = dict.fromkeys(range(num_slots))  # in the order in which they are taken
        self._changes: dict[int, str] = {}

    @property
    def num_idle(self) -> int:
        return len(self._idle)

    @property
    def contents(self) -> tuple[str, ...]:
        """Adapters in slots."""
        return tuple(self._slot_of)

    @property
    def held(self) -> dict[str, int]:
        """Number of users of each adapter that has any."""
        return dict(self._num_users)

    def is_held(self, adapter: str) -> bool:
        return adapter in self._num_users

    def can_hold(self, adapter: str) -> bool:
        """`acquire` would find a slot."""
        return adapter in self._num_users or bool(self._idle)

    def acquire(self, adapter: str) -> int:
        """Its slot, for one more user. `can_hold` must say that there is one."""
        slot = self._slot_of.get(adapter)
        if slot is None:
            slot = next(iter(self._idle))
            self._slot_of.pop(self._contents[slot], None)
            self._contents[slot] = adapter
            self._slot_of[adapter] = slot
            self._changes[slot] = adapter
        self._idle.pop(slot, None)
        self._num_users[adapter] = self._num_users.get(adapter, 0) + 1
        return slot

    def release(self, adapter: str) -> None:
        """One user less. The last one leaves the slot idle."""
        self._num_users[adapter] -= 1
        if self._num_users[adapter] == 0:
            del self._num_users[adapter]
            self._idle[self._slot_of[adapter]] = None

    def forget(self, adapter: str) -> None:
        """The adapter is gone: its slot is empty. It has no users; it need not have a slot."""
        slot = self._slot_of.pop(adapter, None)
        if slot is None:
            return
        self._contents[slot] = _EMPTY
        self._changes.pop(slot, None)
        self._idle = {slot: None, **self._idle}

    def forget_all(self) -> None:
        """The device has lost what is in its slots. None has users."""
        for adapter in self.contents:
            self.forget(adapter)

    def take_changes(self) -> tuple[tuple[int, str], ...]:
        """(slot, adapter) to be copied before the next step; once."""
        changes = tuple(self._changes.items())
        self._changes.clear()
        return changes

    def check(self) -> None:
        """Asserts that the tables agree. For tests."""
        assert self._slot_of == {
            adapter: slot for slot, adapter in enumerate(self._contents) if adapter != _EMPTY
        }
        assert all(count > 0 for count in self._num_users.values())
        held = {self._slot_of[adapter] for adapter in self._num_users}
        assert held.isdisjoint(self._idle)
        assert held | set(self._idle) == set(range(len(self._contents))), "slots leaked"
