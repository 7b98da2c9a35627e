"""What the operator owns: drift is repaired, what users added stays, deletion leaves nothing."""

import pytest

from tests.cluster.installation import NAMESPACE, OTHER_NAMESPACE, Installation
from tests.cluster.kube import DEPLOYMENT, MODEL_DEPLOYMENT, Object
from tests.cluster.model_deployments import NOWHERE, ModelDeployments

pytestmark = [pytest.mark.cluster, pytest.mark.model, pytest.mark.timeout(600)]


def _workload(models: ModelDeployments, name: str) -> Object:
    def look() -> Object | None:
        return models.kube.get(DEPLOYMENT, name, models.namespace)

    return models.kube.wait("the workload", look, seconds=120, namespace=models.namespace)


def test_edits_by_hand_are_put_back_and_what_was_added_stays(models: ModelDeployments) -> None:
    models.apply("drift", podTemplate=NOWHERE)
    _workload(models, "drift")
    edit = {
        "metadata": {"labels": {"team": "search"}, "annotations": {"note": "mine"}},
        "spec": {"replicas": 0, "template": {"spec": {"terminationGracePeriodSeconds": 1}}},
    }
    models.kube.patch(DEPLOYMENT, "drift", models.namespace, edit)

    def is_repaired() -> bool:
        spec = _workload(models, "drift")["spec"]
        grace: int = spec["template"]["spec"]["terminationGracePeriodSeconds"]
        return (spec["replicas"], grace) == (1, 90)

    models.kube.wait("repaired", is_repaired, seconds=50, namespace=models.namespace)
    metadata = _workload(models, "drift")["metadata"]
    assert metadata["labels"]["team"] == "search"
    assert metadata["annotations"]["note"] == "mine"


def test_deleted_children_come_back(models: ModelDeployments) -> None:
    models.apply("returns", podTemplate=NOWHERE)
    _workload(models, "returns")
    for kind, name in (("v1/Service", "returns"), ("v1/ServiceAccount", "returns")):

        def look(kind: str = kind, name: str = name) -> Object | None:
            return models.kube.get(kind, name, models.namespace)

        before = models.kube.wait(kind, look, seconds=120, namespace=models.namespace)
        models.kube.delete(kind, name, models.namespace)

        def is_new(before: Object = before, kind: str = kind, name: str = name) -> bool:
            found = models.kube.get(kind, name, models.namespace)
            return found is not None and found["metadata"]["uid"] != before["metadata"]["uid"]

        models.kube.wait(f"{kind} again", is_new, seconds=50, namespace=models.namespace)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_deletion_in_the_middle_of_creation_leaves_nothing(
    models: ModelDeployments, steps: int
) -> None:
    """Deleted when nothing, something, or the whole workload has been made.

    A replica that only starts does not wait for its time to drain.
    """
    models.apply("brief", rollout={"drainSeconds": 600})
    if steps:

        def are_made() -> bool:
            return len(models.leftovers()) >= steps

        models.kube.wait(f"{steps} children", are_made, seconds=50, namespace=models.namespace)
    models.delete("brief")
    models.kube.wait(
        "nothing left", lambda: not models.leftovers(), seconds=120, namespace=models.namespace
    )
    with models.openai() as client:
        models.kube.wait(
            "not served", lambda: "brief" not in {m.id for m in client.models.list()}, seconds=50
        )


def test_with_no_namespaces_named_the_whole_cluster_is_served(octavo: Installation) -> None:
    """The chart's default, with a ClusterRole; the other tests keep to namespaces of their own."""
    everywhere = octavo.kube.list(MODEL_DEPLOYMENT)
    if {each["metadata"]["namespace"] for each in everywhere} - {NAMESPACE, OTHER_NAMESPACE}:
        pytest.skip("this cluster has ModelDeployments of others, which must not be touched")
    namespace = "octavo-test-new"
    octavo.upgrade(namespaces=[])
    octavo.kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    models = ModelDeployments(octavo.kube, namespace, octavo.router_url)
    try:
        models.apply("anywhere", podTemplate=NOWHERE)
        models.wait_for_condition("anywhere", "Degraded", "True", "Unschedulable")
        _assert_nothing_refused(octavo)
        models.delete_all()
    finally:
        octavo.kube.delete("v1/Namespace", namespace)
        octavo.upgrade()


def test_the_operator_is_refused_nothing_and_logs_no_error(octavo: Installation) -> None:
    """It runs with the chart's service account and role; any verb they lack would show here."""
    _assert_nothing_refused(octavo)


def _assert_nothing_refused(octavo: Installation) -> None:
    for pod in octavo.pods("operator"):
        name = pod["metadata"]["name"]
        log = octavo.kube.logs(name, pod["metadata"]["namespace"], lines=-1)
        for sign in ("forbidden", "Forbidden", " 403", "Traceback"):
            lines = [line for line in log.splitlines() if sign in line]
            assert not lines, f"{name}: {lines[:3]}"
