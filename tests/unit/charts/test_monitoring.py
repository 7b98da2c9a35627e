"""Alerts and dashboard ask for metrics and labels that exist."""

import json
import re
from collections.abc import Iterable
from typing import Any

import pytest
import yaml
from tests.fakes.fake_llm import FakeLLM
from tests.unit.charts.chart import FOLDER, Object, render

from octavo_operator.metrics import OperatorMetrics
from octavo_router.metrics import RouterMetrics
from octavo_runtime.server.metrics import ServerMetrics

ALERTS: list[Object] = yaml.safe_load((FOLDER / "monitoring/alerts.yaml").read_text())["groups"][0][
    "rules"
]
DASHBOARD: Object = json.loads((FOLDER / "monitoring/dashboard.json").read_text())
PANELS = [each for each in DASHBOARD["panels"] if each["type"] != "row"]
_NAME = re.compile(r"\b(?:octavo_[a-z0-9_]+|vllm:[a-z0-9_]+)\b")
_PARTS = {"histogram": ("_bucket", "_sum", "_count")}


def known_metrics() -> set[str]:
    """Names of all time series of operator, router and replicas."""
    llm: Any = FakeLLM()
    renders = (OperatorMetrics().render(), RouterMetrics().render(), ServerMetrics(llm).render())
    types = re.findall(r"^# TYPE (\S+) (\w+)$", b"".join(renders).decode(), re.MULTILINE)
    return {name + end for name, kind in types for end in _PARTS.get(kind, ("",))}


def expressions() -> Iterable[str]:
    yield from (alert["expr"] for alert in ALERTS)
    yield from (target["expr"] for panel in PANELS for target in panel["targets"])
    yield from (each.get("query", "") for each in DASHBOARD["templating"]["list"])


def test_every_metric_that_is_asked_for_exists() -> None:
    named = {name for expression in expressions() for name in _NAME.findall(expression)}
    assert len(named) > 30
    assert named - known_metrics() == set()


@pytest.mark.parametrize("expression", list(expressions()))
def test_expressions_are_balanced(expression: str) -> None:
    for opening, closing in ("()", "[]", "{}"):
        assert expression.count(opening) == expression.count(closing)


def test_each_panel_says_what_it_shows_and_none_overlap() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        area = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24
        assert not area & cells, panel["title"]
        cells |= area
    assert all(panel["description"] and panel["title"] for panel in PANELS)
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_the_dashboard_answers_its_four_questions() -> None:
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == [
        "Is it healthy?",
        "How fast?",
        "How full?",
        "How well does the prefix cache work?",
    ]


def test_alerts_say_what_and_what_to_do() -> None:
    for alert in ALERTS:
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert set(alert["annotations"]) == {"summary", "description"}


def test_alerts_and_dashboard_arrive_as_they_are_written() -> None:
    manifests = render({"monitoring": {"dashboard": {"enabled": True}}})
    assert manifests.find("PrometheusRule", "octavo-alerts")["spec"]["groups"][0]["rules"] == ALERTS
    text = manifests.find("ConfigMap", "octavo-dashboard")["data"]["octavo.json"]
    assert json.loads(text) == DASHBOARD


def test_replicas_are_labelled_as_the_router_labels_deployments() -> None:
    [endpoint] = render().find("PodMonitor", "octavo-replicas")["spec"]["podMetricsEndpoints"]
    [rule] = endpoint["relabelings"]
    assert rule == {
        "sourceLabels": [
            "__meta_kubernetes_namespace",
            "__meta_kubernetes_pod_label_octavo_dev_model_deployment",
        ],
        "separator": "/",
        "targetLabel": "deployment",
    }
