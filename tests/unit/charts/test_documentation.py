"""The values that the documentation shows are values of the chart."""

import re
from pathlib import Path

import pytest
import yaml
from tests.unit.charts.chart import FOLDER, Object, render

from octavo_protocol.resources.model_deployment import parse_manifest

_PAGE = Path(__file__).parents[3] / "docs" / "helm.md"
_YAML = re.compile(r"```yaml\n(.*?)```", re.DOTALL)
_MANIFEST = re.compile(r"apply -f - <<EOF\n(.*?) *EOF", re.DOTALL)


def shown() -> list[Object]:
    return [yaml.safe_load(text) for text in _YAML.findall(_PAGE.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("values", shown())
def test_values_on_the_page_render(values: Object) -> None:
    assert render(values).objects


def test_values_that_are_named_exist() -> None:
    defaults = yaml.safe_load((FOLDER / "values.yaml").read_text())
    named = re.findall(r"`([a-zA-Z]+(?:\.[a-zA-Z]+)+)`", _PAGE.read_text(encoding="utf-8"))
    paths = [path for path in named if path.split(".")[0] in defaults]
    assert len(paths) > 5
    for path in paths:
        value = defaults
        for key in path.split("."):
            assert key in value, path
            value = value[key]


def test_the_example_of_the_notes_is_a_manifest_that_the_operator_takes() -> None:
    [text] = _MANIFEST.findall(render().notes)
    made = parse_manifest(yaml.safe_load(text))
    assert made.metadata.name == "smollm2"
    assert made.spec.num_gpus == 0
