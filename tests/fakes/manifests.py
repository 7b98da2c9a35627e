"""ModelDeployment specs that are good, and specs that break exactly one rule each.

The typed models, the CRDs' CEL and a real API server are all held to this one table.
"""

from dataclasses import dataclass
from typing import Any

Spec = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Violation:
    """A spec with one thing wrong. path: where, as manifests say it. message: part of the error."""

    spec: Spec
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}-{self.message[:30]}"


def spec(source: str = "hf://org/name", /, **fields: Any) -> Spec:
    return {"model": {"source": source}, **fields}


def manifest(fields: Spec, name: str = "m", kind: str = "ModelDeployment") -> dict[str, Any]:
    return {
        "apiVersion": "octavo.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": fields,
    }


def with_model(**fields: Any) -> Spec:
    return {"model": fields}


_CLAIM: Spec = {"claim": {}}
_NODE_PATH: Spec = {"nodePath": {"path": "/var/models"}}

GOOD_SPECS: tuple[Spec, ...] = (
    spec("smollm2"),
    spec("smollm2", replicas=None, engine=None, cache={"claim": None}),
    spec("org/name", cache=_CLAIM),
    with_model(source="org/name", revision="v1"),
    with_model(source="hf://org/name", revision="v1", secretRef={"name": "a.b"}),
    spec("pvc://models"),
    spec("pvc://my.models/a..b/c"),
    spec("file:///models/x", cache={}),
    spec("s3://bucket/a", cache=_NODE_PATH),
    spec(servedNames=["a", "org/a:1"], image="registry:5000/octavo@sha256:00"),
    spec(replicas=0, autoscaling={"maxReplicas": 1}),
    spec(autoscaling={"minReplicas": 3, "maxReplicas": 3}),
    spec(engine={}, resources={}, podTemplate={}, routing={}, rollout={}, lora={}),
    spec(engine={"maxModelLen": 16}),
    spec(engine={"maxModelLen": 512, "blockSize": 512}),
    spec(engine={"extraArgs": ["--seed=1", "--hosts", "--portable", "--max-logprobs", "--host2"]}),
    spec(engine={"speculative": {"method": "ngram"}}),
    spec(engine={"speculative": {"method": "eagle", "model": "org/draft"}}),
    spec(resources={"gpu": {}}),
    spec(resources={"gpu": {"count": 0}}, engine={"tensorParallelSize": 4}),
    spec(resources={"gpu": {"count": 1}}),
    spec(
        resources={"gpu": {"count": 8}}, engine={"tensorParallelSize": 4, "pipelineParallelSize": 2}
    ),
    spec(resources={"cpu": 4, "memory": "1.5Gi", "sharedMemory": "500M"}),
    spec(lora={"maxCpuLoras": 8}),
    spec(rollout={"maxSurge": 0, "maxUnavailable": 1}),
    spec(rollout={"maxSurge": "0%", "maxUnavailable": "25%"}),
    spec(rollout={"maxSurge": "100%", "maxUnavailable": 0}),
    spec(adapters=[{"name": "a", "model": {"source": "oci://r/a"}}]),
    spec(podTemplate={"env": [{"name": "A", "value": "1"}], "tolerations": [{"anything": [1]}]}),
)

# Broken cross-field rules: said in CEL and in Python.
RULE_VIOLATIONS: tuple[Violation, ...] = (
    Violation(
        with_model(source="s3://b/x", revision="v1"), "spec.model.revision", "only hf:// sources"
    ),
    Violation(
        spec(adapters=[{"name": "a", "model": {"source": "oci://r/a", "revision": "1"}}]),
        "spec.adapters[0].model.revision",
        "only hf:// sources",
    ),
    Violation(spec("pvc://Models/x"), "spec.model.source", "write pvc://claim/path"),
    Violation(spec("pvc:///x"), "spec.model.source", "write pvc://claim/path"),
    Violation(spec("pvc://models/../x"), "spec.model.source", "leave .. out"),
    Violation(spec("file:///a/.."), "spec.model.source", "leave .. out"),
    Violation(spec("file://models/x"), "spec.model.source", "three slashes"),
    Violation(
        spec(autoscaling={"minReplicas": 3, "maxReplicas": 2}),
        "spec.autoscaling.maxReplicas",
        "at least minReplicas",
    ),
    Violation(
        spec(engine={"maxModelLen": 15}), "spec.engine.maxModelLen", "at least blockSize tokens"
    ),
    Violation(
        spec(engine={"extraArgs": ["--seed=1", "--served_model-name=x"]}),
        "spec.engine.extraArgs",
        "set by the platform",
    ),
    Violation(
        spec(engine={"extraArgs": ["--host", "0.0.0.0"]}),
        "spec.engine.extraArgs",
        "set by the platform",
    ),
    Violation(
        spec(engine={"speculative": {"method": "draft_model"}}),
        "spec.engine.speculative.model",
        "source of the proposing model",
    ),
    Violation(spec(lora={"maxCpuLoras": 7}), "spec.lora.maxCpuLoras", "maxCpuLoras >= maxLoras"),
    Violation(
        spec(rollout={"maxSurge": "0%"}), "spec.rollout.maxSurge", "no replica could ever be"
    ),
    Violation(
        spec(rollout={"maxSurge": 0, "maxUnavailable": "0%"}),
        "spec.rollout.maxSurge",
        "no replica could ever be",
    ),
    Violation(spec(cache={**_CLAIM, **_NODE_PATH}), "spec.cache.claim", "either nodePath or claim"),
    Violation(spec("pvc://m/x", cache=_CLAIM), "spec.cache", "leave the cache out"),
    Violation(spec("file:///m/x", cache=_NODE_PATH), "spec.cache", "leave the cache out"),
    Violation(
        spec(resources={"gpu": {"count": 2}}),
        "spec.resources.gpu.count",
        "tensorParallelSize x pipelineParallelSize",
    ),
    Violation(
        spec(resources={"gpu": {"count": 1}}, engine={"tensorParallelSize": 2}),
        "spec.resources.gpu.count",
        "tensorParallelSize x pipelineParallelSize",
    ),
)

# Wrong by itself: said by the schema's structure. Messages are the reader's own.
STRUCTURE_VIOLATIONS: tuple[Violation, ...] = (
    Violation({}, "spec.model", ""),
    Violation(spec("ftp://x"), "spec.model.source", ""),
    Violation(spec("a b"), "spec.model.source", ""),
    Violation(spec(replicas=-1), "spec.replicas", ""),
    Violation(spec(replicas="2"), "spec.replicas", ""),
    Violation(spec(paused="no"), "spec.paused", ""),
    Violation(spec(servedNames=["a", "a"]), "spec.servedNames", ""),
    Violation(spec(servedNames=["--a"]), "spec.servedNames[0]", ""),
    Violation(spec(engine={"dtype": "int3"}), "spec.engine.dtype", ""),
    Violation(spec(engine={"toolCallParser": "--host"}), "spec.engine.toolCallParser", ""),
    Violation(spec(lora={"maxLoraRank": 17}), "spec.lora.maxLoraRank", ""),
    Violation(spec(rollout={"maxSurge": "half"}), "spec.rollout.maxSurge", ""),
    Violation(spec(rollout={"maxSurge": -1}), "spec.rollout.maxSurge", ""),
    Violation(spec(rollout={"maxUnavailable": "101%"}), "spec.rollout.maxUnavailable", ""),
    Violation(spec(resources={"cpu": "four"}), "spec.resources.cpu", ""),
    Violation(spec(resources={"cpu": 0.5}), "spec.resources.cpu", ""),
    Violation(spec(resources={"cpu": -1}), "spec.resources.cpu", ""),
    Violation(spec(adapters=[{"name": "a", "model": {"source": "x"}}] * 2), "spec.adapters", ""),
    Violation(spec(podTemplate={"env": [{"value": "1"}]}), "spec.podTemplate.env", ""),
    Violation(
        spec(podTemplate={"volumes": [{"name": "a"}, {"name": "a"}]}),
        "spec.podTemplate.volumes",
        "",
    ),
    Violation(spec(podTemplate={"labels": {"a": 1}}), "spec.podTemplate.labels.a", ""),
)
