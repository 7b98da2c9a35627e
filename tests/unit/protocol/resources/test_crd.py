"""The CRDs: structural, described, fresh, and of one mind with the typed models."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cel
import pytest
import yaml
from pydantic import ConfigDict
from tests.fakes.manifests import (
    GOOD_SPECS,
    RULE_VIOLATIONS,
    STRUCTURE_VIOLATIONS,
    Spec,
    Violation,
    manifest,
)

from octavo_protocol.resources.base import ResourceModel
from octavo_protocol.resources.crd import (
    batch_jobs,
    definition_files,
    lora_adapters,
    main,
    model_deployments,
)
from octavo_protocol.resources.crd_schema import Schema, structural_schema
from octavo_protocol.resources.model_deployment import ModelDeployment
from octavo_protocol.resources.parse import (
    parse_batch_job,
    parse_lora_adapter,
    parse_model_deployment,
)

PARSERS: dict[str, Callable[[Any], object]] = {
    "ModelDeployment": parse_model_deployment,
    "LoraAdapter": parse_lora_adapter,
    "BatchJob": parse_batch_job,
}
REPOSITORY = Path(__file__).parents[4]
DEFINITIONS = [model_deployments(), lora_adapters(), batch_jobs()]
# What apiextensions.k8s.io/v1 allows in a structural schema, of what we use.
STRUCTURAL = {
    *("type", "format", "description", "default", "enum", "pattern", "required"),
    *("minimum", "maximum", "minLength", "maxLength", "maxItems"),
    *("properties", "items", "additionalProperties"),
    *("x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields"),
    *("x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-validations"),
}


def schema_of(definition: dict[str, Any]) -> Schema:
    (version,) = definition["spec"]["versions"]
    schema: Schema = version["schema"]["openAPIV3Schema"]
    return schema


def nodes(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}".lstrip("."))
    for keyword, suffix in (("items", "[]"), ("additionalProperties", ".*")):
        if keyword in schema:
            yield from nodes(schema[keyword], path + suffix)


def defaulted(schema: Schema, value: Any) -> Any:
    """`value` as a server stores it: nulls dropped, defaults of absent fields filled in."""
    if isinstance(value, list):
        return [defaulted(schema["items"], item) for item in value]
    if not isinstance(value, dict) or "properties" not in schema:
        return value
    filled = {key: item for key, item in value.items() if item is not None}
    for name, child in schema["properties"].items():
        if name in filled:
            filled[name] = defaulted(child, filled[name])
        elif "default" in child:
            filled[name] = child["default"]
    return filled


def broken_rules(schema: Schema, value: Any, path: str) -> Iterator[tuple[str, str]]:
    """(path, message) of every CEL rule that `value`, with its defaults, does not meet."""
    for rule in schema.get("x-kubernetes-validations", ()):
        if cel.evaluate(rule["rule"], {"self": value}) is not True:
            field, _, message = rule["message"].partition(": ")
            yield f"{path}.{field}", message
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from broken_rules(schema["items"], item, f"{path}[{index}]")
    elif isinstance(value, dict):
        for name, child in schema.get("properties", {}).items():
            if name in value:
                yield from broken_rules(child, value[name], f"{path}.{name}")


def by_cel(spec: Spec) -> list[tuple[str, str]]:
    schema = schema_of(model_deployments())["properties"]["spec"]
    return list(broken_rules(schema, defaulted(schema, spec), "spec"))


def by_python(spec: Spec) -> list[tuple[str, str]]:
    result = parse_model_deployment(manifest(spec))
    if isinstance(result, ModelDeployment):
        return []
    return [(error.path, error.message) for error in result]


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_schema_is_structural(definition: dict[str, Any]) -> None:
    for path, schema in nodes(schema_of(definition)):
        assert set(schema) <= STRUCTURAL, path
        assert ("type" in schema) != ("x-kubernetes-int-or-string" in schema), path
        assert not {"properties", "additionalProperties"} <= set(schema), path
        assert set(schema.get("required", ())) <= set(schema.get("properties", ())), path


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_every_field_is_described_in_words_of_its_own(definition: dict[str, Any]) -> None:
    for path, schema in nodes(schema_of(definition)):
        name = path.rpartition(".")[2]
        if path.startswith("metadata") or path.endswith(("[]", "*")):
            continue
        words = schema.get("description", "").rstrip(".").lower().replace(" ", "")
        assert len(words) > 5, path
        assert words != name.lower(), path


@pytest.mark.parametrize("definition", [model_deployments(), batch_jobs()])
def test_an_optional_field_says_its_default(definition: dict[str, Any]) -> None:
    spec = schema_of(definition)["properties"]["spec"]
    for path, schema in nodes(spec):
        for name, child in schema.get("properties", {}).items():
            is_group = "properties" in child and not child["description"].startswith("Default")
            if name in schema.get("required", ()) or is_group:
                continue
            text = child["description"]
            assert "Default" in text, f"{path}.{name}: {text}"
            if "default" in child and child["default"] not in (True, False):
                assert str(child["default"]) in text, f"{path}.{name}: {text}"


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_rules_are_short_and_point_at_fields(definition: dict[str, Any]) -> None:
    for path, schema in nodes(schema_of(definition)):
        for rule in schema.get("x-kubernetes-validations", ()):
            assert len(rule["message"]) < 2048
            field = rule["message"].partition(": ")[0]
            target = schema
            for name in field.split("."):
                assert name in target["properties"], f"{path}.{field}"
                target = target["properties"][name]


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_rules_have_no_field_that_kubernetes_1_27_lacks(definition: dict[str, Any]) -> None:
    for path, schema in nodes(schema_of(definition)):
        for rule in schema.get("x-kubernetes-validations", ()):
            assert set(rule) == {"rule", "message"}, path


def test_columns_and_subresources() -> None:
    (version,) = model_deployments()["spec"]["versions"]

    shown = [each for each in version["additionalPrinterColumns"] if not each.get("priority")]
    assert [each["name"] for each in shown] == ["Ready", "Reason", "Desired", "Available", "Age"]
    assert version["subresources"] == {
        "status": {},
        "scale": {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        },
    }


def test_single_values_get_defaults_and_objects_do_not() -> None:
    schema = schema_of(model_deployments())["properties"]["spec"]

    assert defaulted(schema, {"model": {"source": "x"}, "rollout": {"maxSurge": None}}) == {
        "model": {"source": "x"},
        "replicas": 1,
        "paused": False,
        "rollout": {
            "maxSurge": 1,
            "maxUnavailable": 0,
            "drainSeconds": 300,
            "startSeconds": 1800,
        },
    }


@pytest.mark.parametrize("spec", GOOD_SPECS, ids=str)
def test_good_spec_is_good_to_both(spec: Spec) -> None:
    assert by_python(spec) == []
    assert by_cel(spec) == []


@pytest.mark.parametrize("violation", RULE_VIOLATIONS, ids=str)
def test_broken_rule_is_the_same_to_both(violation: Violation) -> None:
    (found,) = by_python(violation.spec)

    assert found[0] == violation.path
    assert violation.message in found[1]
    assert by_cel(violation.spec) == [found]


@pytest.mark.parametrize("violation", STRUCTURE_VIOLATIONS, ids=str)
def test_wrong_value_is_named_by_its_path(violation: Violation) -> None:
    assert [path for path, _ in by_python(violation.spec)] == [violation.path]


def test_the_table_breaks_every_rule() -> None:
    said = {message for violation in RULE_VIOLATIONS for _, message in by_cel(violation.spec)}
    rules = {
        rule["message"].partition(": ")[2]
        for _, schema in nodes(schema_of(model_deployments()))
        for rule in schema.get("x-kubernetes-validations", ())
    }

    assert said == rules


@pytest.mark.parametrize("folder", ["crds", "charts/octavo/crds"])
def test_generated_files_are_fresh(folder: str) -> None:
    """If not: `make crds`."""
    found = {path.name: path.read_text() for path in (REPOSITORY / folder).glob("*.yaml")}

    assert found == definition_files()


def test_the_command_writes_the_files(tmp_path: Path) -> None:
    main([str(tmp_path / "a"), str(tmp_path / "b")])

    for folder in ("a", "b"):
        found = {path.name: path.read_text() for path in (tmp_path / folder).iterdir()}
        assert found == definition_files()


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "examples").rglob("*.yaml")), ids=lambda path: path.name
)
def test_example_is_valid(path: Path) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        assert not isinstance(PARSERS[document["kind"]](document), list)


def test_type_that_no_structural_schema_has_is_refused() -> None:
    class Odd(ResourceModel):
        model_config = ConfigDict(title="Odd")
        value: int | str

    with pytest.raises(ValueError, match="several types"):
        structural_schema(Odd, with_defaults=True)
