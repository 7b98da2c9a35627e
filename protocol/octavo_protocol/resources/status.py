"""Status of the resources as the operator writes it: conditions and what goes with them."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from octavo_protocol.resources.base import ResourceModel
from octavo_protocol.resources.scalars import KeyedBy


class ConditionType(StrEnum):
    """Conditions of a ModelDeployment. Absent: not looked at yet, or nothing to say.

    READY sums up: a replica takes traffic, and by the names of the spec; its reason tells when that
    is of an older spec. VALID: the spec can be planned; False names the field. PROGRESSING:
    replicas are being made, replaced or removed. DEGRADED: something fails: pods, the download,
    or what the API server refuses.
    MODEL_CACHED: the claim holds the model; only with `cache.claim`. FITS: weights and KV cache
    fit the GPU memory asked for; absent where the model's config cannot be read.
    ADAPTERS_LOADED: every adapter is where its policy wants it; only with adapters.
    SCALED: the autoscaler's last decision; only with `autoscaling`.
    REGISTERED: the router knows it.
    """

    READY = "Ready"
    VALID = "Valid"
    PROGRESSING = "Progressing"
    DEGRADED = "Degraded"
    MODEL_CACHED = "ModelCached"
    FITS = "Fits"
    ADAPTERS_LOADED = "AdaptersLoaded"
    SCALED = "Scaled"
    REGISTERED = "Registered"


class Condition(ResourceModel):
    """One condition, as the Kubernetes API conventions describe it."""

    type: Annotated[str, Field(description="What it is about, as `Ready`.")]
    status: Annotated[
        Literal["True", "False", "Unknown"], Field(description="Whether it holds now.")
    ]
    reason: Annotated[str, Field(description="One CamelCase word for programs.")]
    message: Annotated[str, Field(description="A sentence for people, with names and numbers.")]
    observed_generation: Annotated[
        int, Field(description="Generation of the spec that this was seen for.")
    ]
    last_transition_time: Annotated[
        datetime, Field(description="When `status` last became what it is.")
    ]


Conditions = Annotated[
    list[Condition],
    KeyedBy("type"),
    Field(description="What holds and what does not, with reasons; Ready sums up."),
]


class CapacityStatus(ResourceModel):
    """What all ready replicas together can hold."""

    tokens: Annotated[int, Field(description="Tokens of KV cache.")]
    sequences: Annotated[int, Field(description="Sequences that run at once.")]


class ScalingDecision(ResourceModel):
    """The last change of the number of replicas that autoscaling made."""

    time: Annotated[datetime, Field(description="When it was made.")]
    from_replicas: Annotated[int, Field(description="Replicas wanted before.")]
    to_replicas: Annotated[int, Field(description="Replicas wanted since.")]
    reason: Annotated[str, Field(description="The numbers that led to it.")]


class ReplicaStatus(ResourceModel):
    """One pod, as far as its owner wants to know."""

    name: Annotated[str, Field(description="The pod.")]
    stage: Annotated[
        str, Field(description="`Pending`, `Loading`, `Ready`, `Draining` or `Failed`.")
    ]
    message: Annotated[str | None, Field(description="What it waits for or failed with.")] = None


class ModelDeploymentStatus(ResourceModel):
    observed_generation: Annotated[
        int | None, Field(description="Generation of the spec that this status is about.")
    ] = None
    replicas: Annotated[int, Field(description="Pods there are.")] = 0
    desired_replicas: Annotated[int, Field(description="Pods wanted.")] = 0
    ready_replicas: Annotated[int, Field(description="Replicas that take traffic.")] = 0
    updated_replicas: Annotated[int, Field(description="Pods of the current spec.")] = 0
    selector: Annotated[str, Field(description="Label selector of the pods, for scaling.")] = ""
    endpoint: Annotated[
        str | None, Field(description="Base URL of the API in the cluster: the router's.")
    ] = None
    capacity: Annotated[
        CapacityStatus | None, Field(description="What all ready replicas together can hold.")
    ] = None
    last_scaling: Annotated[
        ScalingDecision | None, Field(description="The autoscaler's last change; none without it.")
    ] = None
    pods: Annotated[
        list[ReplicaStatus],
        Field(max_length=20, description="Pods that are not simply ready, at most 20."),
    ] = []
    conditions: Conditions = []


class AdapterReplicaStatus(ResourceModel):
    """One replica's word on one adapter."""

    name: Annotated[str, Field(description="The replica.")]
    loaded: Annotated[bool, Field(description="Whether requests for it are answered there.")]
    version: Annotated[
        str | None, Field(description="Names the files that it answers with; others, another one.")
    ] = None
    message: Annotated[
        str | None, Field(description="Why it is not loaded, or not from the source of the spec.")
    ] = None


class LoraAdapterStatus(ResourceModel):
    observed_generation: Annotated[
        int | None, Field(description="Generation of the spec that this status is about.")
    ] = None
    loaded_replicas: Annotated[int, Field(description="Replicas that hold it.")] = 0
    updated_replicas: Annotated[
        int, Field(description="Replicas that hold it from the source of the spec.")
    ] = 0
    replicas: Annotated[
        list[AdapterReplicaStatus],
        Field(max_length=100, description="Each replica's word on it, at most 100."),
    ] = []
    conditions: Conditions = []


class BatchPhase(StrEnum):
    """A BatchJob at a glance; its conditions say why."""

    PENDING = "Pending"
    RUNNING = "Running"
    COMPLETE = "Complete"
    FAILED = "Failed"


class BatchConditionType(StrEnum):
    """Conditions of a BatchJob. The operator sets all four, and changes none after the end.

    ACCEPTED: the spec can be planned, and its Job is there; False names the field, or has the API
    server's words. RUNNING: the platform works on its batch; False says what it waits for.
    COMPLETE: every line has its answer or its error, and both files are written. FAILED: it will
    not complete.
    """

    ACCEPTED = "Accepted"
    RUNNING = "Running"
    COMPLETE = "Complete"
    FAILED = "Failed"


class BatchCounts(ResourceModel):
    """Lines of the input."""

    total: Annotated[int, Field(description="All of them; 0 until the platform has read them.")] = 0
    completed: Annotated[int, Field(description="Lines that have their answer.")] = 0
    failed: Annotated[int, Field(description="Lines that have an error.")] = 0


class BatchJobStatus(ResourceModel):
    observed_generation: Annotated[
        int | None, Field(description="Generation of the spec that this status is about.")
    ] = None
    phase: Annotated[
        str | None, Field(description="`Pending`, `Running`, `Complete` or `Failed`.")
    ] = None
    batch_id: Annotated[str | None, Field(description="The batch of the platform.")] = None
    counts: Annotated[BatchCounts, Field(description="How far it is, in lines.")] = BatchCounts()
    progress_percent: Annotated[int, Field(description="Share of lines that have a result.")] = 0
    estimated_completion_at: Annotated[
        datetime | None, Field(description="When it should end at its speed so far.")
    ] = None
    started_at: Annotated[
        datetime | None, Field(description="When the platform began with it.")
    ] = None
    completed_at: Annotated[datetime | None, Field(description="When it ended.")] = None
    output_url: Annotated[str | None, Field(description="Where the answers are.")] = None
    errors_url: Annotated[
        str | None, Field(description="Where the requests that failed are, if some did.")
    ] = None
    conditions: Conditions = []
