"""One release from install to reinstall, by Helm itself, beside the release of the other tests.

The tests are one story and run in this order.
"""

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.helm.release import MODELS, POD, RELEASE, SECONDS, SYSTEM, Release
from tests.cluster.installation import CHART
from tests.cluster.kube import DEPLOYMENT, MODEL_DEPLOYMENT, Kube, Object

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

MODEL: Object = {
    "apiVersion": "octavo.dev/v1alpha1",
    "kind": "ModelDeployment",
    "metadata": {"name": "story", "namespace": MODELS},
    "spec": {"model": {"source": "smollm2"}, "replicas": 0},
}


@pytest.fixture(scope="module")
def release(kube: Kube, values: dict[str, Any]) -> Iterator[Release]:
    """Definitions, namespaces and values; the tests install."""
    values = copy.deepcopy(values)
    values["operator"] |= {"namespaces": [MODELS], "replicas": 1}
    values["router"] |= {"replicas": 1, "drainDelaySeconds": 0, "drainTimeoutSeconds": 5}
    values["redis"]["persistence"] = {"enabled": True, "size": "64Mi"}
    made = Release(kube, values)
    made.remove()
    kube.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CHART / "crds"))
    for name in (SYSTEM, MODELS):
        kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    made.make_volume()
    yield made
    made.remove()


def test_an_install_becomes_ready_and_says_what_to_do_next(release: Release) -> None:
    installed = release.install()

    release.wait_until_ready()
    assert installed["status"] == "deployed"
    assert f"kubectl -n {SYSTEM} rollout status" in installed["notes"]
    assert "is not this chart's" not in installed["notes"]


def test_a_model_is_planned_with_the_pod_defaults_of_the_values(release: Release) -> None:
    release.kube.apply(MODEL)
    release.wait_until_reconciled()

    made = release.kube.get(DEPLOYMENT, "story", MODELS)
    assert made is not None
    [container] = made["spec"]["template"]["spec"]["containers"]
    defaults = release.values["runtime"]["podDefaults"]["env"]
    assert [each for each in container["env"] if each in defaults] == defaults


def test_an_upgrade_replaces_only_what_changed_and_keeps_the_password(release: Release) -> None:
    before = {part: release.pods(part) for part in ("operator", "router", "redis")}
    password = release.password()

    router = {
        "drainTimeoutSeconds": 6,
        "autoscaling": {"enabled": True, "minReplicas": 1, "maxReplicas": 2},
        "ingress": {"enabled": True, "hosts": ["story.example.com"]},
    }
    release.upgrade(router=router, monitoring={"dashboard": {"enabled": True}})
    release.wait_until_ready()

    assert release.pods("operator") == before["operator"]
    assert release.pods("redis") == before["redis"]
    assert not release.pods("router") & before["router"]
    assert release.password() == password
    added = {f"{kind}/{RELEASE}-router" for kind in ("HorizontalPodAutoscaler", "Ingress")}
    assert {f"ConfigMap/{RELEASE}-dashboard", *added} <= release.objects()


def test_other_pod_defaults_restart_the_operator(release: Release) -> None:
    before = release.pods("operator")
    defaults = {**release.values["runtime"]["podDefaults"], "labels": {"story": "yes"}}

    release.upgrade(runtime={"podDefaults": defaults})
    release.wait_until_ready()

    assert not release.pods("operator") & before


def test_a_rollback_takes_the_values_of_the_revision(release: Release) -> None:
    with release.helm() as helm:
        helm.rollback(RELEASE, version=1)
    release.wait_until_ready()

    router = release.kube.get(DEPLOYMENT, f"{RELEASE}-router", SYSTEM)
    assert router is not None
    assert "--drain-timeout=5" in router["spec"]["template"]["spec"]["containers"][0]["args"]
    assert f"ConfigMap/{RELEASE}-dashboard" not in release.objects()


def test_redis_keeps_its_data_over_a_restart(release: Release) -> None:
    before = release.pods("redis")
    assert release.redis("SET", "story", "kept") == "OK"

    release.kube.delete(POD, f"{RELEASE}-redis-0", SYSTEM)
    release.kube.wait(
        "another pod of Redis",
        lambda: release.pods("redis") - before,
        seconds=SECONDS,
        namespace=SYSTEM,
    )
    release.wait_until_ready()

    assert release.redis("GET", "story") == "kept"


def test_redis_lets_nobody_in_without_the_password(release: Release) -> None:
    command = "redis-cli GET story"
    answer = release.kube.kubectl(
        *("-n", SYSTEM, "exec", f"{RELEASE}-redis-0", "--", "sh", "-c", command)
    )
    assert "NOAUTH" in answer


def test_an_upgrade_says_when_the_definitions_in_the_cluster_are_older(
    release: Release, tmp_path: Path
) -> None:
    newer = tmp_path / "octavo"
    shutil.copytree(CHART, newer)
    definition = newer / "crds" / "loraadapters.octavo.dev.yaml"
    definition.write_text(definition.read_text().replace("description: ", "description: New. ", 1))

    assert "is not this chart's" not in release.notes(CHART)
    assert "CustomResourceDefinition loraadapters.octavo.dev" in release.notes(newer)


def test_an_uninstall_leaves_models_definitions_password_and_data(release: Release) -> None:
    with release.helm() as helm:
        helm.uninstall(RELEASE)
    left = {f"Secret/{RELEASE}-redis-password", f"PersistentVolumeClaim/data-{RELEASE}-redis-0"}

    release.kube.wait(
        "everything else gone",
        lambda: release.objects() == left,
        seconds=SECONDS,
        namespace=SYSTEM,
    )
    assert release.kube.get(MODEL_DEPLOYMENT, "story", MODELS) is not None
    assert release.kube.get(DEPLOYMENT, "story", MODELS) is not None


def test_a_reinstall_takes_up_password_data_and_models(release: Release) -> None:
    password = release.password()
    release.kube.patch(MODEL_DEPLOYMENT, "story", MODELS, {"spec": {"servedNames": ["tale"]}})

    release.install()
    release.wait_until_ready()
    release.wait_until_reconciled()

    assert release.password() == password
    assert release.redis("GET", "story") == "kept"
