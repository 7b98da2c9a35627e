"""A small view of the cluster for tests: objects as dictionaries, and waiting with deadlines.

What a wait ran into is in its failure: the object's status, its pods, their logs and the events.
"""

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import urllib3
from kubernetes import config, dynamic
from kubernetes.dynamic.exceptions import DynamicApiError, NotFoundError

Object = dict[str, Any]
Result = TypeVar("Result")

MODEL_DEPLOYMENT = "octavo.dev/v1alpha1/ModelDeployment"
LORA_ADAPTER = "octavo.dev/v1alpha1/LoraAdapter"
BATCH_JOB = "octavo.dev/v1alpha1/BatchJob"
DEPLOYMENT = "apps/v1/Deployment"
FIELD_MANAGER = "octavo-tests"
POLL_S = 0.5


class WaitError(AssertionError):
    """A condition did not come true in time."""


@dataclass(frozen=True)
class Kube:
    """Paths of the cluster's kubeconfig and of kubectl. Kinds are `v1/Pod`, `apps/v1/…`."""

    kubeconfig: str
    kubectl_path: str
    client: dynamic.DynamicClient

    @classmethod
    def connect(cls, kubeconfig: str, kubectl_path: str) -> "Kube":
        api = config.new_client_from_config(kubeconfig)  # type: ignore[no-untyped-call]
        client = dynamic.DynamicClient(api)  # type: ignore[no-untyped-call]
        return cls(kubeconfig, kubectl_path, client)

    def _resource(self, kind: str) -> Any:
        api_version, _, name = kind.rpartition("/")
        return self.client.resources.get(api_version=api_version, kind=name)

    def get(self, kind: str, name: str, namespace: str | None = None) -> Object | None:
        """None if it is not there."""
        try:
            return told(self._resource(kind).get(name=name, namespace=namespace))
        except NotFoundError:
            return None

    def list(self, kind: str, namespace: str | None = None, **labels: str) -> list[Object]:
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        found = self._resource(kind).get(namespace=namespace, label_selector=selector)
        listed: list[Object] = told(found)["items"]
        return listed

    def apply(self, manifest: Object, *, field_manager: str = FIELD_MANAGER) -> Object:
        """Server-side apply; conflicts are errors. Raises `DynamicApiError`."""
        metadata = manifest["metadata"]
        resource = self._resource(f"{manifest['apiVersion']}/{manifest['kind']}")
        return told(
            resource.server_side_apply(
                body=manifest,
                name=metadata["name"],
                namespace=metadata.get("namespace"),
                field_manager=field_manager,
            )
        )

    def patch(self, kind: str, name: str, namespace: str, body: Object) -> Object:
        """Merge patch."""
        return told(
            self._resource(kind).patch(
                body=body,
                name=name,
                namespace=namespace,
                content_type="application/merge-patch+json",
            )
        )

    def delete(self, kind: str, name: str, namespace: str | None = None, **options: Any) -> None:
        """Says nothing if it is not there. options: of the request, as `gracePeriodSeconds`."""
        with contextlib.suppress(NotFoundError):
            self._resource(kind).delete(name=name, namespace=namespace, body=options or None)

    def kubectl(self, *words: str, stdin: str | None = None) -> str:
        """Output of a kubectl command, as a user would run it."""
        command = [self.kubectl_path, "--kubeconfig", self.kubeconfig, *words]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
        return done.stdout

    def wait(
        self, what: str, look: Callable[[], Result | None], *, seconds: float, namespace: str = ""
    ) -> Result:
        """The first result of `look` that is true. A server that is away is asked again.

        Raises `WaitError` with what there is in `namespace` when it does not come in time.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                if result := look():
                    return result
                problem = ""
            except (DynamicApiError, urllib3.exceptions.HTTPError) as error:
                problem = f" (last answer: {error})"
            if time.monotonic() > deadline:
                told = f"{what}: not within {seconds:.0f} s{problem}"
                raise WaitError(f"{told}\n{self.describe(namespace)}" if namespace else told)
            time.sleep(POLL_S)

    def describe(self, namespace: str) -> str:
        """What a person would look at in a namespace after a failure."""
        return "\n".join(self._description(namespace))

    def _description(self, namespace: str) -> Iterator[str]:
        for found in (*self.list(MODEL_DEPLOYMENT, namespace), *self.list(BATCH_JOB, namespace)):
            status = json.dumps(found.get("status", {}), indent=1)
            yield f"--- {found['kind']} {found['metadata']['name']}\n{status}"
        for event in self.list("v1/Event", namespace)[-20:]:
            about = event["involvedObject"]
            yield f"--- {about['kind']} {about['name']}: {event['reason']} {event.get('message')}"
        for pod in self.list("v1/Pod", namespace)[:10]:
            name = pod["metadata"]["name"]
            status = pod.get("status", {})
            states = [each.get("state") for each in status.get("containerStatuses", [])]
            yield f"--- Pod {name} {status.get('phase')} {states}\n{self.logs(name, namespace)}"

    def logs(self, pod: str, namespace: str, *, lines: int = 30) -> str:
        """The last lines of a pod's log, or why there are none."""
        words = ["logs", pod, "-n", namespace, f"--tail={lines}"]
        command = [self.kubectl_path, "--kubeconfig", self.kubeconfig, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return done.stdout or done.stderr


def told(answer: Any) -> Object:
    """What the API server said, without fields that are null: Kubernetes takes them as absent."""
    found: Object = _without_nulls(answer.to_dict())
    return found


def _without_nulls(part: Any) -> Any:
    if isinstance(part, dict):
        return {key: _without_nulls(each) for key, each in part.items() if each is not None}
    return [_without_nulls(each) for each in part] if isinstance(part, list) else part


def conditions(found: Object) -> dict[str, Object]:
    """Conditions of an object's status by type; none before anybody has written a status."""
    listed = found.get("status", {}).get("conditions", [])
    return {condition["type"]: condition for condition in listed}


def is_seen(found: Object) -> bool:
    """Whether its status is about the spec that is there now."""
    observed = found.get("status", {}).get("observedGeneration", 0)
    return bool(observed >= found["metadata"]["generation"])


def is_true(found: Object, condition: str) -> bool:
    """Whether it is True and about the spec that is there now, where it says which."""
    known = conditions(found).get(condition)
    if known is None or known["status"] != "True":
        return False
    generation = found["metadata"].get("generation")
    return bool(known.get("observedGeneration", generation) == generation)
