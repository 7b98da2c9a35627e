"""Decides which tokens of which sequences the next step computes. Pure: no torch, no clock.

One budget of tokens per step is shared by running sequences that need one token (decodes), then
running ones in the middle of their prompt (prefill chunks), then newly admitted ones. When blocks
run out, the running sequence that is last in queue order loses all of its blocks and waits again;
the prefix cache still holds what it computed until someone needs the room.

Background requests (`octavo_protocol/priorities.py`) are planned after all others, from what these
leave of the budget, or of a smaller one that keeps steps short. Places and blocks that another
request waits for are taken from them at once.

Sequences with an adapter need a slot for it while they run; see `lora/turns.py` for who gets one.
Those that wait for a slot stand in nobody's way, and take slots that only background requests hold.

Blocks are registered in the prefix cache when they are scheduled, not after the step: every layer
writes a step's keys and values before any sequence attends to them, so a sequence admitted in the
same step may already share them (this is how `n > 1` shares its prompt).

A step may be planned while the one before it still runs: each sequence that is sampled gets a
pending token, whose id `update` fills in later. Pending tokens can be computed, since the device
has them, but not hashed; a sequence that turns out to have ended was computed once too often, in
blocks that nobody else writes before that step is over.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from octavo_protocol.hashing import HashIdentity, cached_tokens, shared_hashes
from octavo_runtime.engine.block_pool import BlockPool
from octavo_runtime.engine.messages import EngineRequest, SequenceOutput, TokenLogprobs
from octavo_runtime.engine.sequence import Sequence, SequenceStatus
from octavo_runtime.engine.waiting_queue import WaitingQueue
from octavo_runtime.lora.turns import AdapterTurns


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Limits of one step. `cache_model` enters every block hash. max_loras: slots for adapters."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    block_size: int
    policy: str = "fcfs"
    long_prefill_token_threshold: int = 0
    cache_model: str = ""
    max_loras: int = 0


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """`num_new_tokens` tokens of `sequence` from position `start`.

    samples: they are the last that it has, so the step samples the next one.
    """

    sequence: Sequence
    start: int
    num_new_tokens: int
    samples: bool


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Work of one step: sequences with one new token first, then prefill chunks.

    new_adapters: (slot, `LoRAAdapter.identity`) of those to be put into slots before the step.
    """

    scheduled: tuple[ScheduledSequence, ...]
    num_preempted: int = 0
    new_adapters: tuple[tuple[int, str], ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(item.num_new_tokens for item in self.scheduled)

    @property
    def has_background(self) -> bool:
        return any(item.sequence.is_background for item in self.scheduled)

    @property
    def has_prompts(self) -> bool:
        """Some sequence has more than one token."""
        return bool(self.scheduled) and self.scheduled[-1].num_new_tokens > 1


@dataclass(frozen=True, slots=True)
class SampledToken:
    token_id: int
    logprobs: TokenLogprobs | None = None


class Scheduler:
    """Owns all sequences and the block pool."""

    def __init__(self, config: SchedulerConfig, pool: BlockPool) -> None:
        if pool.num_blocks * config.block_size < config.max_model_len:
            raise ValueError(
                f"{pool.num_blocks} blocks of {config.block_size} tokens cannot hold one sequence "
                f"of {config.max_model_len} tokens"
            )
        self.config = config
        self.pool = pool
        self.waiting: WaitingQueue[Sequence] = WaitingQueue(
            "priority" if config.policy == "priority" else "fcfs"
        )
        self.running: list[Sequence] = []
        self.turns = AdapterTurns(config.max_loras, max_overtakes=config.max_num_seqs)
        self.num_preemptions = 0
        self.num_queried_tokens = 0
        self.num_hit_tokens = 0
        self._num_added = 0
        self._background_budget = config.max_num_batched_tokens
        self._released: list[str] = []

    # -- requests in and out ------------------------------------------------------------------

    def add(self, request: EngineRequest) -> None:
        """Queues a request. Its id must be unknown and its prompt shorter than max_model_len; one
        with an adapter needs max_loras.
        """
        identity = HashIdentity(self.config.cache_model, request.adapter, request.cache_salt)
        sequence = Sequence(request, self._num_added, identity.extra())
        sequence.block_hashes = shared_hashes(
            request.prompt_token_ids, self.config.block_size, identity, request.shared_prefix
        )
        self.waiting.push(sequence)
        self._num_added += 1

    def abort(self, request_ids: Iterable[str]) -> None:
        """Ends requests and frees their blocks at once. Unknown ids are ignored."""
        for request_id in request_ids:
            sequence = self.waiting.remove(request_id)
            if sequence is None:
                sequence = next((s for s in self.running if s.request_id == request_id), None)
                if sequence is None:
                    continue
                self.running.remove(sequence)
                self._free(sequence)
            sequence.status = SequenceStatus.FINISHED

    def take_released(self) -> list[str]:
        """Sequences that have given up their blocks since the last call: ended or preempted."""
        released, self._released = self._released, []
        return released

    def preempt_all(self) -> None:
        """Takes the blocks of every running sequence; each computes its tokens again later."""
        for sequence in list(self.running):
            self._preempt(sequence)

    @property
    def has_work(self) -> bool:
        return bool(self.running) or len(self.waiting) > 0

    @property
    def has_foreground(self) -> bool:
        """There are requests that are no background work."""
        first = self.waiting.peek()
        is_waiting = first is not None and not first.is_background
        return is_waiting or any(not sequence.is_background for sequence in self.running)

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens of waiting sequences, and of running ones that are still in their prompt."""
        return self.waiting.num_tokens + sum(_num_left(each) for each in self.running)

    @property
    def num_background_running(self) -> int:
        return sum(sequence.is_background for sequence in self.running)

    @property
    def num_background_uncomputed_tokens(self) -> int:
        """The part of background requests in `num_uncomputed_tokens`."""
        running = (each for each in self.running if each.is_background)
        return self.waiting.num_background_tokens + sum(map(_num_left, running))

    # -- the step -----------------------------------------------------------------------------

    def schedule(self, now: float = 0.0, background_budget: int | None = None) -> StepPlan:
        """Plans a step and counts its tokens as computed: the step must then be executed.

        Empty where all that run wait for their last token. now: the time, for
        `Sequence.scheduled_ts`. background_budget: tokens of a step that are enough for background
        work to wait; None: only a full step is.
        """
        budget = self.config.max_num_batched_tokens
        self._background_budget = min(budget, background_budget or budget)
        planned: dict[Sequence, int] = {}
        num_preemptions = self.num_preemptions
        has_background = any(sequence.is_background for sequence in self.running)
        if self._schedule_running(planned, background=False):
            self._admit(planned, now, with_background=not has_background)
        if has_background and self._schedule_running(planned, background=True):
            self._admit(planned, now, with_background=True)
        items = [
            ScheduledSequence(
                sequence,
                sequence.num_computed_tokens - count,
                count,
                samples=sequence.num_computed_tokens == sequence.num_tokens,
            )
            for sequence, count in planned.items()
        ]
        for item in items:
            item.sequence.num_pending_tokens += item.samples
        items.sort(key=lambda item: item.num_new_tokens > 1)
        return StepPlan(
            tuple(items),
            self.num_preemptions - num_preemptions,
            self.turns.slots.take_changes(),
        )

    def update(
        self,
        plan: StepPlan,
        sampled: Mapping[str, SampledToken],
        prompt_logprobs: Mapping[str, list[TokenLogprobs]] | None = None,
    ) -> list[SequenceOutput]:
        """Appends the sampled tokens, ends what is finished, and returns what is new.

        To be called with the plans in their order, each after its step.
        prompt_logprobs: of the prompt tokens that the step scored, by request.
        """
        scored = prompt_logprobs or {}
        outputs: list[SequenceOutput] = []
        for item in plan.scheduled:
            sequence = item.sequence
            if sequence.status is SequenceStatus.FINISHED:
                continue
            new_prompt_logprobs = scored.get(sequence.request_id)
            sequence.num_scored_tokens += len(new_prompt_logprobs or ())
            if not item.samples:
                if new_prompt_logprobs:
                    outputs.append(
                        SequenceOutput(
                            sequence.request_id, [], new_prompt_logprobs=new_prompt_logprobs
                        )
                    )
                continue
            token = sampled[sequence.request_id]
            sequence.token_ids.append(token.token_id)
            sequence.num_pending_tokens -= 1
            self._register_full_blocks(sequence)
            finish_reason, stop_reason = sequence.finish_reason(self.config.max_model_len)
            if finish_reason is not None:
                self.abort([sequence.request_id])
            outputs.append(
                SequenceOutput(
                    request_id=sequence.request_id,
                    new_token_ids=[token.token_id],
                    new_logprobs=None if token.logprobs is None else [token.logprobs],
                    finish_reason=finish_reason,
                    stop_reason=stop_reason,
                    num_cached_tokens=sequence.num_cached_tokens or 0,
                    num_preemptions=sequence.num_preemptions,
                    scheduled_ts=sequence.scheduled_ts,
                    new_prompt_logprobs=new_prompt_logprobs,
                )
            )
        return outputs

    def check(self) -> None:
        """Asserts that blocks and sequences agree. For tests."""
        self.pool.check()
        in_use: dict[int, int] = {}
        for sequence in self.running:
            assert sequence.status is SequenceStatus.RUNNING
            capacity = len(sequence.block_table) * self.config.block_size
            assert sequence.num_computed_tokens <= sequence.num_tokens
            assert sequence.num_computed_tokens <= capacity
            assert len(set(sequence.block_table)) == len(sequence.block_table)
            for block in sequence.block_table:
                in_use[block] = in_use.get(block, 0) + 1
        assert len(self.running) <= self.config.max_num_seqs
        assert self.pool.num_blocks - self.pool.num_free == len(in_use), "blocks leaked"
        self.turns.slots.check()
        adapters = [each.request.adapter for each in self.running if each.request.adapter]
        assert self.turns.slots.held == {each: adapters.count(each) for each in adapters}

    # -- internals ----------------------------------------------------------------------------

    def _budget(self, *, background: bool) -> int:
        """Tokens of a whole step, for such sequences."""
        return self._background_budget if background else self.config.max_num_batched_tokens

    def _schedule_running(self, planned: dict[Sequence, int], *, background: bool) -> bool:
        """Plans tokens for running sequences, blocks allocated, preempting where there are none.

        False: one of them lost its blocks, so that nothing of their kind is to be admitted.
        """
        budget = self._budget(background=background) - sum(planned.values())
        members = [each for each in self.running if each.is_background is background]
        new: dict[Sequence, int] = {}
        has_lost = False
        members.sort(key=lambda s: s.num_tokens - s.num_computed_tokens > 1)
        for sequence in members:
            if budget <= 0:
                break
            if sequence.status is not SequenceStatus.RUNNING:
                continue  # preempted for an earlier one
            if sequence.has_all_tokens(self.config.max_model_len):
                continue
            count = self._chunk(sequence, budget)
            while not self._grow(sequence, sequence.num_computed_tokens + count):
                victim = max(self.running, key=self.waiting.key)
                budget += new.pop(victim, 0)
                self._preempt(victim)
                has_lost |= victim.is_background == sequence.is_background
                if victim is sequence:
                    break
            else:
                new[sequence] = count
                budget -= count
        for sequence, count in new.items():
            sequence.num_computed_tokens += count
            self._register_full_blocks(sequence)
        planned.update(new)
        return not has_lost

    def _admit(self, planned: dict[Sequence, int], now: float, *, with_background: bool) -> None:
        """Moves sequences from the queue to `planned` while budget, places and blocks last."""
        num_planned = sum(planned.values())
        while (sequence := self._next(planned)) is not None:
            budget = self._budget(background=sequence.is_background) - num_planned
            if budget <= 0:
                return
            if sequence.is_background and not with_background:
                return
            if sequence.num_pending_tokens > 0:
                return  # preempted in the middle of a step that has yet to tell its token
            hit_blocks: list[int] = []
            if self.pool.enable_prefix_caching and sequence.reads_prefix_cache:
                hit_blocks = self.pool.match(sequence.extend_hashes(self.config.block_size))
            num_hit = cached_tokens(len(hit_blocks), self.config.block_size, sequence.num_tokens)
            count = self._chunk(sequence, budget, num_hit)
            num_blocks = -(-(num_hit + count) // self.config.block_size)
            num_new_blocks = max(0, num_blocks - len(hit_blocks))
            if len(
                self.running
            ) >= self.config.max_num_seqs or num_new_blocks > self.pool.num_free_after_acquire(
                hit_blocks
            ):
                if self._make_way(sequence, planned):
                    continue
                return
            self.waiting.remove(sequence.request_id)
            self._start_adapter(sequence)
            self.pool.acquire(hit_blocks)
            sequence.block_table = hit_blocks + self.pool.allocate(num_new_blocks)
            sequence.num_registered_blocks = len(hit_blocks)
            sequence.num_shared_tokens = len(hit_blocks) * self.config.block_size
            sequence.num_computed_tokens = num_hit + count
            if sequence.num_cached_tokens is None:
                sequence.num_cached_tokens = min(num_hit, sequence.num_prompt_tokens)
                sequence.scheduled_ts = now
                if sequence.reads_prefix_cache:
                    self.num_queried_tokens += sequence.num_tokens
                self.num_hit_tokens += num_hit
            sequence.status = SequenceStatus.RUNNING
            self.running.append(sequence)
            self._register_full_blocks(sequence)
            planned[sequence] = count
            num_planned += count

    def _next(self, planned: Mapping[Sequence, int]) -> Sequence | None:
        """The first that waits, of those whose adapter has a slot or can have one."""
        first = self.waiting.peek()
        if first is None or self.turns.is_open(first.request.adapter):
            return first
        is_without_slot = not self.turns.slots.can_hold(first.request.adapter)
        if is_without_slot and not first.is_background and self._free_slot(planned):
            return first
        return self.waiting.peek_of(self.turns.open_among(self.waiting.adapters))

    def _free_slot(self, planned: Mapping[Sequence, int]) -> bool:
        """Preempts the background sequences of an adapter that no others use. False without one."""
        kept = {
            each.request.adapter
            for each in self.running
            if not each.is_background or each in planned
        }
        victims = [each for each in self.running if each.request.adapter not in {"", *kept}]
        for victim in victims:
            if victim.request.adapter == victims[-1].request.adapter:
                self._preempt(victim)
        return bool(victims)

    def _start_adapter(self, sequence: Sequence) -> None:
        """Gives a sequence that leaves the queue its slot, and counts whom it overtakes."""
        sequence.lora_slot = self.turns.start(sequence.request.adapter)
        if sequence.lora_slot < 0:
            return
        first = self.waiting.peek()
        if first is not None and self.waiting.key(first) < self.waiting.key(sequence):
            self.turns.overtaken(first.order)

    def _make_way(self, sequence: Sequence, planned: Mapping[Sequence, int]) -> bool:
        """Preempts a background sequence for one that is not. False without one."""
        if sequence.is_background:
            return False
        victims = [each for each in self.running if each.is_background and each not in planned]
        if not victims:
            return False
        self._preempt(max(victims, key=self.waiting.key))
        return True

    def _chunk(self, sequence: Sequence, budget: int, num_computed: int | None = None) -> int:
        """Tokens of `sequence` that the step computes: all that are left, within the limits."""
        start = sequence.num_computed_tokens if num_computed is None else num_computed
        count = min(sequence.num_tokens - start, budget)
        if self.config.long_prefill_token_threshold > 0:
            count = min(count, self.config.long_prefill_token_threshold)
        return count

    def _grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Gives the sequence blocks for `num_tokens` tokens. False, and no change, if none left."""
        needed = -(-num_tokens // self.config.block_size) - len(sequence.block_table)
        if needed > self.pool.num_free:
            return False
        if needed > 0:
            sequence.block_table += self.pool.allocate(needed)
        return True

    def _register_full_blocks(self, sequence: Sequence) -> None:
        if not self.pool.enable_prefix_caching:
            return
        num_known = min(sequence.num_computed_tokens, len(sequence.token_ids))
        num_full = num_known // self.config.block_size
        first = sequence.num_registered_blocks
        if num_full <= first:
            return
        hashes = sequence.extend_hashes(self.config.block_size)
        parent = hashes[first - 1] if first else None
        self.pool.register(sequence.block_table[first:num_full], hashes[first:num_full], parent)
        sequence.num_registered_blocks = num_full

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._free(sequence)
        sequence.status = SequenceStatus.WAITING
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.push(sequence)

    def _free(self, sequence: Sequence) -> None:
        self.turns.end(sequence.request.adapter)
        sequence.lora_slot = -1
        self.pool.release(sequence.block_table)
        sequence.block_table = []
        sequence.num_computed_tokens = 0
        sequence.num_shared_tokens = 0
        sequence.num_registered_blocks = 0
        self._released.append(sequence.request_id)


def _num_left(sequence: Sequence) -> int:
    """Tokens of its prompt that are still to be computed."""
    return max(0, sequence.num_prompt_tokens - sequence.num_computed_tokens)
