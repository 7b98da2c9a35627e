"""What tests do with ModelDeployments: apply, wait for what their status says, ask their models."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import openai

from tests.cluster.kube import LORA_ADAPTER, MODEL_DEPLOYMENT, Kube, Object, conditions, is_true

SOURCE = os.environ.get("OCTAVO_TEST_MODEL", "smollm2")
# Small enough for several replicas on one machine; exact, so that answers are known.
SPEC: Object = {
    "model": {"source": SOURCE},
    "engine": {
        "dtype": "float32",
        "maxModelLen": 2048,
        "maxNumSeqs": 8,
        "kvCacheMemoryMib": 256,
    },
    "resources": {"gpu": {"count": 0}, "cpu": "100m"},
    "rollout": {"drainSeconds": 60, "startSeconds": 300},
}
# A pod template with which nothing runs: for what concerns the control plane alone.
NOWHERE: Object = {"nodeSelector": {"octavo.dev/no-such-node": "true"}}
OWNED_KINDS = (
    *("apps/v1/Deployment", "apps/v1/ReplicaSet", "v1/Pod", "v1/Service", "v1/Secret"),
    *("v1/ServiceAccount", "v1/PersistentVolumeClaim", "v1/ConfigMap", "batch/v1/Job"),
)
OWNER_LABEL = "octavo.dev/model-deployment"
READY_S = 180


@dataclass(frozen=True)
class ModelDeployments:
    """Those of one namespace. router_url: base URL of the router."""

    kube: Kube
    namespace: str
    router_url: str

    def apply(self, name: str, **spec: Any) -> Object:
        """One with SPEC and these fields laid over it."""
        return self.apply_exactly(name, {**SPEC, **spec})

    def apply_exactly(self, name: str, spec: Object) -> Object:
        return self.kube.apply(
            {
                "apiVersion": "octavo.dev/v1alpha1",
                "kind": "ModelDeployment",
                "metadata": {"name": name, "namespace": self.namespace},
                "spec": spec,
            }
        )

    def get(self, name: str) -> Object:
        found = self.kube.get(MODEL_DEPLOYMENT, name, self.namespace)
        assert found is not None, f"there is no ModelDeployment {name}"
        return found

    def pods(self, name: str) -> list[Object]:
        """Its pods that are not about to end: one that drains may be there for a minute."""
        listed = self.kube.list("v1/Pod", self.namespace, **{OWNER_LABEL: name})
        return [pod for pod in listed if "deletionTimestamp" not in pod["metadata"]]

    def events(self, reason: str) -> list[Object]:
        listed = self.kube.list("v1/Event", self.namespace)
        return [event for event in listed if event["reason"] == reason]

    def wait(
        self, name: str, what: str, look: Callable[[Object], Any], *, seconds: float = READY_S
    ) -> Object:
        """The ModelDeployment as soon as `look` is true of it."""

        def looked() -> Object | None:
            found = self.get(name)
            return found if look(found) else None

        return self.kube.wait(f"{name} {what}", looked, seconds=seconds, namespace=self.namespace)

    def wait_until_ready(self, name: str, *, replicas: int = 1, seconds: float = READY_S) -> Object:
        """Ready with exactly that many replicas, all of the current spec, and nothing going on."""

        def is_ready(found: Object) -> bool:
            status = found.get("status", {})
            keys = ("replicas", "desiredReplicas", "readyReplicas", "updatedReplicas")
            counts = {status.get(key) for key in keys}
            return (
                is_true(found, "Ready")
                and counts == {replicas}
                and not is_true(found, "Progressing")
            )

        return self.wait(name, f"ready with {replicas} replicas", is_ready, seconds=seconds)

    def wait_for_condition(
        self, name: str, condition: str, status: str, *reasons: str, seconds: float = 120
    ) -> Object:
        """The condition, once it is so (for any of the reasons) for the spec that is there."""

        def matches(found: Object) -> bool:
            known = conditions(found).get(condition, {})
            is_current = known.get("observedGeneration") == found["metadata"]["generation"]
            is_meant = not reasons or known.get("reason") in reasons
            return is_current and is_meant and known.get("status") == status

        what = f"{condition}={status} {' or '.join(reasons)}"
        return conditions(self.wait(name, what, matches, seconds=seconds))[condition]

    def delete(self, name: str) -> None:
        self.kube.delete(MODEL_DEPLOYMENT, name, self.namespace)

    def leftovers(self) -> list[str]:
        """What carries our label in the namespace, as `kind/name`."""
        return [
            f"{kind.rpartition('/')[2]}/{found['metadata']['name']}"
            for kind in OWNED_KINDS
            for found in self.kube.list(kind, self.namespace)
            if OWNER_LABEL in found["metadata"].get("labels", {})
        ]

    def delete_all(self, *, seconds: float = 150) -> None:
        """Deletes every resource of ours in the namespace. Fails when something of theirs stays."""
        for kind in (LORA_ADAPTER, MODEL_DEPLOYMENT):
            for found in self.kube.list(kind, self.namespace):
                self.kube.delete(kind, found["metadata"]["name"], self.namespace)

        def is_empty() -> bool:
            return not self.kube.list(MODEL_DEPLOYMENT, self.namespace) and not self.leftovers()

        self.kube.wait("nothing left", is_empty, seconds=seconds, namespace=self.namespace)

    def openai(self) -> openai.OpenAI:
        """The official client, at the router. Use it as a context manager."""
        return openai.OpenAI(base_url=f"{self.router_url}/v1", api_key="none", timeout=60)
