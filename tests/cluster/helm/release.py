"""A release that a test installs, changes and takes away again, by Helm itself."""

from pathlib import Path
from typing import Any

import helm_python
from tests.cluster.installation import CHART
from tests.cluster.kube import DEPLOYMENT, MODEL_DEPLOYMENT, Kube, Object, is_seen

RELEASE = "octavo-story"
SYSTEM, MODELS = "octavo-story-system", "octavo-story-models"
SECONDS = 120
STATEFUL_SET, POD, SECRET = "apps/v1/StatefulSet", "v1/Pod", "v1/Secret"
WORKLOADS = (
    (STATEFUL_SET, f"{RELEASE}-redis"),
    (DEPLOYMENT, f"{RELEASE}-operator"),
    (DEPLOYMENT, f"{RELEASE}-router"),
)
INSTANCE = {"app.kubernetes.io/instance": RELEASE}
# Kinds of which the chart makes objects, in the versions that every supported server has.
NAMESPACED = (
    *(DEPLOYMENT, STATEFUL_SET, POD, SECRET, "v1/ConfigMap", "v1/Service", "v1/ServiceAccount"),
    *("rbac.authorization.k8s.io/v1/Role", "rbac.authorization.k8s.io/v1/RoleBinding"),
    *("networking.k8s.io/v1/NetworkPolicy", "networking.k8s.io/v1/Ingress"),
    *("autoscaling/v1/HorizontalPodAutoscaler", "v1/PersistentVolumeClaim"),
)
CLUSTER_WIDE = tuple(
    f"rbac.authorization.k8s.io/v1/{kind}" for kind in ("ClusterRole", "ClusterRoleBinding")
)


class Release:
    """kube: a view of the cluster. values: of the small release."""

    def __init__(self, kube: Kube, values: dict[str, Any]) -> None:
        self.kube = kube
        self.values = values

    def helm(self) -> helm_python.Config:
        return helm_python.Config(kubeconfig_path=self.kube.kubeconfig, namespace=SYSTEM)

    def install(self) -> Object:
        with self.helm() as helm:
            return helm.install(CHART, RELEASE, self.values)

    def upgrade(self, **changes: dict[str, Any]) -> Object:
        """changes: values of `operator`, `router` and so on, which stay."""
        for part, values in changes.items():
            self.values.setdefault(part, {}).update(values)
        with self.helm() as helm:
            return helm.upgrade(CHART, RELEASE, self.values)

    def notes(self, chart: Path) -> str:
        """What an upgrade to `chart` would say."""
        with self.helm() as helm:
            release = helm.upgrade(chart, RELEASE, self.values, dry_run="server")
        notes: str = release["notes"]
        return notes

    def wait_until_ready(self) -> None:
        """The newest pods of Redis, operator and router are ready, and there are no others."""

        def is_ready() -> bool:
            return all(self._is_ready(kind, name) for kind, name in WORKLOADS)

        self.kube.wait("release ready", is_ready, seconds=SECONDS, namespace=SYSTEM)

    def _is_ready(self, kind: str, name: str) -> bool:
        found = self.kube.get(kind, name, SYSTEM)
        if found is None:
            return False
        status, wanted = found.get("status", {}), found["spec"]["replicas"]
        numbers = (status.get("replicas"), status.get("readyReplicas"))
        is_current: bool = status.get("observedGeneration") == found["metadata"]["generation"]
        is_updated: bool = status.get("updatedReplicas", wanted) == wanted
        return is_current and is_updated and numbers == (wanted, wanted)

    def pods(self, part: str) -> set[str]:
        """Unique ids of the pods that are not about to end."""
        labels = {**INSTANCE, "app.kubernetes.io/component": part}
        found = self.kube.list(POD, SYSTEM, **labels)
        return {
            each["metadata"]["uid"] for each in found if "deletionTimestamp" not in each["metadata"]
        }

    def password(self) -> str:
        secret = self.kube.get(SECRET, f"{RELEASE}-redis-password", SYSTEM)
        assert secret is not None
        password: str = secret["data"]["password"]
        return password

    def redis(self, *words: str) -> str:
        """The answer of redis-cli in Redis' own pod."""
        command = 'REDISCLI_AUTH="$REDIS_PASSWORD" exec redis-cli "$@"'
        return self.kube.kubectl(
            *("-n", SYSTEM, "exec", f"{RELEASE}-redis-0", "--", "sh", "-c", command, "sh", *words)
        ).strip()

    def make_volume(self) -> None:
        """Redis' claim with a folder that everybody may write to: storage that makes folders on a
        node gives them to root, and knows no fsGroup.
        """
        image = self.values["redis"]["image"]
        claim = f"data-{RELEASE}-redis-0"
        request = {"requests": {"storage": self.values["redis"]["persistence"]["size"]}}
        pod = {
            "restartPolicy": "Never",
            "securityContext": {"runAsUser": 0},
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}],
            "containers": [
                {
                    "name": "chmod",
                    "image": f"{image['repository']}:{image['tag']}",
                    "command": ["chmod", "0777", "/data"],
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                }
            ],
        }
        self._apply(
            "PersistentVolumeClaim",
            claim,
            {"accessModes": ["ReadWriteOnce"], "resources": request},
        )
        self._apply("Pod", "chmod", pod)

        def is_done() -> bool:
            found = self.kube.get(POD, "chmod", SYSTEM)
            return found is not None and found.get("status", {}).get("phase") == "Succeeded"

        self.kube.wait("volume made", is_done, seconds=SECONDS, namespace=SYSTEM)
        self.kube.delete(POD, "chmod", SYSTEM)

    def _apply(self, kind: str, name: str, spec: Object) -> None:
        metadata = {"name": name, "namespace": SYSTEM, "labels": INSTANCE}
        self.kube.apply({"apiVersion": "v1", "kind": kind, "metadata": metadata, "spec": spec})

    def wait_until_reconciled(self) -> None:
        """The operator has seen the newest spec of the model."""

        def is_reconciled() -> bool:
            found = self.kube.get(MODEL_DEPLOYMENT, "story", MODELS)
            assert found is not None, "the ModelDeployment is gone"
            return is_seen(found)

        self.kube.wait("model reconciled", is_reconciled, seconds=SECONDS, namespace=MODELS)

    def objects(self) -> set[str]:
        """`Kind/name` of what there is of the release."""
        found = [
            (kind, each["metadata"]["name"])
            for kind in (*NAMESPACED, *CLUSTER_WIDE)
            for each in self.kube.list(kind, None if kind in CLUSTER_WIDE else SYSTEM, **INSTANCE)
        ]
        return {f"{kind.rpartition('/')[2]}/{name}" for kind, name in found}

    def remove(self) -> None:
        """The release and its namespaces are gone."""
        with self.helm() as helm:
            helm.uninstall(RELEASE, ignore_not_found=True)
        for name in (MODELS, SYSTEM):
            self.kube.delete("v1/Namespace", name)

        def are_gone() -> bool:
            return not any(self.kube.get("v1/Namespace", name) for name in (MODELS, SYSTEM))

        self.kube.wait("namespaces gone", are_gone, seconds=SECONDS)
