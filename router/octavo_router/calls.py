"""What a request comes to: whose it is, which model its name stands for, who may answer it."""

from dataclasses import dataclass, replace

from starlette.requests import Request

from octavo_protocol.errors import UnavailableError
from octavo_protocol.openai import ChatCompletionRequest, CompletionRequest
from octavo_protocol.overrides import RequestOverrides
from octavo_router.decisions import PromptKey
from octavo_router.deployment import Deployment
from octavo_router.resumption.asked import KEY_HEADER
from octavo_router.sessions import session_of
from octavo_router.state import RouterState
from octavo_router.tenancy.directory import Directory
from octavo_router.tenancy.middleware import caller_of
from octavo_router.tenancy.tenant import Caller, Tenant
from octavo_router.tenancy.terms import (
    Body,
    Terms,
    asked_headers,
    body_terms,
    check_model,
    generation_terms,
    header_terms,
)


@dataclass(frozen=True, slots=True)
class Call:
    """model: the served name; None: the only one."""

    deployment: Deployment
    model: str | None
    terms: Terms


class Calls:
    """Resolves requests by the tenants and deployments of a router."""

    def __init__(self, state: RouterState) -> None:
        self.state = state

    def of(
        self,
        request: Request,
        raw: bytes,
        model: str | None,
        body: Body | None = None,
    ) -> Call:
        """What a request for `model` comes to: whose it is, what it may do, who may answer it.

        body: of a request with a prompt. Raises what forbids it, or why there is nobody.
        """
        caller = caller_of(request)
        check_model(caller, model)
        real = self._real_model(request, raw, model, caller) or None
        deployment = self._deployment(real)
        headers = asked_headers(request.scope["headers"])
        terms = header_terms(headers, caller)
        directory = self._directory
        if body is not None:
            terms = body_terms(terms, headers, body, model=real, directory=directory)
        if isinstance(body, ChatCompletionRequest | CompletionRequest):
            terms = generation_terms(terms, body)
        if body is None and real != (model or None):
            terms = replace(terms, overrides=RequestOverrides(model=real))
        return Call(deployment, real, terms)

    def names(self, tenant: Tenant) -> dict[str, Deployment]:
        """Models and aliases that the tenant may ask for; an alias with its first target that is
        known.
        """
        names = dict(self.state.deployments.names())
        directory = self._directory
        for alias in directory.aliases.values() if directory is not None else ():
            known = [names[each.model] for each in alias.targets if each.model in names]
            if known:
                names[alias.name] = known[0]
        return {name: each for name, each in names.items() if tenant.may_use(name)}

    def _real_model(
        self, request: Request, raw: bytes, model: str | None, caller: Caller
    ) -> str | None:
        """What the name `model` stands for."""
        directory = self._directory
        alias = directory.aliases.get(model or "") if directory is not None else None
        if alias is None:
            return model
        key = request.headers.get(KEY_HEADER)  # asked for again, to where the answer is
        if alias.sticky is not None:
            key = caller.tenant.name
            if alias.sticky == "session":
                key = session_of(request.headers, raw) or key
        return alias.pick(key, is_ready=self.state.deployments.is_ready)

    def _deployment(self, model: str | None) -> Deployment:
        """Whose replicas may answer. Raises what says why there are none."""
        deployment = self.state.deployments.find(model)
        try:
            deployment.check(model or None)
        except UnavailableError as error:
            self.state.metrics.answered(deployment.name, error.status_code)
            raise
        return deployment

    @property
    def _directory(self) -> Directory | None:
        return None if self.state.tenants is None else self.state.tenants.directory


def pinned(key: PromptKey, terms: Terms) -> PromptKey:
    """With the policy or replica that the request asks for."""
    if terms.policy is None and terms.replica is None:
        return key
    return replace(key, policy=terms.policy, replica=terms.replica)
