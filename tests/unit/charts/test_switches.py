"""Every switch of the chart does what its comment in values.yaml says."""

from typing import Any

import pytest
from tests.unit.charts.chart import Object, helm_python, render

from octavo_operator.names import (
    COMPONENT,
    DOWNLOAD_COMPONENT,
    REPLICA_COMPONENT,
    labels,
    redis_secret,
)


def environment(container: Object) -> dict[str, Any]:
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}


def secret_key(name: str, key: str) -> Object:
    return {"secretKeyRef": {"name": name, "key": key}}


def test_the_default_is_a_whole_platform() -> None:
    assert render().names == {
        *("Deployment/octavo-operator", "Deployment/octavo-router", "StatefulSet/octavo-redis"),
        *("Service/octavo-router", "Service/octavo-redis", "Secret/octavo-redis-password"),
        *("ConfigMap/octavo-redis", "ConfigMap/octavo-pod-defaults"),
        *(f"ServiceAccount/octavo-{part}" for part in ("operator", "router", "redis")),
        *(f"NetworkPolicy/octavo-{part}" for part in ("operator", "router", "redis")),
        *("PodDisruptionBudget/octavo-operator", "PodDisruptionBudget/octavo-router"),
        *("Role/octavo-operator-lease", "RoleBinding/octavo-operator-lease"),
        *(
            f"{kind}/octavo-system-octavo-operator{end}"
            for kind in ("ClusterRole", "ClusterRoleBinding")
            for end in ("", "-nodes")
        ),
        *("ClusterRole/octavo-system-octavo-view", "ClusterRole/octavo-system-octavo-edit"),
        *("PodMonitor/octavo-operator", "PodMonitor/octavo-replicas"),
        *("ServiceMonitor/octavo-router", "PrometheusRule/octavo-alerts"),
    }


def test_without_the_prometheus_operator_there_are_no_monitors() -> None:
    names = render(served=()).names
    assert not any("Monitor" in name or "PrometheusRule" in name for name in names)


def test_names_start_with_the_release_and_can_be_replaced() -> None:
    assert "Deployment/llm-octavo-router" in render(release="llm").names
    assert "Deployment/models-router" in render({"fullnameOverride": "models"}).names


def test_images_come_from_the_registry_and_a_digest_goes_before_a_tag() -> None:
    digest = "sha256:" + "0" * 64
    values = {
        "imageRegistry": "registry.example.com/team/",
        "imagePullSecrets": [{"name": "team"}],
        "operator": {"image": {"tag": "1.2"}},
        "router": {"image": {"digest": digest, "tag": "1.2"}},
        "runtime": {"image": {"repository": "gpu-runtime", "pullPolicy": "Always"}},
    }
    manifests = render(values)

    operator = manifests.container("operator")
    assert operator["image"] == "registry.example.com/team/octavo-operator:1.2"
    assert (
        manifests.container("router")["image"]
        == f"registry.example.com/team/octavo-router@{digest}"
    )
    assert manifests.container("redis")["image"].startswith("docker.io/valkey/valkey:")
    assert "--runtime-image=registry.example.com/team/gpu-runtime:0.1.0" in operator["args"]
    assert "--image-pull-policy=Always" in operator["args"]
    for component in ("operator", "router", "redis"):
        assert manifests.pod(component)["spec"]["imagePullSecrets"] == [{"name": "team"}]


def test_common_labels_are_on_every_object_and_pod() -> None:
    manifests = render({"commonLabels": {"team": "ml"}})

    assert all(each["metadata"]["labels"]["team"] == "ml" for each in manifests.objects)
    for workload in manifests.workloads:
        assert workload["spec"]["template"]["metadata"]["labels"]["team"] == "ml"
        assert "team" not in workload["spec"]["selector"]["matchLabels"]


@pytest.mark.parametrize("component", ["operator", "router", "redis"])
def test_each_component_takes_what_pods_can_be_given(component: str) -> None:
    constraint = {"maxSkew": 2, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}
    values: Object = {
        "resources": {"requests": {"cpu": "3"}},
        "podLabels": {"a": "b"},
        "podAnnotations": {"c": "d"},
        "nodeSelector": {"e": "f"},
        "tolerations": [{"operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [constraint],
        "priorityClassName": "high",
        "extraArgs": ["--log-level=debug"],
        "extraEnv": [{"name": "G", "value": "h"}],
        "extraVolumes": [{"name": "i", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "i", "mountPath": "/i"}],
    }
    manifests = render({component: values})
    pod, container = manifests.pod(component), manifests.container(component)

    assert container["resources"]["requests"]["cpu"] == "3"
    assert pod["metadata"]["labels"]["a"] == "b"
    assert pod["metadata"]["annotations"]["c"] == "d"
    for field in ("nodeSelector", "tolerations", "affinity", "topologySpreadConstraints"):
        assert pod["spec"][field] == values[field]
    assert pod["spec"]["priorityClassName"] == "high"
    assert container["args"][-1] == "--log-level=debug"
    assert environment(container)["G"] == "h"
    assert values["extraVolumes"][0] in pod["spec"]["volumes"]
    assert values["extraVolumeMounts"][0] in container["volumeMounts"]


def test_namespaces_limit_operator_router_roles_and_monitors() -> None:
    manifests = render({"operator": {"namespaces": ["team-a", "team-b"]}})

    for component in ("operator", "router"):
        assert "--namespaces=team-a,team-b" in manifests.container(component)["args"]
    assert {each["metadata"]["name"] for each in manifests.of_kind("ClusterRole")} == {
        "octavo-system-octavo-operator-nodes",
        "octavo-system-octavo-view",
        "octavo-system-octavo-edit",
    }
    for namespace in ("team-a", "team-b"):
        role = manifests.find("Role", "octavo-system-octavo-operator", namespace)
        binding = manifests.find("RoleBinding", "octavo-system-octavo-operator", namespace)
        [everywhere] = [
            each
            for each in render().of_kind("ClusterRole")
            if each["metadata"]["name"] == "octavo-system-octavo-operator"
        ]
        assert role["rules"] == everywhere["rules"]
        assert binding["roleRef"]["kind"] == "Role"
        assert binding["subjects"] == [
            {"kind": "ServiceAccount", "name": "octavo-operator", "namespace": "octavo-system"}
        ]
    monitor = manifests.find("PodMonitor", "octavo-replicas")
    assert monitor["spec"]["namespaceSelector"] == {"matchNames": ["team-a", "team-b"]}
    policy = manifests.find("NetworkPolicy", "octavo-redis")
    [replicas] = [
        each for each in policy["spec"]["ingress"][0]["from"] if "namespaceSelector" in each
    ]
    assert replicas["namespaceSelector"]["matchExpressions"][0]["values"] == ["team-a", "team-b"]


def test_pod_defaults_reach_the_operator_and_a_change_restarts_it() -> None:
    manifests = render({"runtime": {"podDefaults": {"nodeSelector": {"gpu": "h200"}}}})

    text = manifests.find("ConfigMap", "octavo-pod-defaults")["data"]["pod-defaults.yaml"]
    assert text == "nodeSelector:\n  gpu: h200\n"
    [volume] = [
        v for v in manifests.pod("operator")["spec"]["volumes"] if v["name"] == "pod-defaults"
    ]
    assert volume["configMap"]["name"] == "octavo-pod-defaults"
    annotations = manifests.pod("operator")["metadata"]["annotations"]
    assert annotations != render().pod("operator")["metadata"]["annotations"]


def test_single_replicas_have_no_disruption_budget() -> None:
    values = {"operator": {"replicas": 1}, "router": {"replicas": 1}}
    assert render(values).of_kind("PodDisruptionBudget") == []


def test_an_autoscaled_router_leaves_its_replicas_to_the_autoscaler() -> None:
    values = {"enabled": True, "minReplicas": 3, "maxReplicas": 7}
    manifests = render({"router": {"replicas": 1, "autoscaling": values}})

    assert "replicas" not in manifests.find("Deployment", "octavo-router")["spec"]
    spec = manifests.find("HorizontalPodAutoscaler", "octavo-router")["spec"]
    assert (spec["minReplicas"], spec["maxReplicas"]) == (3, 7)
    assert spec["scaleTargetRef"]["name"] == "octavo-router"
    assert "PodDisruptionBudget/octavo-router" in manifests.names


def test_the_router_gets_time_to_drain() -> None:
    values = {"drainDelaySeconds": 7, "drainTimeoutSeconds": 100}
    manifests = render({"router": values})

    assert {"--drain-delay=7", "--drain-timeout=100"} <= set(manifests.container("router")["args"])
    assert manifests.pod("router")["spec"]["terminationGracePeriodSeconds"] == 122


def test_api_keys_come_from_a_secret_and_the_notes_ask_for_them() -> None:
    manifests = render({"router": {"apiKeys": {"secretName": "keys"}}})

    given = environment(manifests.container("router"))
    assert given["OCTAVO_API_KEY"] == secret_key("keys", "api-keys")
    assert "authorization: Bearer" in manifests.notes
    assert "OCTAVO_API_KEY" not in environment(render().container("router"))
    assert "Everybody" in render().notes


def test_the_replicas_key_is_the_routers_and_the_operator_s() -> None:
    manifests = render({"runtime": {"apiKey": {"secretName": "inner"}}})

    for part in ("operator", "router"):
        given = environment(manifests.container(part))
        assert given["OCTAVO_REPLICA_API_KEY"] == secret_key("inner", "api-key")
        assert "OCTAVO_REPLICA_API_KEY" not in environment(render().container(part))


def test_the_service_and_the_endpoint_follow_type_port_and_public_url() -> None:
    service = {"type": "LoadBalancer", "port": 8080, "annotations": {"cloud": "internal"}}
    manifests = render({"router": {"service": service}})

    made = manifests.find("Service", "octavo-router")
    assert made["metadata"]["annotations"] == {"cloud": "internal"}
    assert (made["spec"]["type"], made["spec"]["ports"][0]["port"]) == ("LoadBalancer", 8080)
    url = "http://octavo-router.octavo-system.svc:8080"
    assert f"--router-url={url}" in manifests.container("operator")["args"]
    public = render({"router": {"publicUrl": "https://llm.example.com"}})
    assert "--router-url=https://llm.example.com" in public.container("operator")["args"]


def test_ingress() -> None:
    values = {
        "enabled": True,
        "className": "nginx",
        "annotations": {"a": "b"},
        "hosts": ["llm.example.com", "llm.example.org"],
        "tls": [{"secretName": "tls", "hosts": ["llm.example.com"]}],
    }
    ingress = render({"router": {"ingress": values}}).find("Ingress", "octavo-router")

    assert ingress["metadata"]["annotations"] == {"a": "b"}
    assert ingress["spec"]["ingressClassName"] == "nginx"
    assert ingress["spec"]["tls"] == values["tls"]
    assert [rule["host"] for rule in ingress["spec"]["rules"]] == values["hosts"]
    backend = ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    assert backend == {"name": "octavo-router", "port": {"name": "http"}}


def test_gateway_route() -> None:
    values = {
        "enabled": True,
        "parentRefs": [{"name": "public", "namespace": "gateways"}],
        "hostnames": ["llm.example.com"],
        "timeouts": {"request": "0s"},
    }
    route = render({"router": {"httpRoute": values}}).find("HTTPRoute", "octavo-router")

    assert route["apiVersion"] == "gateway.networking.k8s.io/v1"
    assert route["spec"] == {
        "parentRefs": values["parentRefs"],
        "hostnames": values["hostnames"],
        "rules": [
            {
                "backendRefs": [{"name": "octavo-router", "port": 80}],
                "timeouts": {"request": "0s"},
            }
        ],
    }
    older = render({"router": {"httpRoute": values}}, served=("gateway.networking.k8s.io/v1beta1",))
    assert older.of_kind("HTTPRoute")[0]["apiVersion"] == "gateway.networking.k8s.io/v1beta1"


@pytest.mark.parametrize(("key", "missing"), [("ingress", "hosts"), ("httpRoute", "parentRefs")])
def test_a_way_in_without_its_target_is_refused_by_name(key: str, missing: str) -> None:
    with pytest.raises(
        helm_python.HelmError, match=rf"router\.{key}\.{missing}: name at least one"
    ):
        render({"router": {key: {"enabled": True}}})


def test_the_password_of_redis_is_random_long_and_stays_when_the_release_goes() -> None:
    secret = render().find("Secret", "octavo-redis-password")

    assert secret["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert len(secret["data"]["password"]) == 44  # 32 letters and digits in base64
    assert secret != render({"redis": {"podLabels": {"other": "render"}}}).find(
        "Secret", "octavo-redis-password"
    )


def test_an_existing_password_is_used_everywhere_and_none_is_made() -> None:
    values = {"redis": {"auth": {"existingSecret": "mine", "secretKey": "pw"}}}
    manifests = render(values)

    assert manifests.of_kind("Secret") == []
    for component in ("operator", "router", "redis"):
        given = environment(manifests.container(component))
        assert given["REDIS_PASSWORD"] == secret_key("mine", "pw")


def test_redis_without_persistence_has_a_folder_of_its_pod_and_the_notes_say_so() -> None:
    manifests = render({"redis": {"persistence": {"enabled": False}}})

    assert "volumeClaimTemplates" not in manifests.find("StatefulSet", "octavo-redis")["spec"]
    assert {"name": "data", "emptyDir": {}} in manifests.pod("redis")["spec"]["volumes"]
    assert "Redis keeps nothing" in manifests.notes


def test_redis_claims_the_storage_that_is_asked_for() -> None:
    values = {"size": "10Gi", "storageClassName": "fast"}
    [claim] = render({"redis": {"persistence": values}}).find("StatefulSet", "octavo-redis")[
        "spec"
    ]["volumeClaimTemplates"]

    assert claim["spec"]["resources"]["requests"]["storage"] == "10Gi"
    assert claim["spec"]["storageClassName"] == "fast"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (
            "rediss://redis.example.com:6380/1",
            "rediss://:$(REDIS_PASSWORD)@redis.example.com:6380/1",
        ),
        ("redis://octavo@redis/0", "redis://octavo:$(REDIS_PASSWORD)@redis/0"),
    ],
)
def test_a_redis_elsewhere_gets_its_password_from_a_secret(url: str, expected: str) -> None:
    values = {"url": url, "passwordSecret": {"name": "redis", "key": "pw"}}
    manifests = render({"redis": {"external": values}})

    assert not any("octavo-redis" in name for name in manifests.names)
    for component in ("operator", "router"):
        given = environment(manifests.container(component))
        assert given["OCTAVO_REDIS_URL"] == expected
        assert given["REDIS_PASSWORD"] == secret_key("redis", "pw")


def test_a_redis_elsewhere_without_a_password() -> None:
    manifests = render({"redis": {"external": {"url": "redis://redis:6379"}}})
    given = environment(manifests.container("router"))
    assert given == {"OCTAVO_REDIS_URL": "redis://redis:6379"}


def test_the_whole_url_of_redis_may_be_a_secret() -> None:
    values = {"urlSecret": {"name": "redis", "key": "address"}}
    manifests = render({"redis": {"external": values}})

    assert not any("octavo-redis" in name for name in manifests.names)
    for component in ("operator", "router"):
        given = environment(manifests.container(component))
        assert given["OCTAVO_REDIS_URL"] == secret_key("redis", "address")


@pytest.mark.parametrize(
    ("switch", "gone"),
    [
        ({"rbac": {"create": False}}, "octavo-operator-lease"),
        ({"rbac": {"readNodes": False}}, "octavo-system-octavo-operator-nodes"),
        ({"rbac": {"aggregateToUserRoles": False}}, "octavo-system-octavo-edit"),
        ({"networkPolicy": {"enabled": False}}, "NetworkPolicy/"),
        ({"monitoring": {"alerts": False}}, "PrometheusRule/"),
        ({"monitoring": {"monitors": "never"}}, "Monitor/"),
    ],
)
def test_what_is_switched_off_is_not_there(switch: Object, gone: str) -> None:
    assert any(gone in name for name in render().names)
    assert not any(gone in name for name in render(switch).names)


def test_monitors_can_be_had_from_a_render_without_a_cluster() -> None:
    values = {"monitors": "always", "labels": {"release": "prometheus"}, "intervalSeconds": 30}
    manifests = render({"monitoring": values}, served=())

    monitors = [*manifests.of_kind("PodMonitor"), *manifests.of_kind("ServiceMonitor")]
    rules = manifests.of_kind("PrometheusRule")
    assert len(monitors) == 3
    assert len(rules) == 1
    assert all(each["metadata"]["labels"]["release"] == "prometheus" for each in monitors + rules)
    endpoints = [
        each["spec"].get("endpoints", each["spec"].get("podMetricsEndpoints")) for each in monitors
    ]
    assert all(each[0]["interval"] == "30s" for each in endpoints)


def test_the_dashboard_is_a_config_map_that_grafana_finds() -> None:
    manifests = render({"monitoring": {"dashboard": {"enabled": True}}})
    made = manifests.find("ConfigMap", "octavo-dashboard")
    assert made["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert set(made["data"]) == {"octavo.json"}


def test_replicas_are_told_by_the_labels_that_the_operator_gives_them() -> None:
    given = labels("model", "replica").items()
    monitor = render().find("PodMonitor", "octavo-replicas")
    policy = render().find("NetworkPolicy", "octavo-redis")
    [replicas] = [
        each for each in policy["spec"]["ingress"][0]["from"] if "namespaceSelector" in each
    ]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= given
    assert replicas["podSelector"]["matchLabels"].items() <= given
    [which] = replicas["podSelector"]["matchExpressions"]
    assert which["key"] == COMPONENT
    assert which["values"] == [REPLICA_COMPONENT, DOWNLOAD_COMPONENT], "both write to Redis"


def test_notes_name_the_namespaces_in_which_models_are_served() -> None:
    notes = render({"operator": {"namespaces": ["team-a"]}}).notes
    assert "kubectl -n team-a apply" in notes


def test_the_password_has_a_name_that_no_model_deployment_s_secret_can_have() -> None:
    """The operator owns the Secret `NAME-redis` of every ModelDeployment, in this namespace too."""
    [secret] = render().of_kind("Secret")
    assert not secret["metadata"]["name"].endswith(redis_secret(""))
