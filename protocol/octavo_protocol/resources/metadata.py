"""The part of ObjectMeta that a manifest's author writes, and the API's group and version."""

from typing import Annotated

from pydantic import Field

from octavo_protocol.resources.base import ResourceModel
from octavo_protocol.resources.scalars import NAME_PATTERN

GROUP = "octavo.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"


class Metadata(ResourceModel):
    # A Service is named so, whose name must begin with a letter.
    name: Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
    namespace: Annotated[str, Field(pattern=NAME_PATTERN)] = "default"
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
