"""The file of tenants, and what is said about one that is wrong. Its form is in `forms.py`.

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
    shared_prefixes:
      - {name: assistant, system: "You are ...", tenants: [acme, globex]}

A folder is read as one file: every `*.yaml` in it has this form, and their parts are joined.
"""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError

from octavo_protocol.errors import ConfigError
from octavo_router.tenancy.forms import SharedPrefixForm, TenantForm, TenantsForm

Sources = Mapping[str, bytes]  # what each file holds, by its path
_PATTERN_CHARACTERS = frozenset("*?[")
_PATTERNS = {
    "hash": "write sha256: and 64 hexadecimal digits; `octavo tenants new-key NAME` prints one",
    "name": "use letters, digits and ._- between them, at most 63",
}


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
    prefixes = [prefix for each in parsed for prefix in each.form.shared_prefixes]
    _check_unique("shared prefix", [each.name for each in prefixes], where)
    for prefix in prefixes:
        _check_sharers(prefix, tenants, f"{where}: the shared prefix {prefix.name}")
    return TenantsForm(
        secret=secrets[0].form.secret,
        tenants=tenants,
        aliases=dict(aliases),
        shared_prefixes=prefixes,
    )


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


def _check_sharers(prefix: SharedPrefixForm, tenants: list[TenantForm], where: str) -> None:
    """Raises `ConfigError` for a name, not a pattern, under which no request could share it."""
    alone = {each.name for each in tenants if each.cache_group is None}
    grouped = {each.name: each.cache_group for each in tenants if each.cache_group}
    groups = {*grouped.values(), *(name for each in tenants for name in each.may_share)}
    for name in prefix.tenants:
        if name in grouped:
            raise ConfigError(
                f"{where}: {name} shares its cache with the group {grouped[name]}; name that under"
                " cache_groups"
            )
        if not _is_pattern(name) and name not in alone:
            raise ConfigError(f"{where}: there is no tenant {name!r}")
    for name in prefix.cache_groups:
        if not _is_pattern(name) and name not in groups:
            raise ConfigError(
                f"{where}: no tenant is in the cache group {name!r} or may share with it"
            )


def _is_pattern(name: str) -> bool:
    return not _PATTERN_CHARACTERS.isdisjoint(name)


def _check_unique(what: str, names: list[str], where: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ConfigError(f"{where}: the {what} {name!r} is given twice; keep one")
        seen.add(name)
