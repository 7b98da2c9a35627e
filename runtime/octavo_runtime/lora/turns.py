"""Which adapters new sequences may come from, so that each gets its turn in the slots. Pure.

    a sequence without an adapter        always
    its adapter is in a held slot        yes, at once: others that wait for a slot are overtaken
    a slot is idle                       yes
    else                                 it waits; sequences behind it go on

Slots that are always held would keep those that wait out for ever. So, when `max_overtakes`
sequences with adapters have been admitted past the first one that waits for a slot, the adapter
with the fewest running sequences closes: it gets no new ones, and the slot that it leaves goes to
the one that waits. Until then, overtaking saves copies and keeps the batch full.
"""

from collections.abc import Iterable

from octavo_runtime.lora.slots import SlotTable


class AdapterTurns:
    def __init__(self, num_slots: int, max_overtakes: int) -> None:
        self.slots = SlotTable(num_slots)
        self._max_overtakes = max_overtakes
        self._closing = ""
        self._first_order = -1  # of the first sequence that waits for a slot
        self._num_overtakes = 0

    def is_open(self, adapter: str) -> bool:
        """A sequence with this adapter may start; empty: without one."""
        return not adapter or (adapter != self._closing and self.slots.can_hold(adapter))

    def open_among(self, adapters: Iterable[str]) -> list[str]:
        """Those that are open. Where all slots are held, these are few: all that are open, then."""
        candidates = adapters if self.slots.num_idle else ("", *self.slots.held)
        return [adapter for adapter in candidates if self.is_open(adapter)]

    def start(self, adapter: str) -> int:
        """The slot of a sequence that starts; -1 without an adapter. It must be open."""
        if not adapter:
            return -1
        if not self.slots.is_held(adapter):
            self._closing = ""  # the first that waits gets the first slot: it need wait no longer
        return self.slots.acquire(adapter)

    def end(self, adapter: str) -> None:
        """A sequence that had started runs no longer."""
        if not adapter:
            return
        self.slots.release(adapter)
        if not self.slots.is_held(self._closing):
            self._closing = ""

    def overtaken(self, order: int) -> None:
        """A sequence with an adapter has started before the one of this `order`, which is the first
        that waits for a slot.
        """
        if order != self._first_order:
            self._first_order, self._num_overtakes = order, 0
        self._num_overtakes += 1
        if self._num_overtakes >= self._max_overtakes and not self._closing:
            held = self.slots.held
            self._closing = min(held, key=held.__getitem__)
