"""What the operator knows of one ModelDeployment when it decides: read before, never changed.

Kubernetes objects are plain dictionaries, as the API server gives them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from octavo_protocol.records import DownloadRecord, ReplicaRecord

KubernetesObject = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a model's config.json and index say, as far as memory goes.

    num_parameters: from the checkpoint's index where there is one, else estimated from the shapes.
    bytes_per_parameter: as stored. kv_bytes_per_token: keys and values of all layers, in the
    weights' dtype; 0 where no layer keeps all of them. lora_bytes_per_rank: of one adapter on all
    linear layers, 16-bit. max_model_len: tokens that the model was made for. is_encoder: it keeps
    no keys and values at all.
    """

    num_parameters: int
    bytes_per_parameter: float
    kv_bytes_per_token: int
    lora_bytes_per_rank: int
    max_model_len: int
    is_encoder: bool = False


@dataclass(frozen=True, slots=True)
class Recommendation:
    """How many replicas the numbers asked for at one moment."""

    time: datetime
    replicas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """One moment of one deployment.

    deployment: the ModelDeployment itself. children: every object with its label that it owns, the
    workload among them. pods: all with its label, of replicas and of downloads. adapters:
    LoraAdapters that target it. replicas: live records in Redis. is_fleet_known: Redis answered;
    else `replicas` is empty and says nothing. owners_of_names: for each served name that an older
    deployment claims, its `namespace/name`. owners_of_adapter_names: the same of
    adapters' names and deployments of any age, as routers know models before adapters.
    facts: None where the model's config could not be read.
    gpu_memory_mib: of one GPU, the largest that nodes with the deployment's node selector have;
    None where no node tells. served: `group/version/Kind` of what the API server serves; empty
    where that is not known. recommendations: `Desired.recommendations` of the last time.
    adapter_errors: for (replica id, adapter name), what the replica answered to the last attempt to
    load it. apply_errors: what the API server refused the last time, a sentence each. download:
    what the container that downloads a model said last; None where none does.
    """

    now: datetime
    deployment: KubernetesObject
    children: Sequence[KubernetesObject] = ()
    pods: Sequence[KubernetesObject] = ()
    adapters: Sequence[KubernetesObject] = ()
    replicas: Sequence[ReplicaRecord] = ()
    is_fleet_known: bool = True
    owners_of_names: Mapping[str, str] = field(default_factory=dict)
    owners_of_adapter_names: Mapping[str, str] = field(default_factory=dict)
    facts: ModelFacts | None = None
    gpu_memory_mib: int | None = None
    served: frozenset[str] = frozenset()
    recommendations: Sequence[Recommendation] = ()
    adapter_errors: Mapping[tuple[str, str], str] = field(default_factory=dict)
    apply_errors: tuple[str, ...] = ()
    download: DownloadRecord | None = None

    def child(self, kind: str, name: str) -> KubernetesObject | None:
        """The child of that kind and name, if it is there."""
        for each in self.children:
            if each["kind"] == kind and each["metadata"]["name"] == name:
                return each
        return None
