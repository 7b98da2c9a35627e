"""What the pods of a deployment ask for, and what their owner lays over them."""

from typing import Annotated, Literal

from pydantic import Field

from octavo_protocol.resources.base import ResourceModel, Rule
from octavo_protocol.resources.scalars import KeyedBy, KubernetesObject, ObjectName, Quantity


class GpuSpec(ResourceModel):
    count: Annotated[
        int | None,
        Field(
            ge=0,
            le=64,
            description="GPUs of each replica; 0 runs on the CPU. Default: tensorParallelSize x "
            "pipelineParallelSize.",
        ),
    ] = None
    resource_name: Annotated[
        str,
        Field(
            pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$",
            max_length=253,
            description="Extended resource that the nodes count GPUs as. Default nvidia.com/gpu.",
        ),
    ] = "nvidia.com/gpu"


class ResourcesSpec(ResourceModel):
    gpu: Annotated[GpuSpec, Field(description="GPUs of each replica.")] = GpuSpec()
    cpu: Annotated[
        Quantity | None, Field(description="Cores requested (`500m`, `8`). Default: 1.")
    ] = None
    memory: Annotated[
        Quantity | None,
        Field(description="Host memory, requested and limited (`32Gi`). Default: no limit."),
    ] = None
    shared_memory: Annotated[
        Quantity | None,
        Field(
            description="Size of /dev/shm, which tensor-parallel processes talk through. Default: "
            "1Gi with several GPUs, else the node's."
        ),
    ] = None


class PodTemplateSpec(ResourceModel):
    """Laid over the pods that the operator plans. Lists are added to; equal keys win here."""

    labels: Annotated[
        dict[str, str], Field(description="Further labels of the pods. Default: none.")
    ] = {}
    annotations: Annotated[
        dict[str, str], Field(description="Annotations of the pods. Default: none.")
    ] = {}
    node_selector: Annotated[
        dict[str, str], Field(description="Labels that a node must have. Default: none.")
    ] = {}
    tolerations: Annotated[
        list[KubernetesObject], Field(description="Taints that the pods bear. Default: none.")
    ] = []
    affinity: Annotated[
        KubernetesObject | None,
        Field(description="Affinity of the pods. Default: replicas prefer different nodes."),
    ] = None
    topology_spread_constraints: Annotated[
        list[KubernetesObject],
        Field(description="How replicas spread over zones and nodes. Default: none."),
    ] = []
    runtime_class_name: Annotated[
        ObjectName | None, Field(description="Container runtime (`nvidia`). Default: the node's.")
    ] = None
    priority_class_name: Annotated[
        ObjectName | None, Field(description="Priority for scheduling and eviction. Default: none.")
    ] = None
    scheduler_name: Annotated[
        ObjectName | None, Field(description="Scheduler of the pods. Default: the cluster's.")
    ] = None
    service_account_name: Annotated[
        ObjectName | None,
        Field(description="Existing ServiceAccount. Default: one without rights, made for this."),
    ] = None
    image_pull_secrets: Annotated[
        list[KubernetesObject],
        KeyedBy("name"),
        Field(description="Secrets for the registry, by name. Default: none."),
    ] = []
    security_context: Annotated[
        KubernetesObject,
        Field(
            description="Fields laid over the pods' securityContext. Default: none; pods run "
            "as user 65532, never as root."
        ),
    ] = {}
    env: Annotated[
        list[KubernetesObject],
        KeyedBy("name"),
        Field(
            description="Environment of the engine's container, added to the operator's. "
            "Default: none."
        ),
    ] = []
    volumes: Annotated[
        list[KubernetesObject],
        KeyedBy("name"),
        Field(description="Further volumes of the pods. Default: none."),
    ] = []
    volume_mounts: Annotated[
        list[KubernetesObject],
        KeyedBy("mountPath"),
        Field(description="Mounts of these volumes in the engine's container. Default: none."),
    ] = []
    resource_claims: Annotated[
        list[KubernetesObject],
        KeyedBy("name"),
        Field(
            description="Claims of dynamic resource allocation, named to the container too. "
            "Default: none."
        ),
    ] = []


class NodePathCache(ResourceModel):
    path: Annotated[
        str,
        Field(
            pattern=r"^/[^\s]*$",
            max_length=1024,
            description="Folder on each node, shared by all its replicas; made if absent. It must "
            "be writable for user 65532.",
        ),
    ]


class ClaimCache(ResourceModel):
    name: Annotated[
        ObjectName | None,
        Field(
            description="Existing PersistentVolumeClaim. Default: one is made, and deleted with "
            "the deployment.",
        ),
    ] = None
    size: Annotated[
        Quantity, Field(description="Size of the claim that is made. Default 100Gi.")
    ] = "100Gi"
    storage_class_name: Annotated[
        ObjectName | None,
        Field(description="Its StorageClass. Default: the cluster's default class."),
    ] = None
    access_mode: Annotated[
        Literal["ReadWriteOnce", "ReadWriteMany"],
        Field(description="ReadWriteMany lets replicas run on several nodes. Default."),
    ] = "ReadWriteMany"


class ModelCacheSpec(ResourceModel):
    """Where fetched models stay. Nothing given: each pod fetches for itself."""

    node_path: Annotated[
        NodePathCache | None, Field(description="A folder on the nodes. Default: none.")
    ] = None
    claim: Annotated[
        ClaimCache | None,
        Field(description="A PersistentVolumeClaim, filled once by a download Job. Default: none."),
    ] = None

    rules = (
        Rule(
            "!(has(self.nodePath) && has(self.claim))",
            lambda self: self.node_path is None or self.claim is None,
            "claim",
            "give either nodePath or claim, not both",
        ),
    )
