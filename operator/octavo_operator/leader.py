"""Which of several operator processes acts: the one that holds a Lease (coordination.k8s.io/v1).

The rule is client-go's. A candidate never compares another machine's clock with its own: a lease
has expired when nobody has written it for its whole duration, measured here. Every write carries
the resourceVersion that was read, so that of two candidates one gets a conflict. The holder writes
once per period without reading first, which is all that election costs at rest; the client
library's own election reads before every write and trusts the wall clock.

The holder that cannot renew in time stops being the leader before anybody else may become it.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from octavo_operator.cluster import ApiError, ApiUnreachableError, JsonObject, object_path
from octavo_protocol.errors import OctavoError

logger = logging.getLogger(__name__)

LEASE = "octavo-operator"
_API_VERSION = "coordination.k8s.io/v1"


class LeadershipLostError(OctavoError):
    """Another process may act from now on; this one must end."""


@dataclass(frozen=True, slots=True)
class LeaseTimes:
    """Seconds. A dead leader is replaced after at most duration_s + retry_s; deadline_s: a leader
    that could not renew for so long gives up, well before duration_s.
    """

    duration_s: int = 24
    deadline_s: float = 16.0
    renew_s: float = 8.0
    retry_s: float = 8.0


class LeaseStore(Protocol):
    """Where leases are: `Cluster`."""

    async def find(self, path: str) -> JsonObject | None: ...
    async def create(self, path: str, manifest: JsonObject) -> JsonObject: ...
    async def replace(self, path: str, manifest: JsonObject) -> JsonObject: ...


class Leader:
    """One candidate. identity: its own name, unique among the candidates."""

    def __init__(
        self,
        store: LeaseStore,
        namespace: str,
        identity: str,
        times: LeaseTimes = LeaseTimes(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._namespace = namespace
        self._identity = identity
        self._times = times
        self._clock = clock
        self._lease: JsonObject | None = None
        self._seen_version = ""
        self._seen_at = 0.0
        self._renewed_at: float | None = None

    @property
    def is_leading(self) -> bool:
        """We hold the lease, and renewed it lately enough."""
        return (
            self._renewed_at is not None
            and self._clock() - self._renewed_at < self._times.deadline_s
        )

    async def acquire(self) -> None:
        """Returns when the lease is ours. The API server away: goes on trying."""
        while not await self._try_once():
            await asyncio.sleep(self._times.retry_s)
        logger.info("%s leads", self._identity)

    async def hold(self) -> None:
        """Renews until it can no longer. Raises `LeadershipLostError`; never returns."""
        while True:
            await asyncio.sleep(self._times.renew_s)
            while not await self._renew():
                await asyncio.sleep(min(1.0, self._times.renew_s))

    async def _renew(self) -> bool:
        """One attempt that takes no longer than the lease is ours. Raises `LeadershipLostError`."""
        left = self._times.deadline_s - (self._clock() - (self._renewed_at or 0.0))
        if left <= 0:
            self._renewed_at = None
            raise LeadershipLostError(f"{self._identity} could not renew its lease in time")
        try:
            async with asyncio.timeout(left):
                return await self._try_once()
        except TimeoutError:
            return False

    async def release(self) -> None:
        """Lets another candidate lead at once."""
        if self._lease is None or self._renewed_at is None:
            return
        self._renewed_at = None
        try:
            await self._write("")
        except (ApiError, ApiUnreachableError) as error:
            logger.warning("the lease could not be released, it will expire: %s", error)

    async def _try_once(self) -> bool:
        """Takes or renews the lease. Raises `LeadershipLostError` when another one has taken it."""
        try:
            if self._renewed_at is None:
                await self._look()
                if not self._is_free():
                    return False
            await self._write(self._identity)
        except ApiError as error:
            if error.status == 409 and self._renewed_at is not None:
                return await self._recheck()
            if error.status not in (404, 409):
                logger.warning("the lease cannot be written: %s", error)
            self._lease = None
            return False
        except ApiUnreachableError as error:
            logger.warning("the lease cannot be reached: %s", error)
            return False
        return True

    async def _recheck(self) -> bool:
        """After a conflict while leading: somebody wrote the lease. Ours still: read anew."""
        await self._look()
        if self._holder() != self._identity:
            self._renewed_at = None
            raise LeadershipLostError(f"{self._holder() or 'nobody'} holds the lease now")
        return False

    async def _look(self) -> None:
        self._lease = await self._store.find(
            object_path(_API_VERSION, "Lease", self._namespace, LEASE)
        )
        version = "" if self._lease is None else str(self._lease["metadata"]["resourceVersion"])
        if version != self._seen_version:
            self._seen_version, self._seen_at = version, self._clock()

    def _holder(self) -> str:
        return str(self._spec().get("holderIdentity") or "")

    def _spec(self) -> dict[str, Any]:
        return dict((self._lease or {}).get("spec") or {})

    def _is_free(self) -> bool:
        """Nobody's, our own from a former life, or expired."""
        if self._holder() in ("", self._identity):
            return True
        duration = float(self._spec().get("leaseDurationSeconds") or self._times.duration_s)
        return self._clock() - self._seen_at > duration

    async def _write(self, holder: str) -> None:
        asked_at = self._clock()
        spec = self._spec()
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        if spec.get("holderIdentity") != holder:
            transitions = int(spec.get("leaseTransitions") or 0) + bool(holder and self._lease)
            spec |= {"acquireTime": now, "leaseTransitions": transitions}
        spec |= {
            "holderIdentity": holder,
            "leaseDurationSeconds": self._times.duration_s if holder else 1,
            "renewTime": now,
        }
        metadata: JsonObject = {"name": LEASE, "namespace": self._namespace}
        path = object_path(_API_VERSION, "Lease", self._namespace)
        if self._lease is None:
            manifest = _manifest(metadata, spec)
            self._lease = await self._store.create(path, manifest)
        else:
            metadata["resourceVersion"] = self._lease["metadata"]["resourceVersion"]
            self._lease = await self._store.replace(f"{path}/{LEASE}", _manifest(metadata, spec))
        # From when the request was sent: the server may have counted from any moment since.
        self._renewed_at = asked_at if holder else None


def _manifest(metadata: JsonObject, spec: JsonObject) -> JsonObject:
    return {"apiVersion": _API_VERSION, "kind": "Lease", "metadata": metadata, "spec": spec}
