"""API keys: who may use a server."""

import hashlib
import secrets
from collections.abc import Sequence

from octavo_protocol.asgi import App, Receive, Scope, Send
from octavo_protocol.errors import AuthenticationError

# What probes, scrapers and browsers read without a key; none of it costs or tells anything.
OPEN_PATHS = frozenset(
    {
        *("/health", "/ping", "/ready", "/version", "/metrics"),
        *("/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"),
    }
)


# In the state of a scope: the server itself made the request.
UNKEYED = "unkeyed"


class ApiKeyMiddleware:
    """Every path but `OPEN_PATHS` needs one of `keys`, as a bearer token or, as Anthropic's clients
    send it, in `x-api-key`.

    Keys are compared by digest in constant time; none is kept, logged or shown. Raises
    `AuthenticationError`. A browser's OPTIONS carries no key and needs none.
    """

    def __init__(self, app: App, keys: Sequence[str]) -> None:
        self.app = app
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if needs_key(scope):
            given = given_key(scope)
            if given is None or not self._is_valid(given):
                raise invalid_key()
        await self.app(scope, receive, send)

    def _is_valid(self, key: bytes) -> bool:
        digest = _digest(key)
        # Every key is compared, so the time does not tell which one came close.
        return sum(secrets.compare_digest(digest, each) for each in self._digests) > 0


def needs_key(scope: Scope) -> bool:
    """Whether a request of a client is for more than `OPEN_PATHS`."""
    if scope["type"] != "http" or scope["method"] == "OPTIONS" or _is_open(scope):
        return False
    return UNKEYED not in scope.get("state", ())


def invalid_key() -> AuthenticationError:
    """What is said to a request without a key that is known."""
    return AuthenticationError(
        "this server needs an API key: send it as `Authorization: Bearer KEY`",
        code="invalid_api_key",
    )


def _is_open(scope: Scope) -> bool:
    root = scope.get("root_path", "")
    path: str = scope["path"]
    if root and path.startswith(root + "/"):
        path = path[len(root) :]
    return path in OPEN_PATHS


def given_key(scope: Scope) -> bytes | None:
    """The key that a request brings."""
    for name, value in scope["headers"]:
        raw: bytes = value
        if name == b"authorization":
            scheme, _, key = raw.partition(b" ")
            if scheme.lower() == b"bearer":
                return key.strip()
        elif name == b"x-api-key":
            return raw.strip()
    return None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
