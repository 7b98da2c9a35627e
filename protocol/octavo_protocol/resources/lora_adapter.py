"""LoraAdapter: one fine-tune of a deployment's model, addressed as a model name of its own."""

from typing import Annotated, Literal

from pydantic import Field

from octavo_protocol.resources.base import ResourceModel
from octavo_protocol.resources.metadata import Metadata
from octavo_protocol.resources.model_source import ModelSource
from octavo_protocol.resources.scalars import NAME_PATTERN, ServedName


class DeploymentRef(ResourceModel):
    name: Annotated[
        str,
        Field(pattern=NAME_PATTERN, description="ModelDeployment in the resource's own namespace."),
    ]


class LoraAdapterSpec(ResourceModel):
    model: Annotated[
        ModelSource,
        Field(
            description="Where the adapter's files come from. Of Secrets, replicas have those that "
            "their deployment names for its model and adapters: secretRef must be one of these."
        ),
    ]
    target: Annotated[DeploymentRef, Field(description="The deployment whose model it adapts.")]
    served_name: Annotated[
        ServedName | None, Field(description="Model name in the API. Default: its own name.")
    ] = None
    load_policy: Annotated[
        Literal["OnDemand", "EveryReplica"],
        Field(
            description="EveryReplica: loaded wherever the model is. OnDemand: loaded where "
            "requests come. Default EveryReplica."
        ),
    ] = "EveryReplica"


class LoraAdapter(ResourceModel):
    """A LoRA fine-tune of a ModelDeployment's model, served beside it under a name of its own."""

    api_version: Literal["octavo.dev/v1alpha1"]
    kind: Literal["LoraAdapter"]
    metadata: Metadata
    spec: LoraAdapterSpec
