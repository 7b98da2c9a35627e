"""ModelDeployment: a model that is served by replicas. What `octavo up` runs and Kubernetes gets.

Field names are camelCase in manifests and snake_case in Python. Every description gives unit,
default and effect; the CRD is generated from here (`crd.py`).
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from octavo_protocol.errors import ConfigError
from octavo_protocol.resources.base import ResourceModel, Rule, field_errors, invalid
from octavo_protocol.resources.engine_spec import EngineSpec
from octavo_protocol.resources.metadata import Metadata
from octavo_protocol.resources.model_source import ModelSource
from octavo_protocol.resources.pod_spec import ModelCacheSpec, PodTemplateSpec, ResourcesSpec
from octavo_protocol.resources.scalars import IntOrPercent, KeyedBy, NoDuplicates, ServedName

RoutingPolicyName = Literal[
    "expected-ttft",
    "least-load",
    "power-of-two",
    "prefix-hash",
    "round-robin",
    "session-affinity",
]


class AutoscalingSpec(ResourceModel):
    """The operator sets the number of replicas; `replicas` is where it starts, and 0 stops it."""

    min_replicas: Annotated[
        int, Field(ge=1, le=1000, description="Never fewer replicas. Default 1.")
    ] = 1
    max_replicas: Annotated[int, Field(ge=1, le=1000, description="Never more replicas.")]
    target_queue_seconds: Annotated[
        int,
        Field(
            ge=1,
            le=3600,
            description="Scale up when the prompt tokens that wait would take the replicas longer "
            "than this to compute, in seconds. Default 2.",
        ),
    ] = 2
    target_utilization_percent: Annotated[
        int,
        Field(
            ge=1,
            le=100,
            description="Share of KV cache and of sequence slots in use that is aimed at, in "
            "percent. Default 70.",
        ),
    ] = 70
    scale_up_window_seconds: Annotated[
        int,
        Field(
            ge=0,
            le=3600,
            description="How long more replicas must be wanted before they are made. Default 10.",
        ),
    ] = 10
    scale_down_window_seconds: Annotated[
        int,
        Field(
            ge=0,
            le=86400,
            description="The highest number wanted in this time is kept, in seconds. Default 300.",
        ),
    ] = 300

    rules = (
        Rule(
            "self.minReplicas <= self.maxReplicas",
            lambda self: self.min_replicas <= self.max_replicas,
            "maxReplicas",
            "maxReplicas must be at least minReplicas",
        ),
    )


class AdapterSpec(ResourceModel):
    name: Annotated[
        ServedName,
        Field(description="Model name of the adapter in the API, unique in the cluster."),
    ]
    model: Annotated[ModelSource, Field(description="Where the adapter's files come from.")]


class LoraSpec(ResourceModel):
    max_loras: Annotated[
        int, Field(ge=1, le=4096, description="Adapters in one batch. Default 8.")
    ] = 8
    max_lora_rank: Annotated[
        Literal[8, 16, 32, 64, 128, 256],
        Field(description="Largest rank of an adapter; memory is set aside for it. Default 16."),
    ] = 16
    max_cpu_loras: Annotated[
        int | None,
        Field(ge=1, description="Adapters kept in host memory. Default: maxLoras."),
    ] = None

    rules = (
        Rule(
            "!has(self.maxCpuLoras) || self.maxCpuLoras >= self.maxLoras",
            lambda self: self.max_cpu_loras is None or self.max_cpu_loras >= self.max_loras,
            "maxCpuLoras",
            "host memory must hold at least the adapters of one batch: maxCpuLoras >= maxLoras",
        ),
    )


class RoutingSpec(ResourceModel):
    policy: Annotated[
        RoutingPolicyName,
        Field(
            description="How the router picks a replica: by expected time to first token, which "
            "knows cached prefixes (expected-ttft); by load, of all (least-load) or of two drawn "
            "at random (power-of-two); by a hash of the prompt's beginning (prefix-hash) or of the "
            "session (session-affinity), both within a bound on load; or in turn (round-robin). "
            "Default expected-ttft."
        ),
    ] = "expected-ttft"


class RolloutSpec(ResourceModel):
    max_surge: Annotated[
        IntOrPercent,
        Field(description="Replicas above the wanted number while updating. Default 1."),
    ] = 1
    max_unavailable: Annotated[
        IntOrPercent,
        Field(description="Replicas below the wanted number while updating. Default 0."),
    ] = 0
    drain_seconds: Annotated[
        int,
        Field(
            ge=0,
            le=86400,
            description="How long a replica that stops may finish its requests, in seconds. "
            "Default 300.",
        ),
    ] = 300
    start_seconds: Annotated[
        int,
        Field(
            ge=10,
            le=86400,
            description="How long a replica may take to fetch and load its model before it is "
            "started again, in seconds. Default 1800.",
        ),
    ] = 1800

    rules = (
        Rule(
            "!((self.maxSurge == 0 || self.maxSurge == '0%') && "
            "(self.maxUnavailable == 0 || self.maxUnavailable == '0%'))",
            lambda self: not (_is_zero(self.max_surge) and _is_zero(self.max_unavailable)),
            "maxSurge",
            "maxSurge and maxUnavailable cannot both be 0: no replica could ever be replaced",
        ),
    )


def _is_zero(value: int | str) -> bool:
    return value in (0, "0%")


class ModelDeploymentSpec(ResourceModel):
    model: Annotated[ModelSource, Field(description="The model that is served.")]
    served_names: Annotated[
        list[ServedName],
        NoDuplicates(),
        Field(
            max_length=32,
            description="Model names in the API, unique in the cluster. Default: the "
            "deployment's name.",
        ),
    ] = []
    replicas: Annotated[
        int,
        Field(
            ge=0,
            le=1000,
            description="Copies of the model; with autoscaling, how many there are at first. "
            "0: none, with autoscaling too. Default 1.",
        ),
    ] = 1
    autoscaling: Annotated[
        AutoscalingSpec | None,
        Field(description="Bounds between which the operator scales. Default: none."),
    ] = None
    engine: Annotated[EngineSpec, Field(description="Settings of each replica's engine.")] = (
        EngineSpec()
    )
    lora: Annotated[
        LoraSpec | None,
        Field(description="Room for LoRA adapters. Default: none, or 8 where adapters are given."),
    ] = None
    adapters: Annotated[
        list[AdapterSpec],
        KeyedBy("name"),
        Field(
            max_length=512,
            description="LoRA adapters served beside the model. LoraAdapter resources add more. "
            "Default: none.",
        ),
    ] = []
    image: Annotated[
        str | None,
        Field(
            pattern=r"^\S+$",
            max_length=1024,
            description="Image of the replicas. Default: the operator's setting.",
        ),
    ] = None
    resources: Annotated[ResourcesSpec, Field(description="What each replica asks for.")] = (
        ResourcesSpec()
    )
    pod_template: Annotated[
        PodTemplateSpec, Field(description="Laid over the pods that the operator plans.")
    ] = PodTemplateSpec()
    cache: Annotated[
        ModelCacheSpec,
        Field(description="Where fetched models stay. Default: each pod fetches for itself."),
    ] = ModelCacheSpec()
    routing: Annotated[RoutingSpec, Field(description="How requests find replicas.")] = (
        RoutingSpec()
    )
    rollout: Annotated[RolloutSpec, Field(description="How replicas are replaced.")] = RolloutSpec()
    paused: Annotated[
        bool,
        Field(
            description="true: the operator changes nothing until it is false again; what runs "
            "goes on. Default false."
        ),
    ] = False

    rules = (
        Rule(
            "!has(self.cache) || !(has(self.cache.nodePath) || has(self.cache.claim)) || "
            "!(self.model.source.startsWith('pvc://') || self.model.source.startsWith('file://'))",
            lambda self: (
                (self.cache.node_path is None and self.cache.claim is None)
                or self.model.scheme not in ("pvc", "file")
            ),
            "cache",
            "pvc:// and file:// models are already in the cluster; leave the cache out",
        ),
        Rule(
            "!has(self.resources) || !has(self.resources.gpu) || "
            "!has(self.resources.gpu.count) || self.resources.gpu.count == 0 || "
            "self.resources.gpu.count == (has(self.engine) ? "
            "self.engine.tensorParallelSize * self.engine.pipelineParallelSize : 1)",
            lambda self: self.resources.gpu.count in (None, 0, self.engine.num_gpus),
            "resources.gpu.count",
            "the GPUs must be tensorParallelSize x pipelineParallelSize, or 0 for the CPU; leave "
            "the count out to have it so",
        ),
    )

    @property
    def num_gpus(self) -> int:
        """GPUs of each replica; 0 on a CPU."""
        count = self.resources.gpu.count
        return self.engine.num_gpus if count is None else count

    @property
    def lora_room(self) -> LoraSpec | None:
        """Room for adapters that each replica has; None: it takes none."""
        return self.lora or (LoraSpec() if self.adapters else None)


def lora_flags(room: LoraSpec | None) -> list[str]:
    """The flags of `octavo serve` that make `room`."""
    if room is None:
        return []
    flags = ["--enable-lora", "--max-loras", str(room.max_loras)]
    flags += ["--max-lora-rank", str(room.max_lora_rank)]
    if room.max_cpu_loras is not None:
        flags += ["--max-cpu-loras", str(room.max_cpu_loras)]
    return flags


class ModelDeployment(ResourceModel):
    """A large language model, served by replicas behind an OpenAI-compatible API."""

    api_version: Literal["octavo.dev/v1alpha1"]
    kind: Literal["ModelDeployment"]
    metadata: Metadata
    spec: ModelDeploymentSpec

    @model_validator(mode="after")
    def _default_served_name(self) -> "ModelDeployment":
        if not self.spec.served_names:
            self.spec.served_names = [self.metadata.name]
        return self


def parse_manifest(document: Any) -> ModelDeployment:
    """One parsed YAML document as a ModelDeployment. Raises `ConfigError` with the field's path."""
    try:
        return ModelDeployment.model_validate(document, strict=True)
    except ValidationError as error:
        raise invalid("the manifest", list(field_errors(error))) from error


def load_manifest(path: Path) -> ModelDeployment:
    """The single ModelDeployment in a YAML file. Raises `ConfigError`."""
    try:
        documents = [d for d in yaml.safe_load_all(path.read_text(encoding="utf-8")) if d]
    except OSError as error:
        raise ConfigError(f"cannot read the manifest {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if len(documents) != 1:
        raise ConfigError(f"{path} must hold one document, it holds {len(documents)}")
    return parse_manifest(documents[0])
