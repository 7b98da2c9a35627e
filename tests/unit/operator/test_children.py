"""Manifests: what changes pods and what must not."""

import copy
from typing import Any

import pytest
from tests.fakes.observations import NAME, SETTINGS, deployment, observe

from octavo.cli.serve_flags import GROUPS
from octavo.cli.vllm_flags import VLLM_FLAGS
from octavo_operator import names
from octavo_operator.children.pod_template import laid_over
from octavo_operator.children.quantity import amount, canonical
from octavo_operator.decide import decide
from octavo_operator.desired import Manifest
from octavo_operator.settings import OperatorSettings
from octavo_protocol.resources.pod_spec import PodTemplateSpec


def children(
    resource: Manifest, settings: OperatorSettings = SETTINGS, **fields: Any
) -> dict[str, Manifest]:
    made = decide(observe(resource, **fields), settings).children
    assert made is not None
    return {child["kind"]: child for child in made}


def pod(resource: Manifest, settings: OperatorSettings = SETTINGS) -> Manifest:
    spec: Manifest = children(resource, settings)["Deployment"]["spec"]["template"]["spec"]
    return spec


def download(resource: Manifest) -> Manifest:
    """The pod of the download Job."""
    spec: Manifest = children(resource)["Job"]["spec"]["template"]["spec"]
    return spec


def settled_on_claim(resource: Manifest) -> Manifest:
    """The pod template of the replicas once the model is downloaded."""
    ended = {"conditions": [{"type": "Complete", "status": "True"}]}
    job = children(resource)["Job"] | {"status": ended}
    made: Manifest = children(resource, children=[job])["Deployment"]["spec"]["template"]
    return made


def engine(resource: Manifest, settings: OperatorSettings = SETTINGS) -> Manifest:
    container: Manifest = pod(resource, settings)["containers"][0]
    return container


def template(resource: Manifest) -> Manifest:
    made: Manifest = children(resource)["Deployment"]["spec"]["template"]
    return made


def test_number_of_replicas_metadata_and_adapters_leave_the_pod_template_as_it_is() -> None:
    plain = template(deployment(lora={}))
    scaled = deployment(lora={}, replicas=7)
    labelled = deployment(lora={})
    labelled["metadata"] |= {"labels": {"team": "x"}, "annotations": {"note": "y"}}
    routed = deployment(lora={}, routing={"policy": "least-load"})
    adapter = {"name": "sql", "model": {"source": "hf://a/sql"}}
    adapted = deployment(lora={}, adapters=[adapter])

    assert [template(each) for each in (scaled, labelled, routed, adapted)] == [plain] * 4


def test_what_replicas_run_with_changes_the_template_and_its_hash() -> None:
    def hash_of(resource: Manifest) -> str:
        label: str = template(resource)["metadata"]["labels"][names.TEMPLATE_HASH]
        return label

    changed = [
        deployment(),
        deployment("hf://a/b"),
        deployment(servedNames=["x"]),
        deployment(engine={"maxNumSeqs": 8}),
        deployment(image="other:2"),
        deployment(rollout={"drainSeconds": 9}),
        deployment(podTemplate={"annotations": {"a": "b"}}),
        deployment(lora={"maxLoras": 2}),
    ]

    assert len({hash_of(each) for each in changed}) == len(changed)


def test_equal_specs_give_equal_manifests_whatever_the_order_of_keys() -> None:
    resource = deployment(replicas=2, engine={"maxNumSeqs": 8, "dtype": "float32"})
    turned = copy.deepcopy(resource)
    turned["spec"] = dict(reversed(turned["spec"].items()))
    turned["spec"]["engine"] = dict(reversed(turned["spec"]["engine"].items()))

    assert children(turned) == children(resource)


def test_a_redis_url_with_another_password_replaces_the_pods_but_is_not_to_be_read_from_them() -> (
    None
):
    other = OperatorSettings(runtime_image="octavo-runtime:test", redis_url="redis://:new@redis")
    made = children(deployment(), other)["Deployment"]

    assert made["spec"]["template"] != template(deployment())
    assert "new" not in str(made)
    assert made["spec"]["template"]["spec"]["containers"][0]["env"][2] == {
        "name": "OCTAVO_REDIS_URL",
        "valueFrom": {"secretKeyRef": {"name": f"{NAME}-redis", "key": "url"}},
    }


def test_names_and_sources_are_not_expanded_by_kubernetes() -> None:
    args = engine(deployment("hf://org/$(HOME)", servedNames=["a$b"]))["args"]

    assert "hf://org/$$(HOME)" in args
    assert "a$$b" in args
    assert "$(POD_NAME)" in args


def test_drain_and_start_times_reach_probes_and_grace() -> None:
    made = deployment(rollout={"drainSeconds": 60, "startSeconds": 61})
    startup = engine(made)["startupProbe"]

    assert pod(made)["terminationGracePeriodSeconds"] == 90
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 61
    assert startup["httpGet"]["path"] == "/ready"
    assert engine(made)["livenessProbe"]["httpGet"]["path"] == "/health"


def test_a_pod_has_no_rights_and_no_way_to_get_them() -> None:
    made, container = pod(deployment()), engine(deployment())

    assert made["securityContext"]["runAsNonRoot"] is True
    assert made["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert made["automountServiceAccountToken"] is False
    assert made["enableServiceLinks"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_gpus_are_requested_limited_tolerated_and_get_shared_memory() -> None:
    resource = deployment(engine={"tensorParallelSize": 4}, resources={"memory": "65536Mi"})
    asked = {"memory": "64Gi", "nvidia.com/gpu": "4"}

    assert engine(resource)["resources"] == {"requests": {"cpu": "1", **asked}, "limits": asked}
    assert "--tensor-parallel-size 4" in " ".join(engine(resource)["args"])
    assert pod(resource)["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    ]
    assert {
        "name": "shared-memory",
        "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"},
    } in pod(resource)["volumes"]


def test_a_download_runs_where_the_replicas_can() -> None:
    """A claim of late binding is bound to the first node that it is used on."""
    made = download(deployment(cache={"claim": {}}, resources={}))

    assert made["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    ]
    assert "affinity" not in made


def test_a_claim_for_one_node_keeps_replicas_and_downloads_on_it() -> None:
    resource = deployment(cache={"claim": {"accessMode": "ReadWriteOnce"}})
    served = settled_on_claim(resource)
    labels = {names.DEPLOYMENT: NAME}
    near = {
        "topologyKey": "kubernetes.io/hostname",
        "labelSelector": {"matchLabels": labels},
    }
    together = {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [near]}}

    assert download(resource)["affinity"] == together
    assert served["spec"]["affinity"] == together
    assert served["metadata"]["labels"].items() >= labels.items()


def test_on_a_cpu_the_threads_are_the_cores_asked_for() -> None:
    args = engine(deployment(resources={"gpu": {"count": 0}, "cpu": "3500m"}))["args"]

    assert args[args.index("--device") + 1] == "cpu"
    assert args[args.index("--threads") + 1] == "3"


@pytest.mark.parametrize(
    ("spec", "path", "volume"),
    [
        ({}, "smollm2", {"name": "cache", "emptyDir": {}}),
        (
            {"cache": {"nodePath": {"path": "/var/models"}}},
            "smollm2",
            {"name": "cache", "hostPath": {"path": "/var/models", "type": "DirectoryOrCreate"}},
        ),
        (
            {"model": {"source": "pvc://weights/llama/8b"}},
            "/models/llama/8b",
            {
                "name": "models",
                "persistentVolumeClaim": {"claimName": "weights", "readOnly": True},
            },
        ),
        (
            {"model": {"source": "pvc://weights/"}},
            "/models",
            {
                "name": "models",
                "persistentVolumeClaim": {"claimName": "weights", "readOnly": True},
            },
        ),
        (
            {"model": {"source": "file:///models/a"}},
            "file:///models/a",
            {"name": "tmp", "emptyDir": {}},
        ),
    ],
)
def test_where_the_model_comes_from(spec: Manifest, path: str, volume: Manifest) -> None:
    resource = deployment(**spec)

    assert engine(resource)["args"][:2] == ["serve", path]
    assert volume in pod(resource)["volumes"]


def test_a_pinned_revision_is_served() -> None:
    args = engine(deployment(model={"source": "hf://a/b", "revision": "v1"}))["args"]

    assert args[:4] == ["serve", "hf://a/b", "--revision", "v1"]


def test_secrets_of_model_and_adapters_become_environment() -> None:
    source = {"source": "hf://a/b", "secretRef": {"name": "token"}}
    adapter = {"source": "s3://x/y", "secretRef": {"name": "bucket"}}
    resource = deployment(model=source, adapters=[{"name": "sql", "model": adapter}])

    assert engine(resource)["envFrom"] == [
        {"secretRef": {"name": "token"}},
        {"secretRef": {"name": "bucket"}},
    ]


def test_a_surge_may_be_a_number_or_a_percentage() -> None:
    strategy = children(deployment(rollout={"maxSurge": "25%", "maxUnavailable": 2}))["Deployment"][
        "spec"
    ]["strategy"]["rollingUpdate"]

    assert strategy == {"maxSurge": "25%", "maxUnavailable": 2}


@pytest.mark.parametrize(
    ("served", "version"),
    [
        (frozenset(), "policy/v1"),
        (frozenset({"policy/v1/PodDisruptionBudget"}), "policy/v1"),
        (frozenset({"policy/v1beta1/PodDisruptionBudget"}), "policy/v1beta1"),
        (frozenset({"apps/v1/Deployment"}), None),
    ],
)
def test_disruption_budget_is_of_the_version_that_is_served(
    served: frozenset[str], version: str | None
) -> None:
    made = children(deployment(replicas=2), served=served).get("PodDisruptionBudget")

    assert (made or {}).get("apiVersion") == version


def test_replicas_that_are_not_ready_do_not_keep_a_node_from_being_drained() -> None:
    def policy(version: str) -> str | None:
        served = frozenset({f"{version}/PodDisruptionBudget"})
        budget = children(deployment(replicas=2), served=served)["PodDisruptionBudget"]
        found: str | None = budget["spec"].get("unhealthyPodEvictionPolicy")
        return found

    assert policy("policy/v1") == "AlwaysAllow"
    assert policy("policy/v1beta1") is None, "it has no such field"


def test_one_replica_needs_no_disruption_budget() -> None:
    assert "PodDisruptionBudget" not in children(deployment())


def test_the_operators_defaults_lie_under_the_deployments_template() -> None:
    below = PodTemplateSpec(
        labels={"a": "1", "b": "1"},
        env=[{"name": "A", "value": "1"}, {"name": "B", "value": "1"}],
        tolerations=[{"key": "x"}],
        runtime_class_name="nvidia",
        affinity={"nodeAffinity": {}},
        volumes=[{"name": "v", "emptyDir": {}}],
    )
    above = PodTemplateSpec(
        labels={"b": "2"},
        env=[{"name": "B", "value": "2"}],
        tolerations=[{"key": "y"}, {"key": "x"}],
        affinity={"podAffinity": {}},
        volumes=[{"name": "w", "emptyDir": {}}],
    )
    merged = laid_over(below, above)

    assert merged.labels == {"a": "1", "b": "2"}
    assert merged.env == [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]
    assert merged.tolerations == [{"key": "x"}, {"key": "y"}]
    assert merged.runtime_class_name == "nvidia"
    assert merged.affinity == {"podAffinity": {}}
    assert [each["name"] for each in merged.volumes] == ["v", "w"]


def test_pod_template_reaches_replicas_but_cannot_take_our_labels() -> None:
    settings = OperatorSettings(
        runtime_image="r:1",
        redis_url="redis://r",
        pod_defaults=PodTemplateSpec(env=[{"name": "A", "value": "1"}]),
    )
    overlay = {
        "labels": {names.DEPLOYMENT: "other", "team": "x"},
        "env": [{"name": "B", "value": "2"}, {"name": "POD_IP", "value": "10.0.0.1"}],
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone"}],
        "resourceClaims": [{"name": "gpu", "resourceClaimName": "g"}],
    }
    resource = deployment(podTemplate=overlay)
    made = children(resource, settings)["Deployment"]["spec"]["template"]

    assert made["metadata"]["labels"][names.DEPLOYMENT] == NAME
    assert made["metadata"]["labels"]["team"] == "x"
    assert [(e["name"], e.get("value")) for e in engine(resource, settings)["env"]] == [
        ("POD_NAME", None),
        ("POD_IP", "10.0.0.1"),
        ("OCTAVO_REDIS_URL", None),
        ("A", "1"),
        ("B", "2"),
    ]
    assert made["spec"]["topologySpreadConstraints"][0]["labelSelector"] == {
        "matchLabels": names.selector(NAME)
    }
    assert engine(resource, settings)["resources"]["claims"] == [{"name": "gpu"}]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        *[("1000m", "1"), ("0.5", "500m"), ("1500m", "1500m"), ("1.5", "1500m"), ("0", "0")],
        *[("1024Mi", "1Gi"), ("1.5Gi", "1536Mi"), ("1000", "1k"), ("4", "4"), ("0.5Ki", "512")],
        *[("1000M", "1G"), ("64Gi", "64Gi"), ("0.0001", "1m"), ("2048Pi", "2Ei")],
    ],
)
def test_quantities_are_written_as_the_api_server_writes_them(written: str, expected: str) -> None:
    assert canonical(written) == expected


def test_what_is_no_quantity_is_refused() -> None:
    with pytest.raises(ValueError, match="'4 GB' is not a quantity"):
        amount("4 GB")


def test_every_flag_of_a_replica_is_one_that_the_runtime_answers() -> None:
    """Those that it lacks still end the pod with a sentence that says what to do."""
    resource = deployment(
        engine={
            "tensorParallelSize": 2,
            "pipelineParallelSize": 2,
            "maxModelLen": 64,
            "maxNumSeqs": 4,
            "maxNumBatchedTokens": 64,
            "gpuMemoryPercent": 50,
            "kvCacheMemoryMib": 64,
            "kvCacheDtype": "fp8",
            "kvOffloadMib": 64,
            "quantization": "fp8",
            "speculative": {"method": "ngram"},
            "toolCallParser": "hermes",
            "reasoningParser": "qwen3",
            "enablePrefixCaching": False,
        },
        resources={"cpu": 4},
        lora={"maxCpuLoras": 9},
    )
    flags = {word for word in engine(resource)["args"] if word.startswith("--")}
    own = {"--" + each.name.replace("_", "-") for group in GROUPS.values() for each in group}
    known = own | {f"--no-{each[2:]}" for each in own} | set(VLLM_FLAGS)

    assert len(flags) > 20
    assert flags <= known
