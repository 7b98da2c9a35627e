"""What a client's headers ask for: an answer that it can come back to, and from where on."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from octavo_protocol.errors import ValidationError

KEY_HEADER = "idempotency-key"
AFTER_HEADER = "last-event-id"
_KEY = re.compile(r"[\x20-\x7e]{1,255}")
_NUMBER = re.compile(r"\d{1,12}")


@dataclass(frozen=True, slots=True)
class Asked:
    """id: of the stream, made of the client's key and of who the client is. fingerprint: of the
    request. after: the number of the last event that the client has.
    """

    id: str
    fingerprint: str
    after: int = 0


def asked(
    headers: Mapping[str, str], path: str, body: bytes, *, tenant: str, is_stream: bool
) -> Asked | None:
    """None without an idempotency key. tenant: streams of others cannot be reached.

    Raises `ValidationError`.
    """
    key, after = idempotency_key(headers), headers.get(AFTER_HEADER)
    if key is None:
        if after is not None:
            raise ValidationError(
                "Last-Event-ID needs the Idempotency-Key with which the stream was begun"
            )
        return None
    if after is not None and not _NUMBER.fullmatch(after):
        raise ValidationError(f"Last-Event-ID must be the number of an event, not {after[:40]!r}")
    return Asked(
        id=_digest(tenant.encode(), key.encode())[:32],
        fingerprint=_digest(path.encode(), body)[:32],
        after=int(after or 0) if is_stream else 0,
    )


def idempotency_key(headers: Mapping[str, str]) -> str | None:
    """The client's own name of its request, if it gave one. Raises `ValidationError`."""
    key = headers.get(KEY_HEADER)
    if key is not None and not _KEY.fullmatch(key):
        raise ValidationError("Idempotency-Key must be 1 to 255 printable ASCII characters")
    return key


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(b"%d:" % len(part) + part)
    return digest.hexdigest()
