"""The part of ObjectMeta that a manifest's author writes, and the API's group and version."""

from typing import Annotated

from pydantic import Field

from octavo_protocol.resources.base import NAME_PATTERN, ResourceModel

GROUP = "octavo.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"


class Metadata(ResourceModel):
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    namespace: Annotated[str, Field(pattern=NAME_PATTERN)] = "default"
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
