"""One simulated replica: the engine's own block pool, a queue, steps by a cost model.

First come, first served. A step computes one token of every sequence that decodes and fills the
rest of its token budget with prompt chunks. Its duration is

    prompt tokens / prefill rate + first decoding sequence + further ones x seconds each

Simplifications: the blocks of a sequence's whole output are reserved at its admission, so nothing
is preempted; output blocks are not offered to later prompts, since traces do not name them.
"""

from collections import deque
from dataclasses import dataclass, field

from octavo.sim.adapters import SimulatedAdapters
from octavo.sim.options import ReplicaModel
from octavo.sim.trace import TraceRequest
from octavo_protocol.hashing import cached_tokens
from octavo_protocol.records import KVEvent
from octavo_runtime.engine.block_pool import BlockPool


@dataclass(slots=True, eq=False)
class SimulatedSequence:
    """A request on its way through a replica. key: the fleet's name for it. found_adapter: it did
    not wait for a load.
    """

    key: int
    request: TraceRequest
    blocks: list[int] = field(default_factory=list)
    num_cached_tokens: int = 0
    num_computed_tokens: int = 0
    num_output_tokens: int = 0
    found_adapter: bool = True

    @property
    def num_uncomputed(self) -> int:
        return self.request.num_prompt_tokens - self.num_computed_tokens


@dataclass(frozen=True, slots=True)
class Progress:
    """A sequence's first token or its end, at a time."""

    time_s: float
    sequence: SimulatedSequence
    is_end: bool


class SimulatedReplica:
    """Time goes on in `advance` only. `progress` and `take_events` tell what happened since."""

    def __init__(self, name: str, model: ReplicaModel) -> None:
        self.name = name
        self.model = model
        self.pool = BlockPool(model.num_blocks)
        self.adapters = SimulatedAdapters(model.max_adapters, model.adapter_load_s)
        self.now = 0.0
        self.num_prefill_tokens = 0
        self.num_cached_tokens = 0
        self._loading: dict[str, list[SimulatedSequence]] = {}  # what waits for which adapter
        self._waiting: deque[SimulatedSequence] = deque()
        self._prefilling: deque[SimulatedSequence] = deque()
        self._decoding: list[SimulatedSequence] = []
        self._progress: list[Progress] = []

    @property
    def num_running(self) -> int:
        return len(self._prefilling) + len(self._decoding)

    @property
    def num_waiting_tokens(self) -> int:
        """Prompt tokens that are not computed yet."""
        queued = sum(each.request.num_prompt_tokens for each in self._waiting)
        return queued + sum(each.num_uncomputed for each in self._prefilling)

    def submit(self, sequence: SimulatedSequence) -> None:
        """Queues it at the replica's present time. Raises `ValueError` when it can never fit."""
        if self._needed_blocks(sequence) > self.model.num_blocks:
            raise ValueError(
                f"a request of {sequence.request.num_prompt_tokens} tokens does not fit "
                f"{self.model.num_blocks} blocks of {self.model.block_size}"
            )
        name = sequence.request.adapter
        if name is None or self.adapters.has(name):
            self._enter(sequence)
            return
        sequence.found_adapter = False
        self._loading.setdefault(name, []).append(sequence)
        self.adapters.load(name, self.now)

    def advance(self, until: float) -> None:
        """Computes steps until the clock reaches `until`; the last one may end after it."""
        while self.now < until:
            self._take_loaded()
            self._admit()
            due = min(until, self.adapters.next_read(self.now))
            if self.num_running:
                self._step(due)
            else:
                self.now = due

    def take_progress(self) -> list[Progress]:
        """First tokens and ends since the last call, by time."""
        progress, self._progress = self._progress, []
        return progress

    def take_events(self) -> list[KVEvent]:
        return self.pool.take_events()

    def stop(self) -> list[SimulatedSequence]:
        """It dies: what it had not finished."""
        loading = (sequence for waiting in self._loading.values() for sequence in waiting)
        return [*loading, *self._waiting, *self._prefilling, *self._decoding]

    def _enter(self, sequence: SimulatedSequence) -> None:
        if (name := sequence.request.adapter) is not None:
            self.adapters.begin(name)
        self._waiting.append(sequence)

    def _take_loaded(self) -> None:
        for name in self.adapters.settle(self.now):
            for sequence in self._loading.pop(name, ()):
                self._enter(sequence)

    def _needed_blocks(self, sequence: SimulatedSequence) -> int:
        tokens = sequence.request.num_prompt_tokens + sequence.request.num_output_tokens
        return -(-tokens // self.model.block_size)

    def _admit(self) -> None:
        while self._waiting and self.num_running < self.model.max_num_seqs:
            sequence = self._waiting[0]
            matched = self.pool.match(sequence.request.hashes)
            num_new = self._needed_blocks(sequence) - len(matched)
            if num_new > self.pool.num_free_after_acquire(matched):
                return
            self._waiting.popleft()
            self.pool.acquire(matched)
            sequence.blocks = matched + self.pool.allocate(num_new)
            sequence.num_cached_tokens = sequence.num_computed_tokens = cached_tokens(
                len(matched), self.model.block_size, sequence.request.num_prompt_tokens
            )
            self.num_cached_tokens += sequence.num_cached_tokens
            self._register(sequence, len(matched))
            self._prefilling.append(sequence)

    def _register(self, sequence: SimulatedSequence, num_matched: int) -> None:
        """As the engine does: a block is findable from the moment that it is scheduled."""
        hashes = sequence.request.hashes
        parent = hashes[num_matched - 1] if num_matched else None
        self.pool.register(sequence.blocks[num_matched : len(hashes)], hashes[num_matched:], parent)

    def _step(self, until: float) -> None:
        model = self.model
        num_decoding = len(self._decoding)
        budget = max(0, model.max_num_batched_tokens - num_decoding)
        num_prefill = 0
        ready: list[SimulatedSequence] = []
        while self._prefilling and num_prefill < budget:
            sequence = self._prefilling[0]
            chunk = min(sequence.num_uncomputed, budget - num_prefill)
            sequence.num_computed_tokens += chunk
            num_prefill += chunk
            if sequence.num_uncomputed:
                break
            ready.append(self._prefilling.popleft())
        duration = num_prefill / model.prefill_tokens_per_s
        if num_decoding:
            duration += model.decode_step_s + (num_decoding - 1) * model.decode_sequence_s
        num_steps = 1 if num_prefill or self._waiting else self._steps_until(until, duration)
        self.now += duration * num_steps
        self.num_prefill_tokens += num_prefill
        self._decode(num_steps)
        for sequence in ready:
            self._emit(sequence)

    def _steps_until(self, until: float, duration: float) -> int:
        """Equal decode steps in a row: up to the first end, or to `until`."""
        left = min(
            sequence.request.num_output_tokens - sequence.num_output_tokens
            for sequence in self._decoding
        )
        return max(1, min(left, int((until - self.now) / duration) + 1))

    def _decode(self, num_steps: int) -> None:
        going, self._decoding = self._decoding, []
        for sequence in going:
            sequence.num_output_tokens += num_steps
            self._go_on(sequence)

    def _emit(self, sequence: SimulatedSequence) -> None:
        """The step that ends a prompt draws its first token."""
        sequence.num_output_tokens = 1
        self._progress.append(Progress(self.now, sequence, is_end=False))
        self._go_on(sequence)

    def _go_on(self, sequence: SimulatedSequence) -> None:
        if sequence.num_output_tokens < sequence.request.num_output_tokens:
            self._decoding.append(sequence)
            return
        self.pool.release(sequence.blocks)
        if (name := sequence.request.adapter) is not None:
            self.adapters.end(name)
        self._progress.append(Progress(self.now, sequence, is_end=True))
