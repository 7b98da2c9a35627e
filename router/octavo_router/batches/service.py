"""Files and batches of one router: their stores, routes and worker, put together.

A line is answered as a request to this router's own application would be, by the same checks,
limits, policy and retries, with two differences: it is background work, and nobody asks for a key.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import replace

import redis.asyncio
from starlette.requests import Request

from octavo_protocol.asgi import App
from octavo_protocol.errors import NotFoundError, UnavailableError, ValidationError
from octavo_protocol.openapi import ApiRoute
from octavo_protocol.priorities import BACKGROUND_PRIORITY
from octavo_protocol.security import UNKEYED
from octavo_router.batches.answering import Answer, post
from octavo_router.batches.line import Post
from octavo_router.batches.options import BatchOptions
from octavo_router.batches.routes import BatchRoutes
from octavo_router.batches.store import BatchStore
from octavo_router.batches.worker import BatchWorker
from octavo_router.deployment import Deployment
from octavo_router.deployments import Deployments
from octavo_router.files.file_store import FileStore
from octavo_router.files.routes import FileRoutes
from octavo_router.files.storage import FileStorage
from octavo_router.tenancy.middleware import caller_of
from octavo_router.tenancy.source import TenantSource
from octavo_router.tenancy.tenant import Caller, Tenant
from octavo_router.tenancy.terms import PRIORITY_HEADERS

_REDIS_TIMEOUT_S = 5.0
_MAX_CONNECTIONS = 16  # who wants another one waits
_KEY_ID = "batch"
# Places of a replica that does not tell, and lines at a time for a model that nobody serves.
_UNKNOWN_SEATS = 32
_NOBODY = Tenant("", models=(), priority=BACKGROUND_PRIORITY)


class BatchService:
    """tenants: None: everything belongs to one owner, "default"."""

    def __init__(
        self,
        options: BatchOptions,
        *,
        redis_url: str,
        deployments: Deployments,
        tenants: TenantSource | None,
    ) -> None:
        self._options = options
        self._redis = redis.asyncio.Redis.from_pool(
            redis.asyncio.BlockingConnectionPool.from_url(
                redis_url,
                max_connections=_MAX_CONNECTIONS,
                timeout=_REDIS_TIMEOUT_S,
                socket_timeout=_REDIS_TIMEOUT_S,
                socket_connect_timeout=_REDIS_TIMEOUT_S,
            )
        )
        self._files = FileStore(self._redis, FileStorage(options.files_url))
        self._batches = BatchStore(self._redis)
        self._deployments = deployments
        self._tenants = tenants

    def routes(self) -> list[ApiRoute]:
        files = FileRoutes(self._files, owner_of, max_bytes=self._options.max_file_bytes)
        batches = BatchRoutes(self._batches, self._files, owner_of)
        return [*files.routes(), *batches.routes()]

    async def work(self, app: App) -> None:
        """Works on batches until cancelled; `app` answers their lines."""
        if not self._options.has_worker:
            await asyncio.Event().wait()
        worker = BatchWorker(
            self._batches,
            self._files,
            post=lambda owner: self._post(app, owner),
            room=self.room,
            max_lines=self._options.max_lines,
            max_line_bytes=self._options.max_line_bytes,
        )
        await worker.run()

    async def close(self) -> None:
        await self._redis.aclose()

    def room(self, model: str, num_open: int) -> int:
        """Places of the model's replicas that other requests leave free.

        A model that is not there gets room too: its lines end with the error that says so. There is
        none while nothing is known of any model.
        """
        try:
            deployments = self._deployments_of(model)
        except UnavailableError:
            return 0
        if not deployments:
            return _UNKNOWN_SEATS
        num_seats = sum(map(_num_seats, deployments))
        num_running = sum(map(_num_running, deployments))
        return max(0, num_seats - max(0, num_running - num_open))

    def _deployments_of(self, model: str) -> list[Deployment]:
        alias = None
        if self._tenants is not None:
            alias = self._tenants.directory.aliases.get(model)
        names = [model] if alias is None else [target.model for target in alias.targets]
        found = []
        for name in names:
            try:
                found.append(self._deployments.find(name or None))
            except (NotFoundError, ValidationError):
                continue
        return found

    def _post(self, app: App, owner: str) -> Post:
        state: dict[str, object] = {UNKEYED: True}
        if (caller := self._caller(owner)) is not None:
            state["caller"] = caller

        async def answer(path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
            background = {PRIORITY_HEADERS[0]: str(BACKGROUND_PRIORITY)}
            return await post(app, path, body, {**headers, **background}, state)

        return answer

    def _caller(self, owner: str) -> Caller | None:
        """As whom the lines of a tenant's batch come; None without tenants.

        A tenant that is no longer in the file may ask for nothing.
        """
        if self._tenants is None:
            return None
        for tenant in self._tenants.directory.tenants:
            if tenant.name == owner:
                return Caller(replace(tenant, priority=BACKGROUND_PRIORITY), _KEY_ID)
        return Caller(replace(_NOBODY, name=owner), _KEY_ID)


def owner_of(request: Request) -> str:
    """Whose files and batches a request sees."""
    return caller_of(request).tenant.name


def _num_seats(deployment: Deployment) -> int:
    """Sequences that its replicas can run at once."""
    return sum(each.max_num_seqs or _UNKNOWN_SEATS for each in deployment.replicas.usable(None))


def _num_running(deployment: Deployment) -> int:
    """What runs there, lines of batches too, as far as they have been sent."""
    incarnations = [record.incarnation for record in deployment.replicas.usable(None)]
    loads = deployment.loads_before(is_background=True)
    return sum(each.num_running(incarnation) for each in loads for incarnation in incarnations)
