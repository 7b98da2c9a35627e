"""What is rendered is valid for the API servers that are supported, and safe."""

from collections.abc import Iterable

import kubernetes_validate
import pytest
from tests.unit.charts.chart import GATEWAY, MONITORING, Manifests, Object, render

EVERYTHING_ON: Object = {
    "commonLabels": {"team": "ml"},
    "imagePullSecrets": [{"name": "team"}],
    "operator": {
        "namespaces": ["team-a"],
        "extraEnv": [{"name": "A", "value": "b"}],
        "extraVolumes": [{"name": "v", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "v", "mountPath": "/v"}],
        "tolerations": [{"operator": "Exists"}],
        "priorityClassName": "high",
    },
    "router": {
        "autoscaling": {"enabled": True},
        "apiKeys": {"secretName": "keys"},
        "ingress": {"enabled": True, "className": "nginx", "hosts": ["llm.example.com"]},
        "httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}]},
        "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
    },
    "redis": {"persistence": {"storageClassName": "fast"}},
    "monitoring": {"monitors": "always", "dashboard": {"enabled": True}},
}
VARIANTS: dict[str, Object] = {
    "default": {},
    "everything on": EVERYTHING_ON,
    "Redis elsewhere": {
        "redis": {"external": {"url": "rediss://redis/0", "passwordSecret": {"name": "redis"}}},
    },
    "user of the platform": {"runAsUser": None, "redis": {"persistence": {"enabled": False}}},
}
_FOREIGN = (MONITORING, GATEWAY)


@pytest.fixture(params=list(VARIANTS.values()), ids=list(VARIANTS))
def manifests(request: pytest.FixtureRequest) -> Manifests:
    values: Object = request.param
    return render(values)


def containers(manifests: Manifests) -> Iterable[tuple[Object, Object]]:
    for workload in manifests.workloads:
        pod = workload["spec"]["template"]["spec"]
        for container in pod["containers"]:
            yield pod, container


@pytest.mark.parametrize("version", ["1.27", "1.37"])
def test_every_manifest_fits_the_schemas_of_the_api(manifests: Manifests, version: str) -> None:
    for each in manifests.objects:
        if each["apiVersion"] not in _FOREIGN:
            kubernetes_validate.validate(each, version, strict=True)


def test_pods_run_without_privileges_and_write_nowhere_but_to_volumes(manifests: Manifests) -> None:
    for pod, container in containers(manifests):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_pods_have_a_user_unless_the_platform_chooses() -> None:
    for pod, _ in containers(render()):
        ids = {pod["securityContext"][key] for key in ("runAsUser", "runAsGroup", "fsGroup")}
        assert ids == {65532}
    for pod, _ in containers(render(VARIANTS["user of the platform"])):
        assert not {"runAsUser", "runAsGroup", "fsGroup"} & set(pod["securityContext"])


def test_pods_ask_for_memory_and_cpu_and_are_probed(manifests: Manifests) -> None:
    for _, container in containers(manifests):
        assert set(container["resources"]["requests"]) == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]
        assert {"livenessProbe", "readinessProbe"} <= set(container)


def test_only_the_operator_has_a_token(manifests: Manifests) -> None:
    for workload in manifests.workloads:
        pod = workload["spec"]["template"]["spec"]
        component = workload["metadata"]["labels"]["app.kubernetes.io/component"]
        assert pod["automountServiceAccountToken"] is (component == "operator")
        assert pod["serviceAccountName"] == f"octavo-{component}"
        assert f"ServiceAccount/octavo-{component}" in manifests.names


def test_variables_that_kubernetes_makes_of_services_are_kept_away(manifests: Manifests) -> None:
    """A Service `octavo-router` would else set OCTAVO_ROUTER_PORT=tcp://…, a flag's name."""
    for pod, _ in containers(manifests):
        assert pod["enableServiceLinks"] is False


def test_selectors_find_the_pods_that_they_mean(manifests: Manifests) -> None:
    labels = {
        each["metadata"]["name"]: each["spec"]["template"]["metadata"]["labels"]
        for each in manifests.workloads
    }
    selectors = [
        (each["metadata"]["name"], each["spec"].get("selector") or each["spec"]["podSelector"])
        for kind in ("Service", "PodDisruptionBudget", "NetworkPolicy", "Deployment", "StatefulSet")
        for each in manifests.of_kind(kind)
    ]
    assert selectors
    for name, selector in selectors:
        wanted = selector.get("matchLabels", selector)
        found = [pod for pod, given in labels.items() if wanted.items() <= given.items()]
        assert found == [name]


def test_ports_that_are_named_exist(manifests: Manifests) -> None:
    ports = {
        component: {port["name"] for port in manifests.container(component)["ports"]}
        for component in ("operator", "router")
    }
    assert ports == {"operator": {"health"}, "router": {"http"}}
    for _, container in containers(manifests):
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            handler = container.get(probe, {})
            port = handler.get("httpGet", handler.get("tcpSocket", {})).get("port")
            assert port in {None, *(each["name"] for each in container["ports"])}


def test_files_that_pods_mount_come_from_objects_of_the_chart(manifests: Manifests) -> None:
    for pod, container in containers(manifests):
        volumes = {volume["name"] for volume in pod["volumes"]}
        claims = {"data"} if container["name"] == "redis" else set()
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes | claims
        for volume in pod["volumes"]:
            if "configMap" in volume:
                assert f"ConfigMap/{volume['configMap']['name']}" in manifests.names
