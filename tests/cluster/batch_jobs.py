"""What tests do with BatchJobs: a router with a place for files, jobs, and the files they wrote."""

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.cluster.installation import ROUTER, SYSTEM, Installation, service_url
from tests.cluster.kube import BATCH_JOB, DEPLOYMENT, Kube, Object

BATCH_ROUTER = "batch-router"
INPUT, CLAIM = "batch-input", "batch-output"
_LABEL = "octavo.dev/test"
_JOB_LABEL = "octavo.dev/batch-job"


@contextmanager
def batch_router(octavo: Installation) -> Iterator[str]:
    """One more router, the only one that works on batches; its URL, as this machine reaches it.

    Its files are its own, so that no claim is needed that several pods may write to.
    """
    kube = octavo.kube
    found = kube.get(DEPLOYMENT, ROUTER, SYSTEM)
    assert found is not None
    spec = copy.deepcopy(found["spec"])
    spec["replicas"] = 1
    spec["selector"]["matchLabels"][_LABEL] = BATCH_ROUTER
    spec["template"]["metadata"]["labels"][_LABEL] = BATCH_ROUTER
    [container] = spec["template"]["spec"]["containers"]
    container["args"].append("--files-url=/tmp/files")
    port = container["ports"][0]["containerPort"]
    service = {
        "selector": {_LABEL: BATCH_ROUTER},
        "ports": [{"port": 80, "targetPort": port, "protocol": "TCP"}],
    }
    kube.apply(_object("apps/v1", "Deployment", spec))
    kube.apply(_object("v1", "Service", service))

    def is_ready() -> bool:
        live = kube.get(DEPLOYMENT, BATCH_ROUTER, SYSTEM) or {}
        return bool((live.get("status") or {}).get("readyReplicas"))

    try:
        kube.wait("batch router ready", is_ready, seconds=60, namespace=SYSTEM)
        with service_url(kube, BATCH_ROUTER) as url:
            yield url
    finally:
        kube.delete(DEPLOYMENT, BATCH_ROUTER, SYSTEM)
        kube.delete("v1/Service", BATCH_ROUTER, SYSTEM)


def _object(api_version: str, kind: str, spec: Object) -> Object:
    metadata = {"name": BATCH_ROUTER, "namespace": SYSTEM}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": spec}


@dataclass(frozen=True)
class BatchJobs:
    """Those of one namespace. user: securityContext of pods that write to a claim. image: one that
    is in the cluster and has `cat`.
    """

    kube: Kube
    namespace: str
    user: Object
    image: str

    def prepare(self, lines: list[Object]) -> None:
        """The requests as a ConfigMap, and a claim for the results."""
        text = "".join(json.dumps(line) + "\n" for line in lines)
        metadata = {"namespace": self.namespace}
        self.kube.apply(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {**metadata, "name": INPUT},
                "data": {"requests.jsonl": text},
            }
        )
        self.kube.apply(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {**metadata, "name": CLAIM},
                "spec": {
                    "accessModes": ["ReadWriteMany"],
                    "resources": {"requests": {"storage": "1Gi"}},
                },
            }
        )

    def apply(self, name: str, **spec: Any) -> Object:
        """One from that ConfigMap to that claim, with these fields laid over it."""
        pod = {
            "volumes": [{"name": "input", "configMap": {"name": INPUT}}],
            "volumeMounts": [{"name": "input", "mountPath": "/input"}],
            "securityContext": self.user,
        }
        planned = {
            "input": {"url": "file:///input/requests.jsonl"},
            "output": {"url": f"pvc://{CLAIM}/{name}/answers.jsonl"},
            "router": {"url": f"http://{BATCH_ROUTER}.{SYSTEM}.svc"},
            "podTemplate": pod,
        }
        metadata = {"name": name, "namespace": self.namespace}
        manifest = {"apiVersion": "octavo.dev/v1alpha1", "kind": "BatchJob", "metadata": metadata}
        return self.kube.apply({**manifest, "spec": {**planned, **spec}})

    def pods(self, name: str) -> list[Object]:
        return self.kube.list("v1/Pod", self.namespace, **{_JOB_LABEL: name})

    def wait(
        self, name: str, what: str, look: Callable[[Object], Any], *, seconds: float = 60
    ) -> Object:
        """The BatchJob's status as soon as `look` is true of it."""

        def looked() -> Object | None:
            found = self.kube.get(BATCH_JOB, name, self.namespace) or {}
            status: Object = found.get("status") or {}
            return status if look(status) else None

        return self.kube.wait(f"{name} {what}", looked, seconds=seconds, namespace=self.namespace)

    def delete(self, name: str) -> None:
        self.kube.delete(BATCH_JOB, name, self.namespace)

    def results(self, name: str) -> list[Any]:
        """What its output file says, read by a pod."""
        reader = f"read-{name}"
        volume = {"name": "claim", "persistentVolumeClaim": {"claimName": CLAIM}}
        container = {
            "name": "read",
            "image": self.image,
            "command": ["cat", f"/claim/{name}/answers.jsonl"],
            "volumeMounts": [{"name": "claim", "mountPath": "/claim"}],
        }
        spec = {
            "restartPolicy": "Never",
            "containers": [container],
            "volumes": [volume],
            "securityContext": self.user,
        }
        metadata = {"name": reader, "namespace": self.namespace}
        self.kube.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})

        def has_ended() -> bool:
            pod = self.kube.get("v1/Pod", reader, self.namespace) or {}
            return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")

        self.kube.wait("results read", has_ended, seconds=60, namespace=self.namespace)
        text = self.kube.logs(reader, self.namespace, lines=1000)
        self.kube.delete("v1/Pod", reader, self.namespace)
        return [json.loads(line) for line in text.splitlines()]
