"""The containers' arguments and environment, read by the commands that will get them."""

import re
from pathlib import Path
from typing import Any

import pytest
from tests.unit.charts.chart import Manifests, Object, render

from octavo.cli.main import main
from octavo_operator.settings import OperatorSettings
from octavo_protocol.resources.pod_spec import PodTemplateSpec
from octavo_router.options import RouterOptions

SECRETS = {("octavo-redis-password", "password"): "pass", ("keys", "api-keys"): "first\nsecond\n"}
FIELDS = {"metadata.name": "pod-1", "metadata.namespace": "octavo-system"}
REDIS_URL = "redis://:pass@octavo-redis.octavo-system.svc:6379/0"


def environment(container: Object) -> dict[str, str]:
    """As the kubelet sets it."""
    made: dict[str, str] = {}
    for each in container["env"]:
        source = each.get("valueFrom", {})
        if "secretKeyRef" in source:
            reference = source["secretKeyRef"]
            made[each["name"]] = SECRETS[reference["name"], reference["key"]]
        elif "fieldRef" in source:
            made[each["name"]] = FIELDS[source["fieldRef"]["fieldPath"]]
        else:
            made[each["name"]] = expand(each["value"], made)
    return made


def expand(text: str, variables: dict[str, str]) -> str:
    return re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], text)


def start(container: Object, monkeypatch: pytest.MonkeyPatch, target: str) -> Any:
    """What the command of the container hands to `target`."""
    given: list[Any] = []
    monkeypatch.setattr(target, given.append)
    variables = environment(container)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        main([expand(each, variables) for each in container["args"]])
    assert ended.value.code == 0
    [settings] = given
    return settings


def start_operator(
    manifests: Manifests, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> OperatorSettings:
    container = manifests.container("operator")
    mounted = manifests.find("ConfigMap", "octavo-pod-defaults")["data"]
    for name, text in mounted.items():
        (folder / name).write_text(text)
    [mount] = [each for each in container["volumeMounts"] if each["name"] == "pod-defaults"]
    args = [each.replace(mount["mountPath"], str(folder)) for each in container["args"]]
    settings: OperatorSettings = start(
        {**container, "args": args}, monkeypatch, "octavo_operator.run.run_operator"
    )
    return settings


def test_the_operator_is_set_as_the_values_say(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    values: Object = {
        "imageRegistry": "registry.example.com",
        "operator": {
            "namespaces": ["team-a", "team-b"],
            "resyncSeconds": 60,
            "maxConcurrent": 3,
            "logLevel": "debug",
        },
        "runtime": {
            "image": {"pullPolicy": "Always"},
            "podDefaults": {"nodeSelector": {"gpu": "h200"}},
        },
    }
    assert start_operator(render(values), monkeypatch, tmp_path) == OperatorSettings(
        runtime_image="registry.example.com/octavo-runtime:0.1.0",
        batch_image="registry.example.com/octavo-router:0.1.0",
        redis_url=REDIS_URL,
        image_pull_policy="Always",
        router_url="http://octavo-router.octavo-system.svc",
        namespaces=("team-a", "team-b"),
        operator_namespace="octavo-system",
        identity="pod-1",
        resync_s=60,
        pod_defaults=PodTemplateSpec(node_selector={"gpu": "h200"}),
        max_concurrent=3,
        log_level="debug",
    )


def test_the_operator_s_defaults_are_the_chart_s(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert start_operator(render(), monkeypatch, tmp_path) == OperatorSettings(
        runtime_image="octavo-runtime:0.1.0",
        batch_image="octavo-router:0.1.0",
        redis_url=REDIS_URL,
        router_url="http://octavo-router.octavo-system.svc",
        identity="pod-1",
    )


def test_the_router_is_set_as_the_values_say(monkeypatch: pytest.MonkeyPatch) -> None:
    values: Object = {
        "operator": {"namespaces": ["team-a"]},
        "router": {
            "drainDelaySeconds": 4,
            "drainTimeoutSeconds": 40,
            "logLevel": "warning",
            "apiKeys": {"secretName": "keys"},
            "extraArgs": ["--max-attempts=2"],
        },
    }
    options = start(
        render(values).container("router"), monkeypatch, "octavo_router.server.run_router"
    )
    assert options == RouterOptions(
        redis_url=REDIS_URL,
        all_deployments=True,
        namespaces=("team-a",),
        host="::",
        port=8000,
        api_key=("first", "second"),
        drain_delay_s=4,
        drain_timeout_s=40,
        max_attempts=2,
        log_level="warning",
        disable_access_log_for_endpoints=("/health", "/ready", "/metrics"),
    )


def test_tenants_are_read_from_their_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    manifests = render({"router": {"tenants": {"secretName": "tenants"}}})
    container = manifests.container("router")
    options = start(container, monkeypatch, "octavo_router.server.run_router")
    [mount] = [each for each in container["volumeMounts"] if each["name"] == "tenants"]
    [volume] = [each for each in manifests.pod("router")["spec"]["volumes"] if "secret" in each]
    assert options.tenants == Path(mount["mountPath"])
    assert volume == {"name": "tenants", "secret": {"secretName": "tenants"}}


def test_files_lie_in_their_claim_or_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    manifests = render({"router": {"files": {"claimName": "batches"}}})
    container = manifests.container("router")
    options = start(container, monkeypatch, "octavo_router.server.run_router")
    [mount] = [each for each in container["volumeMounts"] if each["name"] == "files"]
    [volume] = [
        each for each in manifests.pod("router")["spec"]["volumes"] if "files" in each["name"]
    ]
    assert options.files_url == mount["mountPath"]
    assert volume["persistentVolumeClaim"] == {"claimName": "batches"}
    bucket = render({"router": {"files": {"url": "s3://b/p"}}}).container("router")
    assert "--files-url=s3://b/p" in bucket["args"]


def test_the_ports_are_those_on_which_the_containers_listen() -> None:
    manifests = render()
    for component, flag in (("operator", "--health-port"), ("router", "--port")):
        container = manifests.container(component)
        [port] = container["ports"]
        assert f"{flag}={port['containerPort']}" in container["args"]


def test_the_configuration_of_redis_is_one_setting_a_line() -> None:
    text = render().find("ConfigMap", "octavo-redis")["data"]["redis.conf"]
    settings = dict(line.split(maxsplit=1) for line in text.splitlines())
    assert settings["appendonly"] == "yes"
    # Full, Redis is to forget what is cached where, and not to refuse replicas' signs of life.
    assert settings["maxmemory-policy"] == "volatile-lru"
    assert settings["port"] == str(render().container("redis")["ports"][0]["containerPort"])
    assert settings["maxmemory"] == "384mb"
