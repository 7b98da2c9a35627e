"""What holds for one request beside its body: what its tenant is given, and what its headers ask.

    x-octavo-priority: -2        lower goes first; also `priority` of the body, x-vllm-priority
    x-octavo-policy: least-load  how the replica is picked
    x-octavo-replica: gpt-0      which replica it is
    x-octavo-cache-group: docs   with whom the prompt's cache is shared
    x-octavo-ttft-ms: 800        refuse what cannot have its first token so soon
    x-octavo-timeout-ms: 30000   end it after that long

The first four are for tenants that may; without tenants everybody may, and all share one cache.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol, get_args

from octavo_protocol.errors import ForbiddenError, ValidationError, refusal_headers
from octavo_protocol.openai import ChatCompletionRequest, CompletionRequest
from octavo_protocol.overrides import NO_OVERRIDES, RequestOverrides
from octavo_protocol.resources.model_deployment import RoutingPolicyName
from octavo_router.tenancy.declared_prefix import DeclaredPrefix
from octavo_router.tenancy.directory import Directory
from octavo_router.tenancy.tenant import ANYBODY, Caller, Override, Tenant

PRIORITY_HEADERS = ("x-octavo-priority", "x-vllm-priority")
POLICY_HEADER = "x-octavo-policy"
REPLICA_HEADER = "x-octavo-replica"
GROUP_HEADER = "x-octavo-cache-group"
_PREFIXES = (b"x-octavo-", b"x-vllm-")
TTFT_HEADER = "x-octavo-ttft-ms"
TIMEOUT_HEADER = "x-octavo-timeout-ms"
# An answer whose length nobody has bounded is expected to be this long.
EXPECTED_OUTPUT_TOKENS = 256
_MAX_MS = 7 * 24 * 3600 * 1000


class Body(Protocol):
    """What the body of every request with a prompt has."""

    model: str | None
    priority: int
    cache_salt: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """policy, replica: None: as the deployment has it. ttft_s, timeout_s: None: no deadline.
    shared_prefixes: with which its prompt may begin and share that beginning with others.
    counts_tokens: it is billed by tokens; num_output_tokens: that its answer is expected to have.
    """

    caller: Caller = ANYBODY
    overrides: RequestOverrides = NO_OVERRIDES
    priority: int = 0
    policy: RoutingPolicyName | None = None
    replica: str | None = None
    ttft_s: float | None = None
    timeout_s: float | None = None
    shared_prefixes: tuple[DeclaredPrefix, ...] = ()
    counts_tokens: bool = False
    num_output_tokens: int = 0


_PLAIN = Terms()
_PLAIN_WITH_PROMPT = Terms(counts_tokens=True)


def asked_headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Those of a request's headers that may mean something here; mostly none."""
    return {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in raw
        if name.startswith(_PREFIXES)
    }


def check_model(caller: Caller, model: str | None) -> None:
    """Raises `ForbiddenError` for a model that the tenant may not use. None, the only one there is,
    is for tenants that may use all.
    """
    tenant = caller.tenant
    if not tenant.may_use(model or ""):
        raise ForbiddenError(
            f"tenant {tenant.name} may not use the model {model or ''!r}; name one of"
            f" {', '.join(tenant.models) or 'none'}",
            parameter="model",
            code="model_not_allowed",
            headers=refusal_headers("model"),
        )


def header_terms(headers: Mapping[str, str], caller: Caller) -> Terms:
    """What the headers ask for. headers: as `asked_headers` gives them.

    Raises `ValidationError`, and `ForbiddenError` for what the tenant may not say.
    """
    if caller is ANYBODY and not headers:
        return _PLAIN
    policy = headers.get(POLICY_HEADER)
    if policy is not None and policy not in get_args(RoutingPolicyName):
        known = ", ".join(get_args(RoutingPolicyName))
        raise ValidationError(f"{POLICY_HEADER} must be one of {known}, got {policy[:80]!r}")
    replica = headers.get(REPLICA_HEADER)
    for name, value, right in (
        (POLICY_HEADER, policy, "policy"),
        (REPLICA_HEADER, replica, "replica"),
    ):
        if value is not None:
            check_may(caller, right, name)  # type: ignore[arg-type]
    return Terms(
        caller=caller,
        priority=caller.tenant.priority,
        policy=policy,  # type: ignore[arg-type]  # checked above
        replica=replica,
        ttft_s=_milliseconds(headers, TTFT_HEADER),
        timeout_s=_milliseconds(headers, TIMEOUT_HEADER),
    )


def body_terms(
    terms: Terms,
    headers: Mapping[str, str],
    body: Body,
    *,
    model: str | None,
    directory: Directory | None,
) -> Terms:
    """`terms` for a request with a prompt. model: that its name stands for. directory: of the
    tenants; None: there are none, and the body's priority and salt count as they are.

    Raises `ValidationError` and `ForbiddenError`.
    """
    if terms is _PLAIN and model == body.model and not body.priority:
        return _PLAIN_WITH_PROMPT
    priority = _asked_priority(headers, body)
    overrides = RequestOverrides(model=model if model != body.model else None)
    prefixes: tuple[DeclaredPrefix, ...] = ()
    if directory is not None:
        tenant = terms.caller.tenant
        priority = _allowed_priority(terms.caller, priority)
        group = _asked_group(headers, tenant)
        salt = directory.cache_salt(tenant, body.cache_salt, group)
        overrides = replace(overrides, cache_salt=salt, priority=priority)
        prefixes = directory.prefixes_of(tenant, group)
    elif PRIORITY_HEADERS[0] in headers:  # where replicas do not look
        overrides = replace(overrides, priority=priority)
    return replace(
        terms,
        overrides=overrides,
        priority=priority or 0,
        shared_prefixes=prefixes,
        counts_tokens=True,
    )


def generation_terms(terms: Terms, body: ChatCompletionRequest | CompletionRequest) -> Terms:
    """`terms` for a request whose answer has tokens too. Raises `ValidationError` for more of them
    than the tenant may ask for.
    """
    asked, cap = body.requested_max_tokens(), terms.caller.tenant.limits.max_output_tokens
    if cap is not None and asked is not None and asked > cap:
        raise ValidationError(
            f"max_tokens must be at most {cap} with this API key, got {asked}",
            parameter="max_tokens",
            code="max_output_tokens",
        )
    overrides = terms.overrides
    if cap is not None and asked is None:
        overrides = replace(overrides, max_tokens=cap)
    num_tokens = (asked or cap or EXPECTED_OUTPUT_TOKENS) * (body.n or 1)
    if terms is _PLAIN_WITH_PROMPT and overrides is terms.overrides:
        return _plain(num_tokens)
    return replace(terms, overrides=overrides, num_output_tokens=num_tokens)


@lru_cache(maxsize=256)
def _plain(num_output_tokens: int) -> Terms:
    """Of requests that ask for nothing more: most are alike."""
    return replace(_PLAIN_WITH_PROMPT, num_output_tokens=num_output_tokens)


def _asked_priority(headers: Mapping[str, str], body: Body) -> int | None:
    """None: the request says none."""
    for name in PRIORITY_HEADERS:
        if (text := headers.get(name)) is not None:
            try:
                return int(text)
            except ValueError:
                raise ValidationError(f"{name} must be an integer, got {text[:80]!r}") from None
    return body.priority or None


def _allowed_priority(caller: Caller, asked: int | None) -> int:
    tenant = caller.tenant
    if asked is None or asked == tenant.priority:
        return tenant.priority
    check_may(caller, "priority", "a priority")
    if asked < tenant.highest_priority:
        raise ForbiddenError(
            f"tenant {tenant.name} may ask for priorities from {tenant.highest_priority} on (lower"
            f" goes first), not for {asked}",
            parameter="priority",
            headers=refusal_headers("override"),
        )
    return asked


def _asked_group(headers: Mapping[str, str], tenant: Tenant) -> str | None:
    group = headers.get(GROUP_HEADER)
    if group is not None and group != tenant.cache_group and group not in tenant.may_share:
        raise ForbiddenError(
            f"tenant {tenant.name} may not share prompts with {group[:80]!r}; leave {GROUP_HEADER}"
            " out, or have the group added to its may_share",
            headers=refusal_headers("override"),
        )
    return group


def check_may(caller: Caller, right: Override, what: str) -> None:
    """Raises `ForbiddenError` without the right."""
    if right not in caller.tenant.may_override:
        raise ForbiddenError(
            f"tenant {caller.tenant.name} may not set {what}; leave it out, or have {right!r} added"
            " to its may_override",
            headers=refusal_headers("override"),
        )


def _milliseconds(headers: Mapping[str, str], name: str) -> float | None:
    """In seconds."""
    text = headers.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and 0 < int(text[:20]) <= _MAX_MS):
        raise ValidationError(
            f"{name} must be a whole number of milliseconds from 1 to {_MAX_MS}, got {text[:80]!r}"
        )
    return int(text) / 1000
