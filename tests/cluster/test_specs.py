"""Specs that cannot work, and what their status says; the last good state keeps serving."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
import yaml

from tests.cluster.environment import ROOT
from tests.cluster.kube import (
    DEPLOYMENT,
    LORA_ADAPTER,
    MODEL_DEPLOYMENT,
    Object,
    conditions,
    is_seen,
    is_true,
)
from tests.cluster.model_deployments import NOWHERE, SPEC, ModelDeployments

pytestmark = [pytest.mark.cluster, pytest.mark.model, pytest.mark.timeout(600)]

# No node has it; nothing pulls it.
MISSING_IMAGE = "octavo-runtime:missing"


def _patch(models: ModelDeployments, name: str, **spec: Any) -> Object:
    return models.kube.patch(MODEL_DEPLOYMENT, name, models.namespace, {"spec": spec})


def _answers(models: ModelDeployments, name: str) -> bool:
    with models.openai() as client:
        done = client.completions.create(model=name, prompt="Once", max_tokens=2, temperature=0)
        return bool(done.choices[0].text)


@contextmanager
def _server_without_rules(models: ModelDeployments) -> Iterator[None]:
    """While it lasts, the API server checks fields one by one, as one without CEL does."""
    definitions = ROOT / "crds" / "modeldeployments.octavo.dev.yaml"
    words = ("apply", "--server-side", "--force-conflicts", "-f", "-")
    text = definitions.read_text(encoding="utf-8")
    models.kube.kubectl(*words, stdin=json.dumps(_without_rules(yaml.safe_load(text))))
    try:
        yield
    finally:
        models.kube.kubectl(*words, stdin=text)


def _without_rules(part: Any) -> Any:
    if isinstance(part, dict):
        kept = {key: each for key, each in part.items() if key != "x-kubernetes-validations"}
        return {key: _without_rules(each) for key, each in kept.items()}
    return [_without_rules(each) for each in part] if isinstance(part, list) else part


def test_old_replicas_serve_while_a_spec_is_wrong_and_the_repaired_one_is_rolled_out(
    models: ModelDeployments,
) -> None:
    models.apply("repaired")
    models.wait_until_ready("repaired")
    pods = {pod["metadata"]["name"] for pod in models.pods("repaired")}

    with _server_without_rules(models):
        wrong = {"extraArgs": ["--port=1"], "maxNumSeqs": 6}
        accepted = partial(_patch, models, "repaired", engine=wrong)
        models.kube.wait("a wrong spec accepted", accepted, seconds=90)
        condition = models.wait_for_condition("repaired", "Valid", "False", "Invalid")
        assert "spec.engine.extraArgs" in condition["message"]
        assert "--port" in condition["message"]
        assert "the last valid spec is served" in condition["message"]
        models.wait_for_condition("repaired", "Ready", "True", "ServingOlderSpec")
        assert _answers(models, "repaired")
        assert {pod["metadata"]["name"] for pod in models.pods("repaired")} == pods
        _patch(models, "repaired", engine={"extraArgs": None})

    models.wait_for_condition("repaired", "Valid", "True")
    models.wait_until_ready("repaired")
    assert {pod["metadata"]["name"] for pod in models.pods("repaired")}.isdisjoint(pods)


def test_old_replicas_serve_while_an_image_is_missing(models: ModelDeployments) -> None:
    models.apply("image")
    models.wait_until_ready("image")
    pods = {pod["metadata"]["name"] for pod in models.pods("image")}

    _patch(models, "image", image=MISSING_IMAGE)
    condition = models.wait_for_condition("image", "Degraded", "True", "ImagePullFailed")
    assert MISSING_IMAGE in condition["message"]
    models.wait_for_condition("image", "Ready", "True", "ServingOlderSpec")
    assert _answers(models, "image")

    _patch(models, "image", image=None)
    models.wait_for_condition("image", "Degraded", "False")
    models.wait_until_ready("image")
    assert {pod["metadata"]["name"] for pod in models.pods("image")} == pods


def test_a_runtime_that_refuses_its_flags_shows_its_own_words(models: ModelDeployments) -> None:
    engine = {**SPEC["engine"], "extraArgs": ["--no-such-flag"]}
    models.apply("refused", engine=engine, rollout={"drainSeconds": 0})
    condition = models.wait_for_condition("refused", "Degraded", "True", "ContainerFailed")
    assert "--no-such-flag" in condition["message"]
    assert models.wait_for_condition("refused", "Ready", "False")


def test_a_pod_that_no_node_takes_says_so_in_the_schedulers_words(
    models: ModelDeployments,
) -> None:
    models.apply("huge", resources={**SPEC["resources"], "cpu": "1000"})
    condition = models.wait_for_condition("huge", "Degraded", "True", "Unschedulable")
    assert "Insufficient cpu" in condition["message"]
    assert models.get("huge")["status"]["readyReplicas"] == 0


def test_gpu_replicas_are_scheduled_on_nodes_with_gpus_and_a_missing_device_is_told(
    models: ModelDeployments,
) -> None:
    """The nodes count GPUs that are not there: scheduling is real, the device is not."""
    nodes = models.kube.list("v1/Node")
    if not any("nvidia.com/gpu" in node["status"]["allocatable"] for node in nodes):
        pytest.skip("no node counts nvidia.com/gpu")
    models.apply_exactly("gpu", {"model": SPEC["model"], "rollout": SPEC["rollout"]})

    def is_scheduled() -> Object | None:
        placed = [pod for pod in models.pods("gpu") if pod["spec"].get("nodeName")]
        return placed[0] if placed else None

    pod = models.kube.wait("pod on a node", is_scheduled, seconds=120, namespace=models.namespace)
    limits = pod["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "1"
    condition = models.wait_for_condition("gpu", "Degraded", "True", "ContainerFailed", seconds=120)
    assert "device is cuda" in condition["message"]


def test_more_gpus_than_any_node_has_are_unschedulable(models: ModelDeployments) -> None:
    engine = {"tensorParallelSize": 64}
    models.apply_exactly("many-gpus", {"model": SPEC["model"], "engine": engine})
    condition = models.wait_for_condition("many-gpus", "Degraded", "True", "Unschedulable")
    assert "nvidia.com/gpu" in condition["message"]


def _age_s(found: Object) -> float:
    made = datetime.fromisoformat(found["metadata"]["creationTimestamp"])
    return (datetime.now(UTC) - made).total_seconds()


def test_a_served_name_belongs_to_the_older_deployment(
    models: ModelDeployments, other_models: ModelDeployments
) -> None:
    older = models.apply("first", servedNames=["popular"], podTemplate=NOWHERE)
    models.wait_for_condition("first", "Registered", "True")
    # Ages are told in whole seconds.
    models.kube.wait("a second later", lambda: _age_s(older) > 1, seconds=5)
    other_models.apply("second", servedNames=["popular"], podTemplate=NOWHERE)
    condition = other_models.wait_for_condition("second", "Ready", "False", "NameTaken")
    assert "popular" in condition["message"]
    assert f"{models.namespace}/first" in condition["message"]

    models.delete("first")
    other_models.wait_for_condition("second", "Registered", "True")


def test_a_paused_deployment_is_left_alone_until_it_goes_on(models: ModelDeployments) -> None:
    models.apply("paused", podTemplate=NOWHERE)

    def workload() -> Object | None:
        return models.kube.get(DEPLOYMENT, "paused", models.namespace)

    models.kube.wait("the workload", workload, seconds=120, namespace=models.namespace)
    _patch(models, "paused", paused=True)
    models.wait("paused", "seen", is_seen, seconds=90)
    _patch(models, "paused", engine={"maxNumSeqs": 5}, replicas=2)
    models.wait("paused", "seen", is_seen, seconds=90)
    before = workload()
    assert before is not None
    assert before["spec"]["replicas"] == 1
    assert "5" not in before["spec"]["template"]["spec"]["containers"][0]["args"]

    _patch(models, "paused", paused=False)

    def is_changed() -> bool:
        found = workload()
        assert found is not None
        arguments = found["spec"]["template"]["spec"]["containers"][0]["args"]
        return found["spec"]["replicas"] == 2 and "5" in arguments

    models.kube.wait("changed", is_changed, seconds=120, namespace=models.namespace)


def test_an_adapter_that_no_replica_can_load_is_not_called_loaded(
    models: ModelDeployments,
) -> None:
    """There is no room for it: statuses say so, and the model serves."""
    models.apply("adapted")
    models.wait_until_ready("adapted")
    models.kube.apply(
        {
            "apiVersion": "octavo.dev/v1alpha1",
            "kind": "LoraAdapter",
            "metadata": {"name": "poet", "namespace": models.namespace},
            "spec": {"model": {"source": "hf://org/poet"}, "target": {"name": "adapted"}},
        }
    )
    condition = models.wait_for_condition("adapted", "AdaptersLoaded", "False", "NoRoom")
    assert "poet" in condition["message"]

    def told() -> Object | None:
        found = models.kube.get(LORA_ADAPTER, "poet", models.namespace)
        return found if found and conditions(found) else None

    adapter = models.kube.wait("the adapter's status", told, seconds=120)
    assert adapter["status"]["loadedReplicas"] == 0
    assert conditions(adapter)["Ready"]["reason"] == "NoRoom"
    assert _answers(models, "adapted")

    models.kube.delete(LORA_ADAPTER, "poet", models.namespace)
    models.wait(
        "adapted", "without adapters", lambda found: "AdaptersLoaded" not in conditions(found)
    )
    assert is_true(models.get("adapted"), "Ready")


def test_a_setting_that_the_runtime_lacks_is_told_and_old_replicas_serve(
    models: ModelDeployments,
) -> None:
    models.apply("ahead")
    models.wait_until_ready("ahead")
    _patch(models, "ahead", engine={"quantization": "fp8"})
    condition = models.wait_for_condition("ahead", "Degraded", "True", "ContainerFailed")
    assert "--quantization fp8" in condition["message"]
    assert _answers(models, "ahead")
