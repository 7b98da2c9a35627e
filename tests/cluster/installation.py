"""The chart, installed once for all tests, and the way to its router."""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import helm_python
import yaml

from tests.cluster import images
from tests.cluster.environment import ROOT, Images
from tests.cluster.kube import DEPLOYMENT, POLL_S, Kube, Object

RELEASE = "octavo"
SYSTEM = "octavo-test-system"
NAMESPACE, OTHER_NAMESPACE = "octavo-test", "octavo-test-other"
CHART = ROOT / "charts" / "octavo"
OPERATOR, ROUTER, REDIS = (f"{RELEASE}-{part}" for part in ("operator", "router", "redis"))
READY_S = 120
ROUTED_S = 15


@dataclass(frozen=True)
class Installation:
    """A release in the namespace SYSTEM. router_url: as this machine reaches the router."""

    kube: Kube
    values: dict[str, Any]
    router_url: str

    def upgrade(self, **operator: Any) -> None:
        """`helm upgrade` with other values of the operator."""
        values = {**self.values, "operator": {**self.values["operator"], **operator}}
        with _helm(self.kube) as helm:
            helm.upgrade(CHART, RELEASE, values)
        self.wait_until_ready(OPERATOR)

    def wait_until_ready(self, component: str) -> None:
        """Until all of its pods are, and of the current values."""
        _wait_until_ready(self.kube, component)

    def pods(self, component: str) -> list[Object]:
        """Pods of `operator`, `router` or `redis`."""
        return self.kube.list("v1/Pod", SYSTEM, **{"app.kubernetes.io/component": component})

    @property
    def leader(self) -> str:
        """Pod of the operator that works; pods are ready before one of them leads."""

        def holder() -> str:
            lease = self.kube.get("coordination.k8s.io/v1/Lease", OPERATOR, SYSTEM) or {}
            return str(lease.get("spec", {}).get("holderIdentity", ""))

        return self.kube.wait("a leader", holder, seconds=60, namespace=SYSTEM)


def values_for(made: Images | None, named: Images, model: Path | None) -> dict[str, Any]:
    """The chart's values. made: images of this source tree, which need this machine's Python."""
    values: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "values.yaml").read_text())
    for part in ("runtime", "router", "operator", "redis"):
        repository, _, tag = getattr(named, part).rpartition(":")
        values[part]["image"] = {"repository": repository, "tag": tag}
    if made is None:
        return values
    python = images.python_mounts()
    for part in ("router", "operator"):
        values[part]["extraVolumes"] = [volume for volume, _ in python]
        values[part]["extraVolumeMounts"] = [mount for _, mount in python]
    mounts = [*python, *([images.model_mount(model)] if model else [])]
    values["runtime"]["podDefaults"]["volumes"] = [volume for volume, _ in mounts]
    values["runtime"]["podDefaults"]["volumeMounts"] = [mount for _, mount in mounts]
    return values


@contextmanager
def installed(kube: Kube, values: dict[str, Any]) -> Iterator[Installation]:
    """Installs CRDs and chart, and takes the chart and its namespaces away in the end."""
    namespaces = (NAMESPACE, OTHER_NAMESPACE, SYSTEM)
    _remove(kube, namespaces)
    kube.wait("namespaces gone", lambda: not _are_there(kube, namespaces), seconds=READY_S)
    try:
        kube.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(ROOT / "crds"))
        for name in namespaces:
            kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        with _helm(kube) as helm:
            helm.install(CHART, RELEASE, values)
        for component in (OPERATOR, ROUTER):
            _wait_until_ready(kube, component)
        with service_url(kube, ROUTER) as router_url:
            yield Installation(kube, values, router_url)
    finally:
        _remove(kube, namespaces)


def _remove(kube: Kube, namespaces: tuple[str, ...]) -> None:
    """Uninstalls the release if it is there, and deletes the namespaces."""
    with _helm(kube) as helm:
        helm.uninstall(RELEASE, ignore_not_found=True)
    for name in namespaces:
        kube.delete("v1/Namespace", name)


def _are_there(kube: Kube, namespaces: tuple[str, ...]) -> bool:
    return any(kube.get("v1/Namespace", name) for name in namespaces)


def _helm(kube: Kube) -> helm_python.Config:
    return helm_python.Config(kubeconfig_path=kube.kubeconfig, namespace=SYSTEM)


def _wait_until_ready(kube: Kube, component: str) -> None:
    def is_rolled_out() -> bool:
        found = kube.get(DEPLOYMENT, component, SYSTEM)
        return found is not None and _is_rolled_out(found)

    kube.wait(f"{component} ready", is_rolled_out, seconds=READY_S, namespace=SYSTEM)


def _is_rolled_out(deployment: Object) -> bool:
    spec, status = deployment["spec"], deployment.get("status", {})
    ready = (status.get(key, 0) for key in ("replicas", "updatedReplicas", "readyReplicas"))
    is_current = status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
    return is_current and set(ready) == {spec["replicas"]}


@contextmanager
def service_url(kube: Kube, service: str) -> Iterator[str]:
    """URL of a Service in SYSTEM: its cluster IP where this machine has a route, else forwarded."""
    found = kube.get("v1/Service", service, SYSTEM)
    assert found is not None, f"the chart made no Service {service}"
    port = found["spec"]["ports"][0]["port"]
    address = (found["spec"]["clusterIP"], port)
    if _is_routed(address):
        yield f"http://{address[0]}:{port}"
        return
    words = ["port-forward", "-n", SYSTEM, f"service/{service}", f":{port}"]
    command = [kube.kubectl_path, "--kubeconfig", kube.kubeconfig, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        local = process.stdout.readline().split(" -> ")[0].rpartition(":")[2]
        try:
            yield f"http://127.0.0.1:{local}"
        finally:
            process.terminate()


def _is_routed(address: tuple[str, int]) -> bool:
    """Whether connections from here reach a Service; nodes take a moment to know its endpoints."""
    deadline = time.monotonic() + ROUTED_S
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(address, timeout=3):
                return True
        except OSError:
            time.sleep(POLL_S)
    return False
