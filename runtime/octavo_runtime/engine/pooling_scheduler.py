"""Decides which prompts, or chunks of them, the next pooling step computes: no torch, no clock.

                 encoder                          decoder
    a step has   whole prompts up to the budget   chunks up to the budget
    KV blocks    none                             of the whole prompt, from its admission on

The length of a prompt is known when it is admitted, so nothing grows and nothing is preempted for
room. Adapters take turns in slots as in generation (`lora/turns.py`). A prompt gives blocks and
slot up when its last chunk is planned: what gets them is computed by
later steps, and the prefix cache still knows them.

Background requests (`octavo_protocol/priorities.py`) are planned after all others, into steps that
a smaller budget keeps short.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from octavo_protocol.hashing import HashIdentity, block_hashes, cached_tokens
from octavo_protocol.priorities import is_background
from octavo_runtime.engine.block_pool import BlockPool
from octavo_runtime.engine.messages import PoolingRequest
from octavo_runtime.engine.waiting_queue import WaitingQueue
from octavo_runtime.lora.turns import AdapterTurns


class Prompt:
    """State of one request. Only the scheduler changes it.

    order, num_shared_tokens, num_cached_tokens, scheduled_ts: as of `Sequence`.
    is_aborted: nobody wants its result any more.
    """

    __slots__ = (
        "block_hashes",
        "block_table",
        "extra",
        "is_aborted",
        "is_background",
        "lora_slot",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_shared_tokens",
        "order",
        "reads_prefix_cache",
        "request",
        "scheduled_ts",
    )

    def __init__(
        self, request: PoolingRequest, order: int, extra: bytes, *, reads_prefix_cache: bool
    ) -> None:
        self.request = request
        self.order = order
        self.extra = extra
        self.reads_prefix_cache = reads_prefix_cache
        self.is_aborted = False
        self.is_background = is_background(request.priority)
        self.num_computed_tokens = 0
        self.num_shared_tokens = 0
        self.num_cached_tokens: int | None = None
        self.scheduled_ts = 0.0
        self.lora_slot = -1
        self.block_table: list[int] = []
        self.block_hashes: list[bytes] = []

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def num_tokens(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def num_left(self) -> int:
        """Tokens still to be planned."""
        return self.num_tokens - self.num_computed_tokens


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens start … start + num_tokens - 1 of a prompt. block_table: empty without KV blocks.

    lora_slot: of its adapter; -1: none.
    """

    prompt: Prompt
    start: int
    num_tokens: int
    block_table: tuple[int, ...]
    lora_slot: int = -1

    @property
    def is_last(self) -> bool:
        return self.start + self.num_tokens == self.prompt.num_tokens


@dataclass(frozen=True, slots=True)
class PoolingSchedulerConfig:
    """Limits of one step. `cache_model` enters every block hash. max_chunk: 0 = the budget.

    max_loras: slots for adapters.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    policy: str = "fcfs"
    max_chunk: int = 0
    cache_model: str = ""
    max_loras: int = 0


class PoolingScheduler:
    """Owns all prompts, and the block pool; pool: None = whole prompts without KV blocks.

    `max_num_batched_tokens` must then hold the longest prompt.
    """

    def __init__(self, config: PoolingSchedulerConfig, pool: BlockPool | None) -> None:
        self.config = config
        self.pool = pool
        self.waiting: WaitingQueue[Prompt] = WaitingQueue(
            "priority" if config.policy == "priority" else "fcfs"
        )
        self.running: list[Prompt] = []
        self.turns = AdapterTurns(config.max_loras, max_overtakes=config.max_num_seqs)
        self.num_preemptions = 0
        self.num_queried_tokens = 0
        self.num_hit_tokens = 0
        self._num_added = 0
        self._released: list[str] = []

    # -- requests in and out ------------------------------------------------------------------

    def add(self, request: PoolingRequest, *, reads_prefix_cache: bool = False) -> None:
        """Queues a request. Its id must be unknown.

        reads_prefix_cache: its result does not need the hidden states of cached tokens.
        """
        extra = b""
        if self.pool is not None:
            identity = HashIdentity(self.config.cache_model, request.adapter, request.cache_salt)
            extra = identity.extra()
        prompt = Prompt(request, self._num_added, extra, reads_prefix_cache=reads_prefix_cache)
        self._num_added += 1
        self.waiting.push(prompt)

    def abort(self, request_ids: Iterable[str]) -> None:
        """Ends requests and frees their blocks at once. Unknown ids are ignored."""
        ids = set(request_ids)
        for request_id in ids:
            prompt = self.waiting.remove(request_id)
            if prompt is not None:
                prompt.is_aborted = True
        for prompt in [each for each in self.running if each.request_id in ids]:
            prompt.is_aborted = True
            self._stop(prompt)

    def preempt_all(self) -> None:
        """Takes the blocks of every running prompt; each is computed again, from its start."""
        for prompt in list(self.running):
            self._stop(prompt)
            prompt.num_computed_tokens = prompt.num_shared_tokens = 0
            self.num_preemptions += 1
            self.waiting.push(prompt)

    def take_released(self) -> list[str]:
        """Prompts that were given up in the middle since the last call: aborted or preempted."""
        released, self._released = self._released, []
        return released

    @property
    def has_work(self) -> bool:
        return bool(self.running) or len(self.waiting) > 0

    @property
    def num_uncomputed_tokens(self) -> int:
        return self.waiting.num_tokens + sum(prompt.num_left for prompt in self.running)

    @property
    def num_background_running(self) -> int:
        return sum(prompt.is_background for prompt in self.running)

    @property
    def num_background_uncomputed_tokens(self) -> int:
        """The part of background requests in `num_uncomputed_tokens`."""
        running = (prompt.num_left for prompt in self.running if prompt.is_background)
        return self.waiting.num_background_tokens + sum(running)

    @property
    def has_foreground(self) -> bool:
        """There are requests that are no background work."""
        first = self.waiting.peek()
        is_waiting = first is not None and not first.is_background
        return is_waiting or any(not prompt.is_background for prompt in self.running)

    # -- the step -----------------------------------------------------------------------------

    def schedule(self, now: float = 0.0, background_budget: int | None = None) -> list[Chunk]:
        """Plans a step, which must then be executed; chunks of one token come first.

        now: the time, for `Prompt.scheduled_ts`. background_budget: tokens of a step that are
        enough for background work to wait, but for one prompt that is whole and alone; None: only a
        full step is.
        """
        budget = self.config.max_num_batched_tokens
        chunks: list[Chunk] = []
        self._schedule(chunks, now, budget, background=False)
        budget = min(budget, background_budget or budget)
        self._schedule(chunks, now, budget, background=True)
        for chunk in chunks:
            if chunk.is_last:
                self._finish(chunk.prompt)
        chunks.sort(key=lambda chunk: chunk.num_tokens > 1)
        return chunks

    def check(self) -> None:
        """Asserts that blocks, slots and prompts agree. For tests."""
        self.turns.slots.check()
        adapters = [each.request.adapter for each in self.running if each.request.adapter]
        assert self.turns.slots.held == {each: adapters.count(each) for each in adapters}
        if self.pool is None:
            assert not self.running, "whole prompts never stay"
            return
        self.pool.check()
        in_use = {block for prompt in self.running for block in prompt.block_table}
        for prompt in self.running:
            assert len(prompt.block_table) == self._num_blocks(prompt)
            assert 0 < prompt.num_computed_tokens < prompt.num_tokens
        assert self.pool.num_blocks - self.pool.num_free == len(in_use), "blocks leaked"

    # -- internals ----------------------------------------------------------------------------

    def _schedule(self, chunks: list[Chunk], now: float, budget: int, *, background: bool) -> None:
        """Adds what such prompts compute while `chunks` have fewer than `budget` tokens in all."""
        budget -= sum(chunk.num_tokens for chunk in chunks)
        for prompt in [each for each in self.running if each.is_background is background]:
            if budget <= 0:
                break
            chunks.append(self._plan(prompt, budget))
            budget -= chunks[-1].num_tokens
        while len(self.running) < self.config.max_num_seqs:
            waiting = self._next()
            if waiting is None or waiting.is_background is not background:
                break
            is_whole_and_alone = self.pool is None and not chunks
            room = self.config.max_num_batched_tokens if is_whole_and_alone else budget
            if not self._admit(waiting, room):
                break
            waiting.scheduled_ts = waiting.scheduled_ts or now
            chunks.append(self._plan(waiting, room))
            budget -= chunks[-1].num_tokens

    def _next(self) -> Prompt | None:
        """The first that waits, of those whose adapter has a slot or can have one."""
        first = self.waiting.peek()
        if first is None or self.turns.is_open(first.request.adapter):
            return first
        return self.waiting.peek_of(self.turns.open_among(self.waiting.adapters))

    def _admit(self, prompt: Prompt, budget: int) -> bool:
        """Moves the next prompt from the queue to `running`. False, and no change, without room."""
        if budget <= 0 or (self.pool is None and prompt.num_tokens > budget):
            return False
        if self.pool is not None and not self._allocate(self.pool, prompt):
            return False
        self.waiting.remove(prompt.request_id)
        self.running.append(prompt)
        self._start_adapter(prompt)
        return True

    def _start_adapter(self, prompt: Prompt) -> None:
        """Gives a prompt that leaves the queue its slot, and counts whom it overtakes."""
        prompt.lora_slot = self.turns.start(prompt.request.adapter)
        if prompt.lora_slot < 0:
            return
        first = self.waiting.peek()
        if first is not None and self.waiting.key(first) < self.waiting.key(prompt):
            self.turns.overtaken(first.order)

    def _allocate(self, pool: BlockPool, prompt: Prompt) -> bool:
        """Gives the prompt blocks for all of its tokens. False, and no change, if none are left."""
        block_size = self.config.block_size
        hits: list[int] = []
        if pool.enable_prefix_caching:
            prompt.block_hashes = block_hashes(
                prompt.request.prompt_token_ids,
                block_size,
                prompt.extra,
                known=prompt.block_hashes,
            )
            if prompt.reads_prefix_cache:
                hits = pool.match(prompt.block_hashes)
        num_new = self._num_blocks(prompt) - len(hits)
        if num_new > pool.num_free_after_acquire(hits):
            return False
        pool.acquire(hits)
        prompt.block_table = hits + pool.allocate(num_new)
        prompt.num_shared_tokens = len(hits) * block_size
        prompt.num_computed_tokens = cached_tokens(len(hits), block_size, prompt.num_tokens)
        if prompt.num_cached_tokens is None:
            prompt.num_cached_tokens = prompt.num_computed_tokens
            self.num_hit_tokens += prompt.num_computed_tokens
            self.num_queried_tokens += prompt.num_tokens if prompt.reads_prefix_cache else 0
        return True

    def _plan(self, prompt: Prompt, budget: int) -> Chunk:
        count = min(prompt.num_left, budget)
        if self.pool is not None and self.config.max_chunk > 0:
            count = min(count, self.config.max_chunk)
        start = prompt.num_computed_tokens
        prompt.num_computed_tokens += count
        if self.pool is not None and self.pool.enable_prefix_caching:
            self._register(self.pool, prompt, start)
        return Chunk(prompt, start, count, tuple(prompt.block_table), prompt.lora_slot)

    def _register(self, pool: BlockPool, prompt: Prompt, start: int) -> None:
        """Tells the prefix cache of the blocks that the chunk from `start` on fills.

        Every layer writes a step's keys and values before any prompt attends to them, so prompts
        of the same step may share them.
        """
        first = max(start, prompt.num_shared_tokens) // self.config.block_size
        end = prompt.num_computed_tokens // self.config.block_size
        if end > first:
            parent = prompt.block_hashes[first - 1] if first else None
            pool.register(prompt.block_table[first:end], prompt.block_hashes[first:end], parent)

    def _stop(self, prompt: Prompt) -> None:
        self._finish(prompt)
        self._released.append(prompt.request_id)

    def _finish(self, prompt: Prompt) -> None:
        self.running.remove(prompt)
        self.turns.end(prompt.request.adapter)
        prompt.lora_slot = -1
        if self.pool is not None:
            self.pool.release(prompt.block_table)
        prompt.block_table = []

    def _num_blocks(self, prompt: Prompt) -> int:
        return -(-prompt.num_tokens // self.config.block_size)
