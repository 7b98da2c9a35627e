"""The CustomResourceDefinitions of all resources, generated from their types.

python -m octavo_protocol.resources.crd FOLDER...    writes one file each into every folder
"""

import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from octavo_protocol.resources.base import ResourceModel
from octavo_protocol.resources.batch_job import BatchJob, BatchJobSpec
from octavo_protocol.resources.crd_schema import Schema, structural_schema
from octavo_protocol.resources.lora_adapter import LoraAdapter, LoraAdapterSpec
from octavo_protocol.resources.metadata import GROUP, VERSION, Metadata
from octavo_protocol.resources.model_deployment import ModelDeployment, ModelDeploymentSpec
from octavo_protocol.resources.status import (
    BatchJobStatus,
    LoraAdapterStatus,
    ModelDeploymentStatus,
)

Manifest = dict[str, Any]

_HEADER = "# Generated from octavo_protocol.resources by `make crds`; change the types instead.\n"


def model_deployments() -> Manifest:
    """The definition of `modeldeployments`, short name `md`; it scales and has a status."""
    return _definition(
        plural="modeldeployments",
        kind="ModelDeployment",
        short_name="md",
        schema=_resource_schema(ModelDeployment, ModelDeploymentSpec, ModelDeploymentStatus),
        subresources={
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.replicas",
                "statusReplicasPath": ".status.replicas",
                "labelSelectorPath": ".status.selector",
            },
        },
        columns=[
            *_ready_columns(),
            _column("Desired", "integer", ".status.desiredReplicas", "Replicas wanted."),
            _column("Available", "integer", ".status.readyReplicas", "Replicas taking traffic."),
            _age_column(),
            _column("Model", "string", ".spec.model.source", "The model's source.", priority=1),
        ],
    )


def lora_adapters() -> Manifest:
    """The definition of `loraadapters`, short name `lora`."""
    return _definition(
        plural="loraadapters",
        kind="LoraAdapter",
        short_name="lora",
        schema=_resource_schema(LoraAdapter, LoraAdapterSpec, LoraAdapterStatus),
        subresources={"status": {}},
        columns=[
            *_ready_columns(),
            _column("Target", "string", ".spec.target.name", "The deployment that it adapts."),
            _column("Loaded", "integer", ".status.loadedReplicas", "Replicas that hold it."),
            _age_column(),
            _column("Model", "string", ".spec.model.source", "The adapter's source.", priority=1),
        ],
    )


def batch_jobs() -> Manifest:
    """The definition of `batchjobs`, short name `bj`."""
    return _definition(
        plural="batchjobs",
        kind="BatchJob",
        short_name="bj",
        schema=_resource_schema(BatchJob, BatchJobSpec, BatchJobStatus),
        subresources={"status": {}},
        columns=[
            _column("Phase", "string", ".status.phase", "Pending, Running, Complete or Failed."),
            _column("Percent", "integer", ".status.progressPercent", "Lines with a result."),
            _column("Lines", "integer", ".status.counts.total", "Lines of the input."),
            _column("Errors", "integer", ".status.counts.failed", "Lines that failed."),
            _age_column(),
            _column("Batch", "string", ".status.batchId", "The platform's batch.", priority=1),
            _column("ETA", "string", ".status.estimatedCompletionAt", "Its end.", priority=1),
            _column("Output", "string", ".spec.output.url", "Where answers go.", priority=1),
        ],
    )


def definition_files() -> dict[str, str]:
    """File name to YAML text of every definition."""
    manifests = (model_deployments(), lora_adapters(), batch_jobs())
    return {f"{each['metadata']['name']}.yaml": _HEADER + _yaml(each) for each in manifests}


def write_definitions(folder: Path) -> None:
    """Writes `definition_files` into `folder`, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in definition_files().items():
        (folder / name).write_text(text, encoding="utf-8")


def _definition(
    *,
    plural: str,
    kind: str,
    short_name: str,
    schema: Schema,
    subresources: Manifest,
    columns: list[Manifest],
) -> Manifest:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.{GROUP}",
            "labels": {"app.kubernetes.io/part-of": "octavo"},
        },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "plural": plural,
                "singular": kind.lower(),
                "kind": kind,
                "listKind": f"{kind}List",
                "shortNames": [short_name],
                "categories": ["octavo"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": columns,
                    "subresources": subresources,
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


def _resource_schema(
    resource: type[ResourceModel], spec: type[ResourceModel], status: type[ResourceModel]
) -> Schema:
    name = structural_schema(Metadata, with_defaults=False)["properties"]["name"]
    return {
        "type": "object",
        "description": inspect.getdoc(resource),
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"{GROUP}/{VERSION}."},
            "kind": {"type": "string", "description": "The resource's kind."},
            # Of metadata a definition may restrict the name alone.
            "metadata": {"type": "object", "properties": {"name": name}},
            "spec": structural_schema(spec, with_defaults=True)
            | {"description": "What is wanted; its owner writes it."},
            "status": structural_schema(status, with_defaults=False)
            | {"description": "What there is; the operator writes it."},
        },
    }


def _column(name: str, kind: str, path: str, description: str, *, priority: int = 0) -> Manifest:
    column = {"name": name, "type": kind, "jsonPath": path, "description": description}
    return column | ({"priority": priority} if priority else {})


def _ready_columns() -> list[Manifest]:
    ready = '.status.conditions[?(@.type=="Ready")]'
    return [
        _column("Ready", "string", f"{ready}.status", "Whether it serves requests."),
        _column("Reason", "string", f"{ready}.reason", "Why, or why not."),
    ]


def _age_column() -> Manifest:
    return _column("Age", "date", ".metadata.creationTimestamp", "Time since it was made.")


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _yaml(manifest: Manifest) -> str:
    return yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def main(folders: Sequence[str]) -> None:
    for folder in folders:
        write_definitions(Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
