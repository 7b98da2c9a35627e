"""What a policy sees and what it answers."""

from collections.abc import Sequence
from typing import ClassVar, Protocol

import msgspec


class RouteRequest(msgspec.Struct, frozen=True):
    """Structs here, not dataclasses: each decision makes one view of every replica, and a frozen
    dataclass takes several times as long to make.

    num_prompt_tokens: over all prompts of the request; 0 when it could not be tokenized.

    session: what the client says that the request belongs to. hashes: of the longest prompt's full
    blocks, each naming its whole prefix. has_index: False while no replica's cache is known, so
    that every `num_cached_tokens` is at most a guess.
    """

    num_prompt_tokens: int
    session: str | None = None
    hashes: Sequence[bytes] = ()
    block_size: int = 0
    has_index: bool = True


class ReplicaView(msgspec.Struct, frozen=True):
    """One ready replica as of this moment.

    num_cached_tokens: of this request's prompt, predicted. num_queued_tokens: prompt tokens ahead
    of it. num_recent_tokens: prompt tokens sent there in the last minute or so. num_running:
    sequences being decoded. Rates in tokens per second, never 0. adapter_s: seconds until it has
    loaded the request's adapter; 0 where it has it, and of requests without one.
    """

    replica_id: str
    num_cached_tokens: int
    num_queued_tokens: int
    num_recent_tokens: int
    num_running: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    adapter_s: float = 0.0

    def expected_s(self, num_prompt_tokens: int) -> float:
        """Until the first token of a prompt that is sent there now."""
        num_uncached = max(0, num_prompt_tokens - self.num_cached_tokens)
        prefill_s = (self.num_queued_tokens + num_uncached) / self.prefill_tokens_per_s
        return self.adapter_s + prefill_s + self.num_running / self.decode_tokens_per_s


class Choice(msgspec.Struct, frozen=True):
    """The replica, and the policy's cost of each candidate in their order (units are its own)."""

    replica: ReplicaView
    costs: tuple[float, ...]


class RoutingPolicy(Protocol):
    """reads_session: whether `RouteRequest.session` matters to it. weighs_adapters: whether it
    compares `ReplicaView.adapter_s` itself; others see only replicas that have the adapter, if any
    has it.
    """

    name: ClassVar[str]
    reads_session: ClassVar[bool]
    weighs_adapters: ClassVar[bool]

    def choose(self, request: RouteRequest, replicas: Sequence[ReplicaView]) -> Choice:
        """Picks one of `replicas` (all ready, never empty). No I/O; within microseconds."""
