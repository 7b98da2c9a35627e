"""values.yaml, its schema and Chart.yaml agree with each other and with the code."""

import json
import re
import tomllib
from typing import Any

import pytest
import yaml
from tests.unit.charts.chart import FOLDER, Object, helm_python, render

from octavo_protocol.resources.pod_spec import PodTemplateSpec

SCHEMA: Object = json.loads((FOLDER / "values.schema.json").read_text())
LINES = (FOLDER / "values.yaml").read_text().splitlines()
_KEY = re.compile(r"( *)(\w+):(.*)")
# Said by their name, or by the comment of what they are in.
_PLAIN = {"enabled", "name", "key", "pullPolicy", "port", "image", "service", "autoscaling"}
_PLAIN |= {"minReplicas", "maxReplicas", "ingress", "persistence", "dashboard", "apiKeys", "tag"}
_PLAIN |= {"tenants", "files"}


def refuse(values: Object) -> str:
    with pytest.raises(helm_python.HelmValuesError) as raised:
        render(values)
    return str(raised.value)


@pytest.mark.parametrize(
    ("values", "where", "what"),
    [
        ({"route": {}}, "''", "'route' not allowed"),
        ({"router": {"replica": 3}}, "'/router'", "'replica' not allowed"),
        ({"router": {"ingress": {"host": "a"}}}, "'/router/ingress'", "'host' not allowed"),
        ({"redis": {"image": {"tags": "8"}}}, "'/redis/image'", "'tags' not allowed"),
        ({"runtime": {"podDefaults": {"nodeselector": {}}}}, "podDefaults'", "'nodeselector'"),
        ({"operator": {"replicas": "2"}}, "'/operator/replicas'", "got string, want integer"),
        ({"operator": {"namespaces": ["A b"]}}, "'/operator/namespaces/0'", "does not match"),
        ({"monitoring": {"monitors": True}}, "'/monitoring/monitors'", "'auto', 'always', 'never'"),
        ({"operator": {"image": {"digest": "abc"}}}, "'/operator/image/digest'", "does not match"),
        ({"redis": {"external": {"url": "redis:6379"}}}, "'/redis/external/url'", "not match"),
        ({"redis": {"external": {"url": "redis://:secret@r"}}}, "external/url'", "not match"),
        ({"redis": {"maxMemory": "1Gi"}}, "'/redis/maxMemory'", "does not match"),
        ({"runAsUser": 0}, "'/runAsUser'", "want 1"),
    ],
)
def test_mistakes_are_refused_with_their_path(values: Object, where: str, what: str) -> None:
    message = refuse(values)
    assert where in message
    assert what in message


def test_the_schema_knows_every_value_and_no_other() -> None:
    def check(values: Object, schema: Object, path: str) -> None:
        while "$ref" in schema:
            schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
        if "properties" not in schema or path.endswith("podDefaults"):
            return
        assert schema["additionalProperties"] is False, path
        assert set(values) == set(schema["properties"]) - {"global"}, path
        for key, value in values.items():
            if isinstance(value, dict):
                check(value, schema["properties"][key], f"{path}.{key}")

    optional = {"timeouts": {"request": "", "backendRequest": ""}}
    values = yaml.safe_load("\n".join(LINES))
    values["router"]["httpRoute"] |= optional
    check(values, SCHEMA, "")


def test_pod_defaults_are_the_fields_of_a_pod_template() -> None:
    fields = {field.alias or name for name, field in PodTemplateSpec.model_fields.items()}
    assert set(SCHEMA["$defs"]["podDefaults"]["properties"]) == fields


def test_pod_defaults_that_the_schema_takes_are_taken_by_the_operator() -> None:
    defaults: dict[str, Any] = {
        "labels": {"a": "b"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "env": [{"name": "A", "value": "b"}],
        "volumes": [{"name": "v", "emptyDir": {}}],
        "runtimeClassName": "nvidia",
        "imagePullSecrets": [{"name": "team"}],
    }
    made = render({"runtime": {"podDefaults": defaults}}).find("ConfigMap", "octavo-pod-defaults")
    parsed = PodTemplateSpec.model_validate(yaml.safe_load(made["data"]["pod-defaults.yaml"]))
    assert parsed.model_dump(by_alias=True, exclude_unset=True) == defaults


def test_every_value_has_a_comment() -> None:
    bare = [
        line.strip()
        for before, line in zip(["", *LINES], LINES, strict=False)
        if (match := _KEY.fullmatch(line))
        and match[1] + match[3].strip() != ""
        and not before.lstrip().startswith("#")
        and match[2] not in _PLAIN
        and match[2] not in ("requests", "limits")
    ]
    assert bare == []


def test_lint_finds_nothing() -> None:
    report = helm_python.lint(FOLDER, strict=True, kube_version="v1.27.0")
    messages = [each for each in report["messages"] if "icon is recommended" not in each["error"]]
    assert messages == []
    assert report["errors"] == []


def test_the_versions_are_those_of_the_project() -> None:
    about = yaml.safe_load((FOLDER / "Chart.yaml").read_text())
    project = tomllib.loads((FOLDER.parents[1] / "pyproject.toml").read_text())["project"]
    assert about["version"] == about["appVersion"] == project["version"]
    assert about["description"].isascii()
