"""From a parsed request to a replica: tokens, hashes, predictions, policy; and the record of it."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from octavo_protocol.errors import UnavailableError
from octavo_protocol.hashing import HashIdentity, block_hashes, cached_tokens
from octavo_protocol.openai import ChatCompletionRequest, CompletionRequest
from octavo_protocol.overrides import NO_OVERRIDES, PromptTokens, RequestOverrides
from octavo_protocol.records import ReplicaRecord
from octavo_protocol.tokenizer import Tokenizer
from octavo_router.deployment import Deployment
from octavo_router.metrics import RouterMetrics
from octavo_router.policies import ReplicaView, RouteRequest
from octavo_router.prefix_index import MemoryPrefixIndex
from octavo_router.tokenizers import TokenizerCache

# Longer texts are tokenized in a thread: on the event loop they would delay other streams.
_INLINE_CHARS = 20_000
_DEFAULT_TOKENS_PER_S = 1000.0
_MAX_REMEMBERED = 1000

GenerationRequest = ChatCompletionRequest | CompletionRequest


@dataclass(frozen=True, slots=True)
class PromptKey:
    """What the index is asked for. hashes: of the longest prompt's full blocks.

    num_tokens: of that prompt; num_other_tokens: of further prompts, never predicted as cached.
    Empty where the prompt could not be tokenized. session: which the request belongs to. tokens:
    what replicas need not tokenize again; None where the prompts came as token ids.
    """

    hashes: tuple[bytes, ...] = ()
    num_tokens: int = 0
    num_other_tokens: int = 0
    block_size: int = 0
    session: str | None = None
    tokens: PromptTokens | None = None

    def request(self, index: MemoryPrefixIndex) -> RouteRequest:
        """As the policy sees it."""
        return RouteRequest(
            num_prompt_tokens=self.num_tokens + self.num_other_tokens,
            session=self.session,
            hashes=self.hashes,
            block_size=self.block_size,
            has_index=index.num_entries > 0,
        )


@dataclass(slots=True)
class Decision:
    """One routing decision, as `GET /debug/route/{request_id}` shows it."""

    request_id: str
    deployment: str
    policy: str
    replica: ReplicaRecord
    num_prompt_tokens: int
    num_cached_tokens: int
    candidates: list[dict[str, Any]]
    attempt: int
    seconds: float
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
            "candidates": self.candidates,
        }


@dataclass(frozen=True, slots=True)
class Pick:
    """The chosen replica, as record and as the policy saw it; all candidates with their costs."""

    record: ReplicaRecord
    view: ReplicaView
    views: tuple[ReplicaView, ...]
    costs: tuple[float, ...]


def choose(
    deployment: Deployment, model: str | None, key: PromptKey, *, tried: Sequence[str] = ()
) -> Pick:
    """Asks the deployment's policy for a replica that is not among `tried`; changes nothing.

    Raises `UnavailableError` without one.
    """
    records = deployment.replicas.usable(model, without=tried)
    if not records:
        raise UnavailableError(
            f"no replica could serve the request; {len(tried)} were tried"
            if tried
            else "no replica is ready; try again in a moment"
        )
    loads = deployment.loads
    depths = deployment.index.match(key.hashes) if key.hashes else {}
    prefill_rate = _mean_known([record.prefill_tokens_per_s for record in records])
    decode_rate = _mean_known([record.decode_tokens_per_s for record in records])
    views = tuple(
        ReplicaView(
            replica_id=record.replica_id,
            num_cached_tokens=_num_cached(record, key, depths),
            num_queued_tokens=loads.num_queued_tokens(record.incarnation),
            num_recent_tokens=loads.num_recent_tokens(record.incarnation),
            num_running=loads.num_running(record.incarnation),
            prefill_tokens_per_s=record.prefill_tokens_per_s or prefill_rate,
            decode_tokens_per_s=record.decode_tokens_per_s or decode_rate,
        )
        for record in records
    )
    choice = deployment.policy.choose(key.request(deployment.index), views)
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
    """Picks replicas. Its only wait is for tokenization."""

    def __init__(self, tokenizers: TokenizerCache, metrics: RouterMetrics) -> None:
        self._tokenizers = tokenizers
        self._metrics = metrics
        self._remembered: OrderedDict[str, Decision] = OrderedDict()

    async def prompt_key(
        self,
        deployment: Deployment,
        request: GenerationRequest,
        *,
        session: str | None = None,
        overrides: RequestOverrides = NO_OVERRIDES,
    ) -> PromptKey:
        """Tokens and hashes as the replicas will compute them with `overrides`, which change
        `request`. Raises `ValidationError`.
        """
        key = await self._prompt_key(deployment, overrides.applied_to(request))
        return key if session is None else replace(key, session=session)

    async def _prompt_key(self, deployment: Deployment, request: GenerationRequest) -> PromptKey:
        usable = deployment.replicas.usable(request.model or None)
        record = next((each for each in usable if each.block_size), None)
        if record is None:
            return PromptKey()
        tokenizer = await self._tokenizers.get(record)
        if tokenizer is None:
            return PromptKey()
        extra = HashIdentity(record.cache_model, "", request.cache_salt or "").extra()
        if _num_chars(request) < _INLINE_CHARS:
            return _prompt_key(request, tokenizer, record, extra)
        return await asyncio.to_thread(_prompt_key, request, tokenizer, record, extra)

    def choose(
        self,
        deployment: Deployment,
        request_id: str,
        model: str | None,
        key: PromptKey,
        *,
        tried: Iterable[str] = (),
        is_dry_run: bool = False,
    ) -> Decision:
        """Picks a replica that is not among `tried`. Raises `UnavailableError` without one."""
        tried = list(tried)
        started = time.perf_counter()
        pick = choose(deployment, model, key, tried=tried)
        seconds = time.perf_counter() - started
        decision = Decision(
            request_id=request_id,
            deployment=deployment.name,
            policy=deployment.policy.name,
            replica=pick.record,
            num_prompt_tokens=key.num_tokens + key.num_other_tokens,
            num_cached_tokens=pick.view.num_cached_tokens,
            candidates=_explain(pick.views, pick.costs),
            attempt=len(tried) + 1,
            seconds=seconds,
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


def _num_cached(record: ReplicaRecord, key: PromptKey, depths: dict[str, int]) -> int:
    depth = depths.get(record.incarnation, 0)
    if not depth or record.block_size != key.block_size:
        return 0
    return cached_tokens(depth, key.block_size, key.num_tokens)


def _mean_known(rates: list[float]) -> float:
    """For replicas that have measured nothing yet: as good as the others are on average."""
    known = [rate for rate in rates if rate > 0]
    return sum(known) / len(known) if known else _DEFAULT_TOKENS_PER_S


def _num_chars(request: GenerationRequest) -> int:
    if isinstance(request, ChatCompletionRequest):
        return sum(len(m.text()) for m in request.messages)
    return sum(len(prompt) for prompt in request.prompts() if isinstance(prompt, str))


def _prompt_key(
    request: GenerationRequest, tokenizer: Tokenizer, record: ReplicaRecord, extra: bytes
) -> PromptKey:
    if isinstance(request, ChatCompletionRequest):
        prompts = [tokenizer.chat_token_ids(request)]
    else:
        prompts = [
            tokenizer.prompt_token_ids(prompt, add_special_tokens=request.add_special_tokens)
            for prompt in request.prompts()
        ]
    tokens = PromptTokens.of(tokenizer.id, prompts) if _is_text(request) else None
    prompts = [request.truncated(prompt, record.max_model_len) for prompt in prompts]
    for prompt in prompts:
        if not prompt or min(prompt) < 0 or max(prompt) >= 2**32:
            return PromptKey()  # the replica says what is wrong with it
    longest = max(prompts, key=len)
    return PromptKey(
        hashes=tuple(block_hashes(longest, record.block_size, extra)),
        num_tokens=len(longest),
        num_other_tokens=sum(map(len, prompts)) - len(longest),
        block_size=record.block_size,
        tokens=tokens,
    )


def _is_text(request: GenerationRequest) -> bool:
    if isinstance(request, ChatCompletionRequest):
        return True
    return all(isinstance(prompt, str) for prompt in request.prompts())


def _explain(views: Sequence[ReplicaView], costs: Sequence[float]) -> list[dict[str, Any]]:
    return [
        {
            "replica": view.replica_id,
            "cost": cost,
            "cached_tokens": view.num_cached_tokens,
            "queued_tokens": view.num_queued_tokens,
            "running": view.num_running,
        }
        for view, cost in zip(views, costs, strict=True)
    ]
