"""From a parsed request to a replica: tokens, hashes, predictions, policy; and the record of it."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from octavo_protocol.bounded_memo import BoundedMemo
from octavo_protocol.errors import UnavailableError, ValidationError
from octavo_protocol.hashing import BlockHasher, HashIdentity, cached_tokens
from octavo_protocol.openai import ChatCompletionRequest, CompletionRequest
from octavo_protocol.overrides import NO_OVERRIDES, PromptTokens, RequestOverrides
from octavo_protocol.packed_ids import ID_BYTES, pack
from octavo_protocol.records import ReplicaRecord
from octavo_protocol.resources.model_deployment import RoutingPolicyName
from octavo_protocol.tokenization import Tokenization
from octavo_protocol.tokenizer import MEMO_BYTES, RENDERING_SPEED, Tokenizer
from octavo_router.deployment import Deployment
from octavo_router.metrics import RouterMetrics
from octavo_router.policies import ReplicaView, RouteRequest
from octavo_router.prefix_index import MemoryPrefixIndex
from octavo_router.shared_prefixes import SharedPrefixes
from octavo_router.tenancy.declared_prefix import DeclaredPrefix
from octavo_router.tokenizers import TokenizerCache

# More new text is tokenized in a thread: on the event loop it would delay other streams.
_INLINE_CHARS = 20_000
DEFAULT_TOKENS_PER_S = 1000.0
_MAX_REMEMBERED = 1000
_T = TypeVar("_T")

GenerationRequest = ChatCompletionRequest | CompletionRequest


@dataclass(frozen=True, slots=True)
class PromptKey:
    """What the index is asked for. hashes: of the longest prompt's full blocks.

    num_tokens: of that prompt; num_other_tokens: of further prompts, never predicted as cached.
    Empty where the prompt could not be tokenized. session: which the request belongs to. tokens:
    what replicas need not tokenize again; None where the prompts came as token ids and share no
    prefix. policy, replica: what the client asks for in place of the deployment's
    choice.
    """

    hashes: tuple[bytes, ...] = ()
    num_tokens: int = 0
    num_other_tokens: int = 0
    block_size: int = 0
    session: str | None = None
    tokens: PromptTokens | None = None
    policy: RoutingPolicyName | None = None
    replica: str | None = None

    @property
    def num_all_tokens(self) -> int:
        """Of all prompts; 0: not known."""
        return self.num_tokens + self.num_other_tokens

    def request(self, index: MemoryPrefixIndex) -> RouteRequest:
        """As the policy sees it."""
        return RouteRequest(
            num_prompt_tokens=self.num_all_tokens,
            session=self.session,
            hashes=self.hashes,
            block_size=self.block_size,
            has_index=index.num_entries > 0,
        )


@dataclass(slots=True)
class Decision:
    """One routing decision, as `GET /debug/route/{request_id}` shows it.

    expected_s: until the first token. left_out: why other replicas were no candidates, by id.
    """

    request_id: str
    deployment: str
    policy: str
    replica: ReplicaRecord
    num_prompt_tokens: int
    num_cached_tokens: int
    views: tuple[ReplicaView, ...]
    costs: tuple[float, ...]
    attempt: int
    seconds: float
    expected_s: float
    left_out: dict[str, str]
    tried: list[str] = field(default_factory=list)

    @property
    def header(self) -> str:
        """Value of `x-octavo-route`."""
        return (
            f"replica={self.replica.replica_id};policy={self.policy};"
            f"cached={self.num_cached_tokens};prompt={self.num_prompt_tokens};"
            f"attempts={self.attempt}"
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "request_id": self.request_id,
            "deployment": self.deployment,
            "policy": self.policy,
            "replica": self.replica.replica_id,
            "prompt_tokens": self.num_prompt_tokens,
            "predicted_cached_tokens": self.num_cached_tokens,
            "attempts": self.attempt,
            "tried_before": self.tried,
            "decision_seconds": self.seconds,
            "expected_ttft_seconds": self.expected_s,
            "candidates": _explain(self.views, self.costs),
            "left_out": self.left_out,
        }


@dataclass(frozen=True, slots=True)
class Pick:
    """The chosen replica, as record and as the policy saw it; all candidates with their costs."""

    record: ReplicaRecord
    view: ReplicaView
    views: tuple[ReplicaView, ...]
    costs: tuple[float, ...]


def choose(
    deployment: Deployment,
    model: str | None,
    key: PromptKey,
    *,
    tried: Sequence[str] = (),
    is_background: bool = False,
) -> Pick:
    """Asks the deployment's policy for a replica that is not among `tried`; changes nothing.

    is_background: the request waits for all others; else it meets no background work.

    Raises `UnavailableError` without one.
    """
    records = deployment.replicas.usable(model, without=tried)
    if key.replica is not None:
        records = [record for record in records if record.replica_id == key.replica]
        if not records:
            raise UnavailableError(f"the replica {key.replica!r} that was asked for is not ready")
    if not records:
        if (error := deployment.replicas.adapters.error(model)) is not None:
            raise error
        raise UnavailableError(
            f"no replica could serve the request; {len(tried)} were tried"
            if tried
            else "no replica is ready; try again in a moment"
        )
    policy = deployment.policy_for(key.policy)
    loads_s = deployment.replicas.adapters.load_seconds(records, model)
    if not policy.weighs_adapters and not all(loads_s):
        records = [record for record, load_s in zip(records, loads_s, strict=True) if not load_s]
        loads_s = [0.0] * len(records)
    loads = deployment.loads_before(is_background=is_background)
    depths = deployment.index.match(key.hashes) if key.hashes else {}
    prefill_rate = _mean_known([record.prefill_tokens_per_s for record in records])
    decode_rate = _mean_known([record.decode_tokens_per_s for record in records])
    views = tuple(
        ReplicaView(
            replica_id=record.replica_id,
            num_cached_tokens=num_cached(record, key, depths),
            num_queued_tokens=sum([each.num_queued_tokens(record.incarnation) for each in loads]),
            num_recent_tokens=sum([each.num_recent_tokens(record.incarnation) for each in loads]),
            num_running=sum([each.num_running(record.incarnation) for each in loads]),
            prefill_tokens_per_s=record.prefill_tokens_per_s or prefill_rate,
            decode_tokens_per_s=record.decode_tokens_per_s or decode_rate,
            adapter_s=load_s,
        )
        for record, load_s in zip(records, loads_s, strict=True)
    )
    choice = policy.choose(key.request(deployment.index), views)
    record = next(
        record for record, view in zip(records, views, strict=True) if view is choice.replica
    )
    return Pick(record, choice.replica, views, choice.costs)


def speculate(deployment: Deployment, pick: Pick, key: PromptKey) -> None:
    """The prompt goes there: what the replica lacks of it counts as held in a moment."""
    if key.hashes:
        num_held = -(-pick.view.num_cached_tokens // key.block_size)
        deployment.index.speculate(pick.record.incarnation, key.hashes[num_held:])


class Decider:
    """Picks replicas. Its only wait is for tokenization.

    memo: keeps the hashes of prompts that begin alike.
    """

    def __init__(
        self,
        tokenizers: TokenizerCache,
        metrics: RouterMetrics,
        memo: BoundedMemo[bytes] | None = None,
    ) -> None:
        self._tokenizers = tokenizers
        memo = memo if memo is not None else BoundedMemo(MEMO_BYTES)
        self._hasher = BlockHasher(memo)
        self._shared_prefixes = SharedPrefixes(memo)
        self._metrics = metrics
        self._remembered: OrderedDict[str, Decision] = OrderedDict()

    async def prompt_key(
        self,
        deployment: Deployment,
        request: GenerationRequest,
        *,
        session: str | None = None,
        overrides: RequestOverrides = NO_OVERRIDES,
        declared: Sequence[DeclaredPrefix] = (),
    ) -> PromptKey:
        """Tokens and hashes as the replicas will compute them with `overrides`, which change
        `request`. declared: prefixes that it may share. Raises `ValidationError`.
        """
        key = await self._prompt_key(deployment, overrides.applied_to(request), declared)
        return key if session is None else replace(key, session=session)

    async def _prompt_key(
        self,
        deployment: Deployment,
        request: GenerationRequest,
        declared: Sequence[DeclaredPrefix],
    ) -> PromptKey:
        usable = deployment.replicas.usable(request.model or None)
        record = next((each for each in usable if each.block_size), None)
        if record is None:
            return PromptKey()
        adapter = deployment.replicas.adapters.identity(usable, request.model)
        tokenizer = await self._tokenizers.get(record)
        if tokenizer is None:
            return PromptKey()
        num_chars = _num_chars(request) // RENDERING_SPEED
        try:
            prompts = await _maybe_in_thread(num_chars, lambda: _begin(request, tokenizer))
        except OverflowError:
            return PromptKey()  # the replica says what is wrong with the ids
        num_new_chars = sum(p.num_new_chars for p in prompts if isinstance(p, Tokenization))
        num_known_chars = sum(p.num_known_chars for p in prompts if isinstance(p, Tokenization))
        self._metrics.new_characters.inc(num_new_chars)
        self._metrics.known_characters.inc(num_known_chars)
        is_text = all(isinstance(each, Tokenization) for each in prompts)
        model = request.model or record.model
        declared = [each for each in declared if each.is_of(model)]

        def complete() -> PromptKey:
            tokens = _complete(prompts, tokenizer.id)
            used = [_truncated(request, each, record.max_model_len) for each in tokens.packed]
            longest = max(used, key=len)
            shared = self._shared_prefixes.find(declared, longest, tokenizer)
            hashes: Sequence[bytes] = ()
            if adapter is not None:
                identity = HashIdentity(record.cache_model, adapter, request.cache_salt or "")
                hashes = self._hasher.hashes(longest, record.block_size, identity, shared)
            return PromptKey(
                hashes=tuple(hashes),
                num_tokens=len(longest) // ID_BYTES,
                num_other_tokens=(sum(map(len, used)) - len(longest)) // ID_BYTES,
                block_size=record.block_size,
                tokens=replace(tokens, shared=shared) if is_text or shared else None,
            )

        return await _maybe_in_thread(num_new_chars, complete)

    def choose(
        self,
        deployment: Deployment,
        request_id: str,
        model: str | None,
        key: PromptKey,
        *,
        tried: Iterable[str] = (),
        is_dry_run: bool = False,
        is_background: bool = False,
    ) -> Decision:
        """Picks a replica that is not among `tried`. Raises `UnavailableError` without one."""
        tried = list(tried)
        started = time.perf_counter()
        pick = choose(deployment, model, key, tried=tried, is_background=is_background)
        seconds = time.perf_counter() - started
        decision = Decision(
            request_id=request_id,
            deployment=deployment.name,
            policy=deployment.policy_for(key.policy).name,
            replica=pick.record,
            num_prompt_tokens=key.num_all_tokens,
            num_cached_tokens=pick.view.num_cached_tokens,
            views=pick.views,
            costs=pick.costs,
            attempt=len(tried) + 1,
            seconds=seconds,
            expected_s=pick.view.expected_s(key.num_tokens + key.num_other_tokens),
            left_out=deployment.replicas.left_out(model, len(pick.views), without=tried),
            tried=tried,
        )
        if not is_dry_run:
            self._metrics.decision.observe(seconds)
            self._remember(decision)
            speculate(deployment, pick, key)
        return decision

    def recall(self, request_id: str) -> Decision | None:
        """The newest decision for a request, while it is among the last thousand."""
        return self._remembered.get(request_id)

    def _remember(self, decision: Decision) -> None:
        self._remembered[decision.request_id] = decision
        self._remembered.move_to_end(decision.request_id)
        if len(self._remembered) > _MAX_REMEMBERED:
            self._remembered.popitem(last=False)


def num_cached(record: ReplicaRecord, key: PromptKey, depths: dict[str, int]) -> int:
    """Prompt tokens that a replica has. depths: blocks of `key` that each incarnation has."""
    depth = depths.get(record.incarnation, 0)
    if not depth or record.block_size != key.block_size:
        return 0
    return cached_tokens(depth, key.block_size, key.num_tokens)


def _mean_known(rates: list[float]) -> float:
    """For replicas that have measured nothing yet: as good as the others are on average."""
    known = [rate for rate in rates if rate > 0]
    return sum(known) / len(known) if known else DEFAULT_TOKENS_PER_S


async def _maybe_in_thread(num_chars: int, work: Callable[[], _T]) -> _T:
    """The result of `work`, which tokenizes `num_chars` characters."""
    return work() if num_chars < _INLINE_CHARS else await asyncio.to_thread(work)


def _num_chars(request: GenerationRequest) -> int:
    if isinstance(request, ChatCompletionRequest):
        return sum(len(message.text()) for message in request.messages)
    return sum(len(prompt) for prompt in request.prompts())


def _begin(request: GenerationRequest, tokenizer: Tokenizer) -> list[Tokenization | bytes]:
    """The prompts, as packed ids where they came as ids. Raises OverflowError for wrong ids."""
    if isinstance(request, ChatCompletionRequest):
        return [tokenizer.begin_chat(request)]
    special = request.add_special_tokens is not False
    return [
        tokenizer.begin(prompt, add_special_tokens=special, cache_salt=request.cache_salt)
        if isinstance(prompt, str)
        else pack(prompt)
        for prompt in request.prompts()
    ]


def _complete(begun: Sequence[Tokenization | bytes], tokenizer_id: str) -> PromptTokens:
    """Raises `ValidationError` for a prompt without tokens."""
    prompts = [each.packed() if isinstance(each, Tokenization) else each for each in begun]
    if not all(prompts):
        raise ValidationError("prompt cannot be empty", parameter="prompt")
    return PromptTokens(tokenizer_id, tuple(prompts))


def _truncated(request: GenerationRequest, packed: bytes, max_model_len: int) -> bytes:
    start, end = request.truncation(len(packed) // ID_BYTES, max_model_len)
    return packed[ID_BYTES * start : ID_BYTES * end]


def _explain(views: Sequence[ReplicaView], costs: Sequence[float]) -> list[dict[str, Any]]:
    return [
        {
            "replica": view.replica_id,
            "cost": cost,
            "cached_tokens": view.num_cached_tokens,
            "queued_tokens": view.num_queued_tokens,
            "running": view.num_running,
            "adapter_load_seconds": view.adapter_s,
        }
        for view, cost in zip(views, costs, strict=True)
    ]
