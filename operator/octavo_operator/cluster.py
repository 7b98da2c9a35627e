"""The API server as the operator writes to it: a small asynchronous client that counts its calls.

Watching is kopf's part (`watches.py`). Credentials come from the same place: the pod's service
account, else the kubeconfig. After a 401 they are read again once, since tokens are replaced.
"""

import asyncio
import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import aiohttp
import kopf

from octavo_operator.metrics import OperatorMetrics
from octavo_operator.names import FIELD_MANAGER
from octavo_protocol.errors import ConfigError, OctavoError

logger = logging.getLogger(__name__)

JsonObject = dict[str, Any]

_TIMEOUT = aiohttp.ClientTimeout(total=30, sock_connect=5)
_MAX_CONNECTIONS = 16
_PLURALS = {
    "BatchJob": "batchjobs",
    "Deployment": "deployments",
    "Event": "events",
    "Job": "jobs",
    "Lease": "leases",
    "LeaderWorkerSet": "leaderworkersets",
    "LoraAdapter": "loraadapters",
    "ModelDeployment": "modeldeployments",
    "PersistentVolumeClaim": "persistentvolumeclaims",
    "Pod": "pods",
    "PodDisruptionBudget": "poddisruptionbudgets",
    "Secret": "secrets",
    "SelfSubjectAccessReview": "selfsubjectaccessreviews",
    "Service": "services",
    "ServiceAccount": "serviceaccounts",
}


class ApiError(OctavoError):
    """The API server refused. status: of HTTP. reason: one word, such as `AlreadyExists`."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class ApiUnreachableError(OctavoError):
    """The API server did not answer, or asked to come back later."""


def object_path(api_version: str, kind: str, namespace: str = "", name: str = "") -> str:
    """`/apis/apps/v1/namespaces/default/deployments/web`. Raises `ConfigError` for other kinds."""
    if kind not in _PLURALS:
        raise ConfigError(f"the operator does not know the kind {kind}")
    root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
    scope = f"/namespaces/{namespace}" if namespace else ""
    return f"{root}{scope}/{_PLURALS[kind]}" + (f"/{name}" if name else "")


def path_of(manifest: Mapping[str, Any]) -> str:
    """Where a manifest's object is."""
    metadata = manifest["metadata"]
    return object_path(
        manifest["apiVersion"], manifest["kind"], metadata["namespace"], metadata["name"]
    )


class Cluster:
    """Use as an asynchronous context manager. Every method raises `ApiError` or
    `ApiUnreachableError`.
    """

    def __init__(self, metrics: OperatorMetrics) -> None:
        self._metrics = metrics
        self._session: aiohttp.ClientSession | None = None
        self._server = ""

    async def __aenter__(self) -> "Cluster":
        await self._connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str) -> JsonObject:
        return await self._call("get", path)

    async def find(self, path: str) -> JsonObject | None:
        """What is there; None where nothing is."""
        try:
            return await self._call("get", path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def create(self, path: str, manifest: Mapping[str, Any]) -> JsonObject:
        return await self._call("post", path, manifest, parameters={"fieldManager": FIELD_MANAGER})

    async def replace(self, path: str, manifest: Mapping[str, Any]) -> JsonObject:
        return await self._call("put", path, manifest, parameters={"fieldManager": FIELD_MANAGER})

    async def apply(self, manifest: Mapping[str, Any], subresource: str = "") -> JsonObject:
        """Server-side apply with our field manager, taking what others have changed of ours."""
        path = path_of(manifest) + (f"/{subresource}" if subresource else "")
        return await self._call(
            "patch",
            path,
            manifest,
            content_type="application/apply-patch+yaml",  # JSON is YAML
            parameters={"fieldManager": FIELD_MANAGER, "force": "true"},
        )

    async def merge(
        self, path: str, patch: Mapping[str, Any], *, dry_run: bool = False
    ) -> JsonObject:
        """JSON merge patch."""
        parameters = {"fieldManager": FIELD_MANAGER} | ({"dryRun": "All"} if dry_run else {})
        return await self._call(
            "patch",
            path,
            patch,
            content_type="application/merge-patch+json",
            parameters=parameters,
        )

    async def delete(self, path: str, uid: str) -> None:
        """Deletes the object that has this `uid`; its children go in the background. No error
        where it is gone or another has its name.
        """
        options = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        try:
            await self._call("delete", path, options)
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    async def served_kinds(self, api_version: str) -> frozenset[str]:
        """Kinds of that group and version; none where the server does not have it."""
        root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
        found = await self.find(root)
        return frozenset(each["kind"] for each in (found or {}).get("resources", ()))

    async def may(self, verb: str, resource: str, *, group: str = "") -> bool:
        """Whether we are allowed to do that in the whole cluster."""
        attributes = {"verb": verb, "resource": resource, "group": group}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        path = object_path("authorization.k8s.io/v1", "SelfSubjectAccessReview")
        answer = await self._call("post", path, review)
        return bool(answer.get("status", {}).get("allowed"))

    async def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        content_type: str = "application/json",
        parameters: Mapping[str, str] | None = None,
    ) -> JsonObject:
        self._metrics.api_calls.labels(_verb(method, content_type), _resource(path)).inc()
        for is_last in (False, True):
            used = self._session
            try:
                return await self._attempt(method, path, body, content_type, parameters or {})
            except ApiError as error:
                if error.status != 401 or is_last:
                    raise
                if self._session is used:  # nobody else has replaced it meanwhile
                    await self._connect()
        raise AssertionError("unreachable")

    async def _attempt(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        content_type: str,
        parameters: Mapping[str, str],
    ) -> JsonObject:
        if self._session is None:
            raise ApiUnreachableError("the client is not connected")
        try:
            async with self._session.request(
                method,
                self._server + path,
                data=None if body is None else json.dumps(body).encode(),
                headers={"Content-Type": content_type},
                params=dict(parameters),
            ) as response:
                return _answer(response.status, await response.read(), f"{method.upper()} {path}")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            text = str(error) or type(error).__name__
            raise ApiUnreachableError(f"the API server does not answer: {text}") from error

    async def _connect(self) -> None:
        credentials = await asyncio.to_thread(login)
        former, self._session = self._session, None
        self._server = str(credentials.server).rstrip("/")
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                ssl=credentials.as_ssl_context(), limit=_MAX_CONNECTIONS
            ),
            headers=credentials.as_http_headers(),
            timeout=_TIMEOUT,
        )
        if former is not None:
            await former.close()


def login(**_: object) -> Any:
    """A `kopf.ConnectionInfo`: of the pod's service account, else of the current kubeconfig.

    Raises `ConfigError` where there is neither.
    """
    arguments = {"logger": logger, "settings": kopf.OperatorSettings()}
    if (found := kopf.login_with_service_account(**arguments)) is not None:
        return found
    with suppress(kopf.LoginError):
        if (found := kopf.login_via_client(**arguments)) is not None:
            return found
    raise ConfigError(
        "no Kubernetes cluster: run in a pod with a service account, or set KUBECONFIG"
    )


def _verb(method: str, content_type: str) -> str:
    return "apply" if "apply-patch" in content_type else method


def _resource(path: str) -> str:
    """`deployments`, `modeldeployments/status`: bounded words for a metric's label."""
    plurals = set(_PLURALS.values())
    parts = path.split("/")
    for index, part in enumerate(parts):
        if part in plurals:
            return f"{part}/status" if parts[index + 1 :][-1:] == ["status"] else part
    return "discovery"


def _answer(status: int, raw: bytes, what: str) -> JsonObject:
    if status in (429, 502, 503, 504):
        raise ApiUnreachableError(f"{what}: HTTP {status}: {_message(raw)[1]}")
    if status >= 400:
        raise ApiError(status, *_message(raw))
    answer = json.loads(raw)
    return answer if isinstance(answer, dict) else {}


def _message(raw: bytes) -> tuple[str, str]:
    """Reason and message of a Kubernetes Status, or what else there is."""
    try:
        status = json.loads(raw)
        return str(status.get("reason", "")), str(status["message"])
    except (ValueError, KeyError, AttributeError):
        return "", raw[:200].decode(errors="replace")
