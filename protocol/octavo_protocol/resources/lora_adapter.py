"""LoraAdapter: one fine-tune of a deployment's model, addressed as a model name of its own."""

from typing import Annotated, Literal

from pydantic import Field

from octavo_protocol.resources.base import NAME_PATTERN, ResourceModel
from octavo_protocol.resources.metadata import Metadata
from octavo_protocol.resources.model_source import ModelSource


class DeploymentRef(ResourceModel):
    name: Annotated[
        str,
        Field(pattern=NAME_PATTERN, description="ModelDeployment in the adapter's own namespace."),
    ]


class LoraAdapterSpec(ResourceModel):
    model: Annotated[ModelSource, Field(description="Where the adapter's files come from.")]
    target: Annotated[DeploymentRef, Field(description="The deployment whose model it adapts.")]
    served_name: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=253,
            description="Model name in the API. Default: its own name.",
        ),
    ] = None
    load_policy: Annotated[
        Literal["OnDemand", "EveryReplica"],
        Field(
            description="EveryReplica: loaded wherever the model is. OnDemand: loaded where "
            "requests come. Default EveryReplica."
        ),
    ] = "EveryReplica"


class LoraAdapter(ResourceModel):
    api_version: Literal["octavo.dev/v1alpha1"]
    kind: Literal["LoraAdapter"]
    metadata: Metadata
    spec: LoraAdapterSpec
