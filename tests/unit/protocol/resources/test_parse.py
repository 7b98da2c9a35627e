"""Objects as API servers give them become typed resources, or a list of what is wrong."""

from typing import Any

import pytest

from octavo_protocol.resources.base import FieldError
from octavo_protocol.resources.lora_adapter import LoraAdapter
from octavo_protocol.resources.model_deployment import ModelDeployment
from octavo_protocol.resources.parse import parse_lora_adapter, parse_model_deployment


def live(kind: str = "ModelDeployment", **spec: Any) -> dict[str, Any]:
    """As `kubectl get -o json` shows one."""
    return {
        "apiVersion": "octavo.dev/v1alpha1",
        "kind": kind,
        "metadata": {
            "name": "m",
            "namespace": "team",
            "uid": "0a1b",
            "generation": 3,
            "resourceVersion": "12",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "annotations": {"a": "b"},
            "managedFields": [{"manager": "kubectl"}],
            "ownerReferences": [],
        },
        "spec": {"model": {"source": "hf://org/name"}, **spec},
        "status": {"conditions": [], "anything": 1},
    }


def paths(result: object) -> list[str]:
    assert isinstance(result, list), result
    return [error.path for error in result]


def test_live_deployment_is_parsed_without_status_and_foreign_metadata() -> None:
    result = parse_model_deployment(live(replicas=2))

    assert isinstance(result, ModelDeployment)
    assert (result.metadata.name, result.metadata.namespace) == ("m", "team")
    assert result.metadata.annotations == {"a": "b"}
    assert result.spec.replicas == 2
    assert result.spec.served_names == ["m"]


def test_live_adapter_is_parsed() -> None:
    result = parse_lora_adapter(live("LoraAdapter", target={"name": "base"}))

    assert isinstance(result, LoraAdapter)
    assert result.spec.target.name == "base"


def test_nulls_are_absent_fields() -> None:
    result = parse_model_deployment(live(replicas=None, engine=None, autoscaling=None))

    assert isinstance(result, ModelDeployment)
    assert result.spec.replicas == 1
    assert result.spec.engine.block_size == 16


def test_every_error_has_its_path() -> None:
    result = parse_model_deployment(
        live(replicas="2", engine={"blockSize": 0, "no": 1}, adapters=[{"name": "a"}])
    )

    assert result == [
        FieldError("spec.replicas", "Input should be a valid integer"),
        FieldError("spec.engine.blockSize", "Input should be greater than or equal to 1"),
        FieldError("spec.engine.no", "there is no such field"),
        FieldError("spec.adapters[0].model", "this field is required"),
    ]


@pytest.mark.parametrize(
    ("resource", "expected"),
    [
        ({}, ["apiVersion", "kind", "metadata", "spec"]),
        ({**live(), "metadata": None}, ["metadata"]),
        ({**live(), "spec": []}, ["spec"]),
        ({**live(), "kind": "LoraAdapter"}, ["kind"]),
        ({**live(), "apiVersion": "octavo.dev/v2"}, ["apiVersion"]),
        (live(model=7), ["spec.model"]),
        (live(podTemplate={"labels": {"a": 1}}), ["spec.podTemplate.labels.a"]),
    ],
)
def test_odd_objects_give_errors_and_never_raise(
    resource: dict[str, Any], expected: list[str]
) -> None:
    assert paths(parse_model_deployment(resource)) == expected
