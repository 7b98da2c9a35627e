"""A prompt's beginning that tenants have declared shared, as the request path sees it."""

from dataclasses import dataclass
from fnmatch import fnmatchcase

from octavo_router.tenancy.tenant import Tenant


@dataclass(frozen=True, slots=True)
class DeclaredPrefix:
    """text: with which prompts begin, or messages, roles and contents, with which conversations do.
    tenants, cache_groups: whose requests may share it. models: patterns of their names.
    cache_salt: of its blocks, and of no other text's.
    """

    name: str
    cache_salt: str
    text: str = ""
    messages: tuple[tuple[str, str], ...] = ()
    tenants: tuple[str, ...] = ("*",)
    cache_groups: tuple[str, ...] = ("*",)
    models: tuple[str, ...] = ("*",)

    def is_for(self, tenant: Tenant, group: str | None) -> bool:
        """Whether a tenant's request may share it that shares its cache with `group`; None: with
        nobody. In a group all share the same, so that they go on sharing the whole prompt.
        """
        names, name = (self.cache_groups, group) if group else (self.tenants, tenant.name)
        return any(fnmatchcase(name, pattern) for pattern in names)

    def is_of(self, model: str) -> bool:
        return any(fnmatchcase(model, pattern) for pattern in self.models)
