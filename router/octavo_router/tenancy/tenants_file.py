"""The file of tenants: its form, and what is said about one that is wrong.

    secret: 0f1e...                    # at least 32 characters; cache salts derive from it
    tenants:
      - name: acme
        keys: ["sha256:9f86..."]       # `octavo tenants new-key acme` makes one
        models: [gpt, "llama-*"]
        weight: 2
        limits: {requests_per_minute: 600, tokens_per_minute: 1000000, concurrency: 50}
        budgets: {tokens_per_day: 50000000}
    aliases:
      gpt: [{model: llama-a, weight: 90}, {model: llama-b, weight: 10}]

A folder is read as one file: every `*.yaml` in it has this form, and their parts are joined.
"""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from octavo_protocol.errors import ConfigError
from octavo_router.tenancy.tenant import Override

Sources = Mapping[str, bytes]  # what each file holds, by its path
_Count = Annotated[int, Field(ge=1)]
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$")]
_PATTERNS = {
    "hash": "write sha256: and 64 hexadecimal digits; `octavo tenants new-key NAME` prints one",
    "name": "use letters, digits and ._- between them, at most 63",
}


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


class TenantsForm(_Form):
    secret: Annotated[str, Field(min_length=32)] | None = None
    tenants: list[TenantForm] = []
    aliases: dict[str, AliasForm] = {}


@dataclass(frozen=True, slots=True)
class _Parsed:
    path: str
    form: TenantsForm


def read_sources(path: Path) -> Sources:
    """The file `path`, or every `*.yaml` of the folder `path`. Raises `ConfigError`."""
    try:
        if not path.is_dir():
            return {str(path): path.read_bytes()}
        # Kubernetes keeps the versions of a mounted secret in folders whose names begin with a dot.
        found = sorted(each for each in path.glob("*.yaml") if not each.name.startswith("."))
        sources = {str(each): each.read_bytes() for each in found}
    except OSError as error:
        raise ConfigError(f"cannot read the tenants in {path}: {error.strerror}") from error
    if not sources:
        raise ConfigError(f"the folder {path} holds no *.yaml file; write one tenant into each")
    return sources


def parse_tenants(sources: Sources) -> TenantsForm:
    """The files as one. Raises `ConfigError` with file, line and field of everything wrong."""
    parsed = [_Parsed(path, _parse(path, raw)) for path, raw in sources.items()]
    secrets = [each for each in parsed if each.form.secret is not None]
    where = ", ".join(sources)
    if len(secrets) != 1:
        raise ConfigError(
            f"{where}: `secret` must be given once, it is given {len(secrets)} times; write"
            " `secret:` and what `openssl rand -hex 32` prints"
        )
    tenants = [tenant for each in parsed for tenant in each.form.tenants]
    _check_unique("tenant", [each.name for each in tenants], where)
    _check_unique("key", [key.hash for each in tenants for key in each.keys], where)
    aliases = [alias for each in parsed for alias in each.form.aliases.items()]
    _check_unique("alias", [name for name, _ in aliases], where)
    for name, alias in aliases:
        for target in alias.targets:
            if target.model in dict(aliases):
                raise ConfigError(
                    f"{where}: the alias {name!r} leads to {target.model!r}, which is an alias too;"
                    " name a model"
                )
    return TenantsForm(secret=secrets[0].form.secret, tenants=tenants, aliases=dict(aliases))


def _parse(path: str, raw: bytes) -> TenantsForm:
    try:
        text = raw.decode()
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
        repeated = [] if root is None else list(_repeated_keys(root))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if root is None or not isinstance(data, dict):
        raise ConfigError(f"{path}: write `secret`, `tenants` and `aliases`, one below the other")
    for line, key in repeated:
        raise ConfigError(f"{path}, line {line}: {key!r} is given twice; keep one")
    try:
        return TenantsForm.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(_complaints(path, root, error))) from error


def _complaints(path: str, root: yaml.Node, error: ValidationError) -> Iterator[str]:
    for item in error.errors(include_url=False, include_input=False):
        location = item["loc"]
        field = ".".join(map(str, location))
        text = item["msg"].removeprefix("Value error, ")
        if item["type"] == "string_pattern_mismatch":
            text = _PATTERNS["hash" if location[-1] == "hash" else "name"]
        elif item["type"] == "string_type":
            text = "Input should be a string; put it in quotes"
        elif item["type"] == "extra_forbidden":
            text = "there is no such field"
        yield f"{path}, line {_line(root, location)}: {field}: {text}"


def _line(node: yaml.Node, location: tuple[int | str, ...]) -> int:
    """Of the value at `location`, or of what it is missing in."""
    for step in location:
        if isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            node = node.value[step]
        elif isinstance(node, yaml.MappingNode):
            found = [value for key, value in node.value if key.value == step]
            if not found:
                break
            node = found[0]
    return node.start_mark.line + 1


def _repeated_keys(node: yaml.Node) -> Iterator[tuple[int, str]]:
    """PyYAML keeps the last of two equal keys and says nothing."""
    if isinstance(node, yaml.SequenceNode):
        for each in node.value:
            yield from _repeated_keys(each)
    elif isinstance(node, yaml.MappingNode):
        seen: set[Hashable] = set()
        for key, value in node.value:
            if key.value in seen:
                yield key.start_mark.line + 1, key.value
            seen.add(key.value)
            yield from _repeated_keys(value)


def _check_unique(what: str, names: list[str], where: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ConfigError(f"{where}: the {what} {name!r} is given twice; keep one")
        seen.add(name)
