"""A tenant as the request path sees it: plain, checked values."""

from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Literal

Override = Literal["priority", "policy", "replica"]
EVERY_OVERRIDE: frozenset[Override] = frozenset({"priority", "policy", "replica"})
DEFAULT_NAME = "default"


@dataclass(frozen=True, slots=True)
class Limits:
    """None: no limit. Tokens are those of prompts and outputs together.

    concurrency: requests open at once, those that wait in the router among them.
    max_output_tokens: of one request. Budgets begin anew with the day and the month, in UTC.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    max_output_tokens: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None

    @property
    def is_counted(self) -> bool:
        """Whether what other requests do matters."""
        return any(
            each is not None
            for each in (
                self.requests_per_minute,
                self.tokens_per_minute,
                self.concurrency,
                self.tokens_per_day,
                self.tokens_per_month,
            )
        )

    def described(self) -> list[str]:
        """Each limit that there is, as `name=number`."""
        named = ((each.name, getattr(self, each.name)) for each in fields(self))
        return [f"{name}={number}" for name, number in named if number is not None]


@dataclass(frozen=True, slots=True)
class Tenant:
    """models: patterns (`*`, `?`) of the names that it may ask for. weight: its share of a queue
    beside other tenants'. priority: of its requests, as vLLM counts: lower goes first;
    highest_priority: the lowest number that it may ask for. cache_group: tenants of one group share
    cached prefixes; None: its own only. may_share: groups for which a request may declare its
    prompt. may_override: what its requests may say for themselves.
    """

    name: str
    models: tuple[str, ...] = ("*",)
    weight: float = 1.0
    priority: int = 0
    highest_priority: int = 0
    limits: Limits = Limits()
    cache_group: str | None = None
    may_share: frozenset[str] = frozenset()
    may_override: frozenset[Override] = frozenset()

    def may_use(self, model: str) -> bool:
        return any(fnmatchcase(model, pattern) for pattern in self.models)


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose key came with a request. key_id: names the key without telling it."""

    tenant: Tenant
    key_id: str = ""


# Without a file of tenants everybody is this one, and may do what the router can do.
ANYBODY = Caller(
    Tenant(DEFAULT_NAME, highest_priority=-(2**31), may_override=EVERY_OVERRIDE),
)
