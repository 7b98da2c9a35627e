"""Cache salts of tenants: who shares cached prefixes with whom.

A salt enters the hash of every block, so that prompts of two tenants never meet in a prefix cache,
and the time to the first token tells nobody what others have asked. It is an HMAC-SHA256 under the
file's secret: the same in every router and after a restart, and not to be guessed without it.
"""

import hashlib
import hmac
from collections.abc import Sequence
from typing import Any

import msgspec

from octavo_router.tenancy.tenant import Tenant


def cache_salt(
    secret: str, tenant: Tenant, client_salt: str | None, group: str | None = None
) -> str:
    """client_salt: the request's own, which divides what the tenant can reach and adds nothing.
    group: with whom this request shares; None: with those of the tenant's own group, if any.
    """
    group = group or tenant.cache_group
    kind, name = ("group", group) if group else ("tenant", tenant.name)
    return _salt(secret, ["cache-salt", kind, name, client_salt or ""])


def prefix_salt(secret: str, name: str, text: str, messages: Sequence[tuple[str, str]]) -> str:
    """Of the blocks of a declared prefix: never that of a tenant or group."""
    return _salt(secret, ["shared-prefix", name, text, messages])


def _salt(secret: str, parts: Sequence[Any]) -> str:
    text = msgspec.json.encode(parts)  # as a JSON list: no two have one text
    return hmac.new(secret.encode(), text, hashlib.sha256).hexdigest()[:32]
