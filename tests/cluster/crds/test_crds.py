"""A real API server takes the CRDs, and judges specs as the typed models do."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from kubernetes.dynamic.exceptions import DynamicApiError, NotFoundError, ResourceNotFoundError
from tests.cluster.kube import MODEL_DEPLOYMENT, Kube, Object, WaitError, conditions, told
from tests.fakes.manifests import (
    GOOD_SPECS,
    RULE_VIOLATIONS,
    STRUCTURE_VIOLATIONS,
    Spec,
    Violation,
    manifest,
    spec,
)

pytestmark = pytest.mark.cluster

REPOSITORY = Path(__file__).parents[3]
CRD = "apiextensions.k8s.io/v1/CustomResourceDefinition"
CRDS = ("modeldeployments.octavo.dev", "loraadapters.octavo.dev", "batchjobs.octavo.dev")
CRD_FOLDER = str(REPOSITORY / "crds")
NAMESPACE = "octavo-test-crds"
NAMESPACE_OBJECT = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}


@pytest.fixture(scope="module")
def server(kube: Kube) -> Iterator[Kube]:
    """The cluster with the CRDs of this tree and an empty namespace."""
    kube.kubectl("apply", "--server-side", "--force-conflicts", "-f", CRD_FOLDER)
    kube.wait("CRDs established", lambda: all(is_established(kube, n) for n in CRDS), seconds=90)
    kube.apply(NAMESPACE_OBJECT)
    if not becomes_strict(kube):
        # Where two servers share the address, the older one may have taken the group for itself.
        with contextlib.suppress(NotFoundError, ResourceNotFoundError):
            assert not kube.list(MODEL_DEPLOYMENT), "CEL is not enforced, and there are models"
        kube.kubectl("delete", "-f", CRD_FOLDER)
        kube.kubectl("apply", "--server-side", "-f", CRD_FOLDER)
        kube = Kube.connect(kube.kubeconfig, kube.kubectl_path)  # one that has seen no other server
        kube.wait("rules in CEL enforced", lambda: is_strict(kube), seconds=90)
    yield kube
    kube.delete("v1/Namespace", NAMESPACE)


def is_strict(kube: Kube) -> bool:
    try:
        kube.client.resources.invalidate_cache()
        return is_refused(kube, RULE_VIOLATIONS[0])
    except ResourceNotFoundError:
        return False


def becomes_strict(kube: Kube) -> bool:
    """Whether rules in CEL are enforced, now or within seconds."""
    try:
        kube.wait("rules in CEL enforced", lambda: is_strict(kube), seconds=10)
    except WaitError:
        return False
    return True


def is_established(kube: Kube, name: str) -> bool:
    return conditions(kube.get(CRD, name) or {}).get("Established", {}).get("status") == "True"


def tried(kube: Kube, body: Object) -> Object:
    """What the server would store. Raises `DynamicApiError` where it refuses."""
    api_version, kind = body["apiVersion"], body["kind"]
    resource = kube.client.resources.get(api_version=api_version, kind=kind)
    return told(
        resource.create(body=body, namespace=NAMESPACE, dry_run="All", field_validation="Strict")
    )


def is_refused(kube: Kube, violation: Violation) -> bool:
    try:
        tried(kube, manifest(violation.spec))
    except DynamicApiError as error:
        return bool(error.status == 422)
    return False


def refusal(kube: Kube, body: Object) -> list[tuple[str, str]]:
    """(field, message) of everything that the server has against it."""
    with pytest.raises(DynamicApiError) as caught:
        tried(kube, body)
    status = json.loads(caught.value.body or "{}")
    assert status["code"] == 422, status
    return [(cause["field"], cause["message"]) for cause in status["details"]["causes"]]


@pytest.mark.parametrize("name", CRDS)
def test_definition_is_taken_without_complaint(server: Kube, name: str) -> None:
    found = server.get(CRD, name)

    assert found is not None
    known = conditions(found)
    assert known["Established"]["status"] == known["NamesAccepted"]["status"] == "True"
    assert "NonStructuralSchema" not in known


@pytest.mark.parametrize("spec", GOOD_SPECS, ids=str)
def test_good_spec_is_accepted(server: Kube, spec: Spec) -> None:
    tried(server, manifest(spec))


@pytest.mark.parametrize("violation", RULE_VIOLATIONS, ids=str)
def test_broken_rule_is_refused_with_its_path_and_message(
    server: Kube, violation: Violation
) -> None:
    ((parent, message),) = refusal(server, manifest(violation.spec))

    assert violation.path.startswith(f"{parent}.")
    assert f"{violation.path.removeprefix(f'{parent}.')}: " in message
    assert violation.message in message


@pytest.mark.parametrize("violation", STRUCTURE_VIOLATIONS, ids=str)
def test_wrong_value_is_refused_at_its_path(server: Kube, violation: Violation) -> None:
    causes = refusal(server, manifest(violation.spec))

    assert any(field.startswith(violation.path) for field, _ in causes), causes


@pytest.mark.parametrize("name", ["1b", "a.b", "a" * 64])
def test_name_that_no_service_could_have_is_refused(server: Kube, name: str) -> None:
    causes = refusal(server, manifest(spec(), name))

    assert "metadata.name" in {field for field, _ in causes}


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "examples").rglob("*.yaml")), ids=lambda path: path.name
)
def test_example_is_accepted_strictly(server: Kube, path: Path) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        tried(server, document)


def test_defaults_are_filled_in(server: Kube) -> None:
    given = spec("smollm2", autoscaling={"maxReplicas": 2}, resources={"cpu": 4}, engine=None)

    assert tried(server, manifest(given))["spec"] == {
        "model": {"source": "smollm2"},
        "replicas": 1,
        "paused": False,
        "resources": {"cpu": 4},
        "autoscaling": {
            "minReplicas": 1,
            "maxReplicas": 2,
            "targetQueueSeconds": 2,
            "targetUtilizationPercent": 70,
            "scaleUpWindowSeconds": 10,
            "scaleDownWindowSeconds": 300,
        },
    }


def is_schema_published(kube: Kube) -> bool:
    """Whether the server tells clients the schema of ModelDeployments, which kubectl explains."""
    for path in ("/openapi/v3/apis/octavo.dev/v1alpha1", "/openapi/v2"):
        with contextlib.suppress(AssertionError):
            if "dev.octavo.v1alpha1.ModelDeployment" in kube.kubectl("get", "--raw", path):
                return True
    return False


def test_explain_says_what_fields_mean(server: Kube) -> None:
    if not is_schema_published(server):
        # So does a CRD server behind another API server (`up --new-crds`).
        pytest.skip("this API server publishes no schemas of custom resources to explain")
    text = " ".join(server.kubectl("explain", "md.spec.engine").split())

    assert "Settings of each replica's engine." in text
    assert "Longest prompt plus output, in tokens. Default: the model's own." in text


def test_scale_subresource_scales_and_selects(server: Kube) -> None:
    created = manifest(spec("smollm2"), "scaled")
    created["metadata"]["namespace"] = NAMESPACE
    server.apply(created)
    patch_status(server, "scaled", {"replicas": 2, "selector": "a=b"})

    server.kubectl("scale", "md/scaled", "--replicas=3", "-n", NAMESPACE)

    scaled = server.get(MODEL_DEPLOYMENT, "scaled", NAMESPACE)
    scale = json.loads(
        server.kubectl(
            "get",
            "--raw",
            f"/apis/octavo.dev/v1alpha1/namespaces/{NAMESPACE}/modeldeployments/scaled/scale",
        )
    )
    assert scaled is not None
    assert scaled["spec"]["replicas"] == 3
    assert scale["spec"] == {"replicas": 3}
    assert scale["status"] == {"replicas": 2, "selector": "a=b"}


def test_status_is_shown_in_columns(server: Kube) -> None:
    created = manifest(spec("smollm2"), "shown")
    created["metadata"]["namespace"] = NAMESPACE
    server.apply(created)
    condition = {
        "type": "Ready",
        "status": "False",
        "reason": "Starting",
        "message": "0 of 2 replicas are ready",
        "observedGeneration": 1,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    patch_status(
        server,
        "shown",
        {"conditions": [condition], "desiredReplicas": 2, "readyReplicas": 0},
    )

    lines = server.kubectl("get", "md", "shown", "-n", NAMESPACE).splitlines()

    assert lines[0].split() == ["NAME", "READY", "REASON", "DESIRED", "AVAILABLE", "AGE"]
    assert lines[1].split()[:5] == ["shown", "False", "Starting", "2", "0"]


def patch_status(kube: Kube, name: str, status: Object) -> None:
    resource = kube.client.resources.get(api_version="octavo.dev/v1alpha1", kind="ModelDeployment")
    resource.status.patch(
        body={"status": status},
        name=name,
        namespace=NAMESPACE,
        content_type="application/merge-patch+json",
    )
