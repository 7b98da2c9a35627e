"""The form of the file of tenants."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from octavo_router.tenancy.tenant import Override

_Count = Annotated[int, Field(ge=1)]
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$")]


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class KeyForm(_Form):
    """A key's hash, and the name that usage records show for it (default: its first digits)."""

    hash: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    id: _Name | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, data: Any) -> Any:
        return {"hash": data} if isinstance(data, str) else data


class PriorityForm(_Form):
    """highest: the lowest number that requests may ask for; None: `default`."""

    default: int = 0
    highest: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, data: Any) -> Any:
        return {"default": data} if isinstance(data, int) else data

    @model_validator(mode="after")
    def _check(self) -> "PriorityForm":
        if self.highest is not None and self.highest > self.default:
            raise ValueError(
                f"highest must be at most default, {self.default}: a lower number goes first"
            )
        return self


class LimitsForm(_Form):
    requests_per_minute: _Count | None = None
    tokens_per_minute: _Count | None = None
    concurrency: _Count | None = None
    max_output_tokens: _Count | None = None


class BudgetsForm(_Form):
    tokens_per_day: _Count | None = None
    tokens_per_month: _Count | None = None


class TenantForm(_Form):
    name: _Name
    keys: list[KeyForm] = []
    models: list[str] = ["*"]
    weight: Annotated[float, Field(gt=0, le=1_000_000)] = 1.0
    priority: PriorityForm = PriorityForm()
    limits: LimitsForm = LimitsForm()
    budgets: BudgetsForm = BudgetsForm()
    cache_group: _Name | None = None
    may_share: list[_Name] = []
    may_override: list[Override] = []


class TargetForm(_Form):
    model: Annotated[str, Field(min_length=1)]
    weight: Annotated[float, Field(ge=0, le=1_000_000)] = 1.0


class AliasForm(_Form):
    """sticky: what keeps getting the same target; None: every request is drawn anew."""

    targets: Annotated[list[TargetForm], Field(min_length=1)]
    sticky: Literal["session", "tenant"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, data: Any) -> Any:
        if isinstance(data, str):
            return {"targets": [{"model": data}]}
        return {"targets": data} if isinstance(data, list) else data

    @field_validator("targets")
    @classmethod
    def _check(cls, targets: list[TargetForm]) -> list[TargetForm]:
        if not any(each.weight for each in targets):
            raise ValueError("give one of the models a weight above 0")
        return targets


class MessageForm(_Form):
    role: Literal["system", "developer", "user", "assistant"]
    content: str


class SharedPrefixForm(_Form):
    """With what prompts begin: `text`, or conversations: `messages`, or the one message `system`.

    Where neither tenants nor cache groups are named it is for all.
    """

    name: _Name
    text: str = ""
    system: str = ""
    messages: list[MessageForm] = []
    tenants: list[str] = []
    cache_groups: list[str] = []
    models: list[str] = ["*"]

    @model_validator(mode="after")
    def _check(self) -> "SharedPrefixForm":
        if sum(map(bool, (self.text, self.system, self.messages))) != 1:
            raise ValueError("write with what prompts begin: one of system, messages and text")
        return self

    @property
    def conversation(self) -> list[MessageForm]:
        if self.system:
            return [MessageForm(role="system", content=self.system)]
        return self.messages


class TenantsForm(_Form):
    secret: Annotated[str, Field(min_length=32)] | None = None
    tenants: list[TenantForm] = []
    aliases: dict[str, AliasForm] = {}
    shared_prefixes: list[SharedPrefixForm] = []
