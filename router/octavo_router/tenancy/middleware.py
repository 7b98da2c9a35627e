"""Lets in those whose API key a tenant has, and notes who it is."""

from starlette.requests import Request

from octavo_protocol.asgi import App, Receive, Scope, Send
from octavo_protocol.security import given_key, invalid_key, needs_key
from octavo_router.tenancy.source import TenantSource
from octavo_router.tenancy.tenant import ANYBODY, Caller


class TenantMiddleware:
    """Stands where `ApiKeyMiddleware` stands without tenants, with the same open paths. Raises
    `AuthenticationError`.
    """

    def __init__(self, app: App, source: TenantSource) -> None:
        self.app = app
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if needs_key(scope):
            given = given_key(scope)
            caller = None if given is None else self._source.directory.authenticate(given)
            if caller is None:
                raise invalid_key()
            scope.setdefault("state", {})["caller"] = caller
        await self.app(scope, receive, send)


def caller_of(request: Request) -> Caller:
    """Who sent it; `ANYBODY` where there are no tenants."""
    caller: Caller = request.scope.get("state", {}).get("caller", ANYBODY)
    return caller
