"""All tenants, keys and aliases of one version of the file. Never changed, only replaced."""

import hashlib
import hmac
from pathlib import Path

from octavo_router.tenancy.aliases import Alias, Target
from octavo_router.tenancy.declared_prefix import DeclaredPrefix
from octavo_router.tenancy.forms import SharedPrefixForm, TenantForm, TenantsForm
from octavo_router.tenancy.salts import cache_salt, prefix_salt
from octavo_router.tenancy.tenant import Caller, Limits, Tenant
from octavo_router.tenancy.tenants_file import (
    Sources,
    parse_tenants,
    read_sources,
)

HASH_PREFIX = "sha256:"
_KEY_ID_DIGITS = 8


class Directory:
    def __init__(self, form: TenantsForm) -> None:
        assert form.secret is not None
        self._secret = form.secret
        self.tenants = tuple(_tenant(each) for each in form.tenants)
        self.aliases = {
            name: Alias(name, tuple(Target(t.model, t.weight) for t in each.targets), each.sticky)
            for name, each in form.aliases.items()
        }
        self.shared_prefixes = tuple(_prefix(form.secret, each) for each in form.shared_prefixes)
        # By the first digits of the hash, so that the time of a look-up tells no more than those.
        self._callers: dict[str, list[tuple[str, Caller]]] = {}
        for tenant, each in zip(self.tenants, form.tenants, strict=True):
            for key in each.keys:
                caller = Caller(tenant, key.id or key_id(key.hash))
                self._callers.setdefault(key_id(key.hash), []).append((key.hash, caller))

    def num_keys(self, tenant: Tenant) -> int:
        known = (caller for each in self._callers.values() for _, caller in each)
        return sum(caller.tenant == tenant for caller in known)

    def authenticate(self, key: bytes) -> Caller | None:
        """Whose key this is; None: nobody's. Hashes are compared in constant time."""
        digest = key_hash(key)
        found = None
        for known, caller in self._callers.get(key_id(digest), ()):
            if hmac.compare_digest(digest, known):
                found = caller
        return found

    def cache_salt(self, tenant: Tenant, client_salt: str | None, group: str | None = None) -> str:
        return cache_salt(self._secret, tenant, client_salt, group)

    def prefixes_of(self, tenant: Tenant, group: str | None = None) -> tuple[DeclaredPrefix, ...]:
        """Those that a request of `tenant` may share. group: as for `cache_salt`."""
        group = group or tenant.cache_group
        return tuple(each for each in self.shared_prefixes if each.is_for(tenant, group))


def key_hash(key: bytes) -> str:
    """As the file holds it."""
    return HASH_PREFIX + hashlib.sha256(key).hexdigest()


def key_id(hashed: str) -> str:
    """A name for a key that has none: enough of its hash to find it in the file."""
    return hashed.removeprefix(HASH_PREFIX)[:_KEY_ID_DIGITS]


def load_directory(path: Path) -> Directory:
    """Of a file or folder. Raises `ConfigError`."""
    return make_directory(read_sources(path))


def make_directory(sources: Sources) -> Directory:
    return Directory(parse_tenants(sources))


def _prefix(secret: str, form: SharedPrefixForm) -> DeclaredPrefix:
    messages = [(each.role, each.content) for each in form.conversation]
    is_for_all = not (form.tenants or form.cache_groups)
    return DeclaredPrefix(
        name=form.name,
        cache_salt=prefix_salt(secret, form.name, form.text, messages),
        text=form.text,
        messages=tuple(messages),
        tenants=("*",) if is_for_all else tuple(form.tenants),
        cache_groups=("*",) if is_for_all else tuple(form.cache_groups),
        models=tuple(form.models),
    )


def _tenant(form: TenantForm) -> Tenant:
    default = form.priority.default
    highest = form.priority.highest
    return Tenant(
        name=form.name,
        models=tuple(form.models),
        weight=form.weight,
        priority=default,
        highest_priority=default if highest is None else highest,
        limits=Limits(**form.limits.model_dump(), **form.budgets.model_dump()),
        cache_group=form.cache_group,
        may_share=frozenset(form.may_share),
        may_override=frozenset(form.may_override),
    )
