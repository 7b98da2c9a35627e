"""The chart as Helm renders it for a given API server, without one."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

helm_python = pytest.importorskip("helm_python", reason="Helm is not built for this platform")

FOLDER = Path(__file__).parents[3] / "charts" / "octavo"
RELEASE, NAMESPACE = "octavo", "octavo-system"
MONITORING, GATEWAY = "monitoring.coreos.com/v1", "gateway.networking.k8s.io/v1"
EVERYTHING = (MONITORING, GATEWAY)

Object = dict[str, Any]


class Manifests:
    """What one render made, in Helm's order."""

    def __init__(self, objects: list[Object], notes: str) -> None:
        self.objects = objects
        self.notes = notes

    def find(self, kind: str, name: str, namespace: str = NAMESPACE) -> Object:
        """The one object. Raises `AssertionError` with those that are there."""
        found = [each for each in self.of_kind(kind) if _is(each, name, namespace)]
        assert len(found) == 1, f"{kind} {name}: {sorted(self.names)}"
        return found[0]

    def of_kind(self, kind: str) -> list[Object]:
        return [each for each in self.objects if each["kind"] == kind]

    @property
    def names(self) -> set[str]:
        """`Kind/name` of all objects."""
        return {f"{each['kind']}/{each['metadata']['name']}" for each in self.objects}

    @property
    def workloads(self) -> Iterator[Object]:
        yield from (*self.of_kind("Deployment"), *self.of_kind("StatefulSet"))

    def pod(self, component: str) -> Object:
        """The pod template of `operator`, `router` or `redis`."""
        kind = "StatefulSet" if component == "redis" else "Deployment"
        template: Object = self.find(kind, f"octavo-{component}")["spec"]["template"]
        return template

    def container(self, component: str) -> Object:
        [container] = self.pod(component)["spec"]["containers"]
        assert isinstance(container, dict)
        return container


def _is(each: Object, name: str, namespace: str) -> bool:
    metadata: Object = each["metadata"]
    return (metadata["name"], metadata.get("namespace", namespace)) == (name, namespace)


def render(
    values: Object | None = None, *, served: tuple[str, ...] = EVERYTHING, release: str = RELEASE
) -> Manifests:
    """served: group versions that the API server has beside Kubernetes' own, which Helm takes for
    granted without a server. A value that is not in values.yaml is an error.

    Raises `helm_python.HelmError`.
    """
    return _render(json.dumps(values or {}, sort_keys=True), served, release)


@functools.cache
def _render(values: str, served: tuple[str, ...], release: str) -> Manifests:
    # The library takes the capabilities; its Python wrapper does not pass them on.
    options = {
        "name": release,
        "namespace": NAMESPACE,
        "is_install": True,
        "kube_version": "v1.33.0",
        "api_versions": served,
        "strict": True,
    }
    texts: dict[str, str] = json.loads(
        helm_python._native.call_string("helm_render", _chart()._raw(), values, json.dumps(options))
    )
    notes = texts.pop("octavo/templates/NOTES.txt")
    documents = [each for text in texts.values() for each in yaml.safe_load_all(text)]
    return Manifests([each for each in documents if each is not None], notes)


@functools.cache
def _chart() -> Any:
    return helm_python.Chart.load(FOLDER)
