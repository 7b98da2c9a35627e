"""Resources as the API server gives them, parsed: everything is checked that the CRDs check.

Unlike a file, such an object carries a status and metadata that its author did not write; both are
left out. Nothing here raises on what an object contains.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from octavo_protocol.resources.base import FieldError, ResourceModel, field_errors
from octavo_protocol.resources.batch_job import BatchJob
from octavo_protocol.resources.lora_adapter import LoraAdapter
from octavo_protocol.resources.metadata import Metadata
from octavo_protocol.resources.model_deployment import ModelDeployment

Resource = TypeVar("Resource", bound=ResourceModel)

_PARTS = ("apiVersion", "kind", "metadata", "spec")


def parse_model_deployment(resource: Mapping[str, Any]) -> ModelDeployment | list[FieldError]:
    """The deployment, or everything that is wrong with it."""
    return _parse(ModelDeployment, resource)


def parse_lora_adapter(resource: Mapping[str, Any]) -> LoraAdapter | list[FieldError]:
    """The adapter, or everything that is wrong with it."""
    return _parse(LoraAdapter, resource)


def parse_batch_job(resource: Mapping[str, Any]) -> BatchJob | list[FieldError]:
    """The job, or everything that is wrong with it."""
    return _parse(BatchJob, resource)


def _parse(model: type[Resource], resource: Mapping[str, Any]) -> Resource | list[FieldError]:
    written = {part: resource[part] for part in _PARTS if part in resource}
    if isinstance(metadata := written.get("metadata"), Mapping):
        written["metadata"] = {
            key: value for key, value in metadata.items() if key in Metadata.model_fields
        }
    try:
        return model.model_validate(written, strict=True)
    except ValidationError as error:
        return list(field_errors(error))
