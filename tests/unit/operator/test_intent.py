"""Which spec is served while the written one cannot be: the last good state keeps serving."""

from dataclasses import replace
from typing import Any

from tests.fakes.observations import (
    NAME,
    SETTINGS,
    applied,
    condition,
    deployment,
    later,
    observe,
    pod,
    settled,
    waiting,
)

from octavo_operator.children.model_cache import folder_key
from octavo_operator.decide import decide
from octavo_operator.desired import Desired, Manifest, ObjectRef
from octavo_operator.names import DOWNLOAD_COMPONENT, labels
from octavo_operator.observed import ModelFacts, Observed
from octavo_protocol.records import DownloadRecord
from octavo_protocol.resources.model_source import ModelSource

HUGE = ModelFacts(70_000_000_000, 2.0, 320 * 1024, 1024, 8192)
CLAIM: dict[str, Any] = {"claim": {"size": "10Gi"}}


def rewritten(observed: Observed, resource: Manifest) -> Observed:
    """The owner writes another spec."""
    status = observed.deployment.get("status", {})
    return replace(observed, deployment={**resource, "status": status})


def kinds(desired: Desired) -> list[str]:
    return [each["kind"] for each in desired.children or ()]


def child(desired: Desired, kind: str) -> Manifest:
    return next(each for each in desired.children or () if each["kind"] == kind)


def served_model(desired: Desired) -> str:
    template = child(desired, "Deployment")["spec"]["template"]
    model: str = template["spec"]["containers"][0]["args"][1]
    return model


def with_job(observed: Observed, type_: str, message: str = "") -> Observed:
    """The download Job has come to that condition."""
    ended = {
        "type": type_,
        "status": "True",
        "message": message,
        "lastTransitionTime": "2026-03-01T12:00:00Z",
    }
    children = [
        {**each, "status": {"conditions": [ended]}} if each["kind"] == "Job" else each
        for each in observed.children
    ]
    return replace(observed, children=children)


def test_an_invalid_spec_names_its_fields_and_changes_no_child() -> None:
    good = settled(deployment(replicas=2), 2)
    before = decide(good, SETTINGS)
    bad = deployment(generation=2, engine={"maxModelLen": "long", "blockSize": 0}, replicas=5)
    desired = decide(rewritten(good, bad), SETTINGS)
    status, reason, message = condition(desired, "Valid")

    assert (status, reason) == ("False", "Invalid")
    assert "spec.engine.maxModelLen: " in message
    assert "spec.engine.blockSize: " in message
    assert message.endswith("; the last valid spec is served")
    assert desired.children == before.children
    assert desired.removed == ()
    assert desired.registration == before.registration
    assert condition(desired, "Ready")[:2] == ("True", "ServingOlderSpec")
    assert desired.status["desiredReplicas"] == 2
    assert [(each.type, each.reason) for each in desired.events] == [("Warning", "Invalid")]


def test_an_invalid_spec_that_is_repaired_is_valid_again_with_one_event() -> None:
    good = settled(deployment(), 1)
    bad = rewritten(good, deployment(generation=2, replicas=-1))
    after = applied(bad, decide(bad, SETTINGS))
    desired = decide(rewritten(after, deployment(generation=3)), SETTINGS)

    assert condition(desired, "Valid")[:2] == ("True", "Valid")
    assert condition(desired, "Ready")[:2] == ("True", "Serving")
    assert [(each.type, each.reason) for each in desired.events] == [("Normal", "Valid")]


def test_a_spec_that_was_never_valid_plans_nothing() -> None:
    desired = decide(observe(deployment("no such://source")), SETTINGS)

    assert desired.children is None
    assert desired.registration is None
    assert condition(desired, "Ready")[:2] == ("False", "Invalid")
    assert condition(desired, "Progressing")[:2] == ("False", "Invalid")


def test_the_last_good_spec_is_repaired_though_the_written_one_is_invalid() -> None:
    good = settled(deployment(), 1)
    bad = rewritten(good, deployment(generation=2, replicas=-1))
    without_service = [each for each in bad.children if each["kind"] != "Service"]
    desired = decide(replace(bad, children=without_service), SETTINGS)

    assert "Service" in kinds(desired)


def test_an_annotation_that_somebody_broke_leaves_everything_as_it_is() -> None:
    good = settled(deployment(), 1)
    for broken in ("{", "[]", '{"model": 3}', ""):
        children = [
            {
                **each,
                "metadata": {
                    **each["metadata"],
                    "annotations": {"octavo.dev/last-good-spec": broken},
                },
            }
            for each in good.children
        ]
        observed = replace(rewritten(good, deployment(replicas=-1)), children=children)
        desired = decide(observed, SETTINGS)

        assert desired.children is None
        assert condition(desired, "Ready")[0] == "True"


def test_paused_changes_nothing_and_keeps_the_registration_of_what_runs() -> None:
    good = settled(deployment(replicas=2), 2)
    paused = deployment(generation=2, replicas=9, servedNames=["new"], paused=True)
    desired = decide(rewritten(good, paused), SETTINGS)

    assert desired.children is None
    assert desired.removed == ()
    assert desired.registration == decide(good, SETTINGS).registration
    assert condition(desired, "Progressing")[:2] == ("False", "Paused")
    assert condition(desired, "Ready")[:2] == ("True", "Serving")
    assert desired.status["desiredReplicas"] == 2


def test_paused_from_the_start_makes_nothing() -> None:
    desired = decide(observe(deployment(paused=True)), SETTINGS)

    assert desired.children is None
    assert condition(desired, "Ready")[0] == "False"


def test_a_deployment_that_is_being_deleted_is_left_alone() -> None:
    resource = settled(deployment(), 1).deployment
    gone = {**resource, "metadata": {**resource["metadata"], "deletionTimestamp": "x"}}
    desired = decide(observe(gone), SETTINGS)

    assert desired.children is None
    assert desired.registration is None
    assert desired.status == resource["status"]
    assert desired.events == ()


def test_a_new_model_that_cannot_fit_is_not_made() -> None:
    resource = deployment(resources={})
    desired = decide(observe(resource, facts=HUGE, gpu_memory_mib=81920), SETTINGS)

    assert desired.children is None
    assert condition(desired, "Fits")[:2] == ("False", "DoesNotFit")
    assert condition(desired, "Ready")[:2] == ("False", "DoesNotFit")
    assert "weights 130.4 GiB" in condition(desired, "Fits")[2]


def test_a_model_that_cannot_fit_leaves_the_last_good_one_serving() -> None:
    good = settled(deployment(resources={}), 1)
    bad = rewritten(good, deployment("hf://big/one", generation=2, resources={}))
    desired = decide(replace(bad, facts=HUGE, gpu_memory_mib=81920), SETTINGS)

    assert desired.children == decide(good, SETTINGS).children
    assert condition(desired, "Ready")[0] == "True"
    assert [each.reason for each in desired.events] == ["DoesNotFit"]


def test_what_serves_already_is_not_refused_when_its_size_becomes_known() -> None:
    serving = settled(deployment(resources={}), 1)
    desired = decide(replace(serving, facts=HUGE, gpu_memory_mib=81920), SETTINGS)

    assert condition(desired, "Fits")[:2] == ("False", "DoesNotFit")
    assert condition(desired, "Ready")[:2] == ("True", "Serving")
    assert desired.children == decide(serving, SETTINGS).children


def test_the_workload_waits_for_the_download_of_its_model() -> None:
    resource = deployment("hf://org/m", cache=CLAIM)
    desired = decide(observe(resource), SETTINGS)

    assert kinds(desired) == ["ServiceAccount", "Secret", "PersistentVolumeClaim", "Job", "Service"]
    assert condition(desired, "ModelCached")[:2] == ("False", "Downloading")
    assert condition(desired, "Progressing")[:2] == ("True", "WaitingForModel")
    assert condition(desired, "Ready")[:2] == ("False", "WaitingForModel")
    assert desired.events == ()
    arguments = child(desired, "Job")["spec"]["template"]["spec"]["containers"][0]["args"]
    folder = f"/models/{folder_key(ModelSource(source='hf://org/m'))}"
    pull = ["models", "pull", "hf://org/m", "--to", folder]
    assert arguments == [*pull, "--namespace", "team", "--deployment", NAME]


def test_a_model_that_is_downloaded_is_served_read_only_from_its_claim() -> None:
    first = observe(deployment("hf://org/m", cache=CLAIM))
    done = with_job(applied(first, decide(first, SETTINGS)), "Complete")
    desired = decide(done, SETTINGS)

    assert condition(desired, "ModelCached")[:2] == ("True", "Downloaded")
    assert served_model(desired) == f"/models/{folder_key(ModelSource(source='hf://org/m'))}"
    mounts = child(desired, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert {"name": "models", "mountPath": "/models", "readOnly": True} in mounts["volumeMounts"]


def test_an_existing_claim_is_used_and_not_made() -> None:
    desired = decide(observe(deployment(cache={"claim": {"name": "shared"}})), SETTINGS)

    assert "PersistentVolumeClaim" not in kinds(desired)
    volumes = child(desired, "Job")["spec"]["template"]["spec"]["volumes"]
    assert {"name": "models", "persistentVolumeClaim": {"claimName": "shared"}} in volumes


def serving_from_claim(source: str = "hf://org/m", **spec: Any) -> Observed:
    first = observe(deployment(source, cache=CLAIM, **spec))
    done = with_job(applied(first, decide(first, SETTINGS)), "Complete")
    return applied(done, decide(done, SETTINGS))


def test_another_model_is_fetched_first_and_rolled_out_after_it() -> None:
    serving = serving_from_claim()
    changed = rewritten(serving, deployment("hf://org/new", generation=2, replicas=3, cache=CLAIM))
    fetching = decide(changed, SETTINGS)

    assert served_model(fetching) == served_model(decide(serving, SETTINGS))
    assert child(fetching, "Deployment")["spec"]["replicas"] == 3
    assert child(fetching, "Job") != child(decide(serving, SETTINGS), "Job")

    fetched = with_job(applied(changed, fetching), "Complete")
    assert served_model(decide(fetched, SETTINGS)) == (
        f"/models/{folder_key(ModelSource(source='hf://org/new'))}"
    )


def test_jobs_of_models_that_are_no_longer_wanted_are_removed() -> None:
    serving = serving_from_claim()
    old = next(each for each in serving.children if each["kind"] == "Job")
    changed = rewritten(serving, deployment("hf://org/new", generation=2, cache=CLAIM))

    assert decide(changed, SETTINGS).removed == (
        ObjectRef("batch/v1", "Job", old["metadata"]["name"]),
    )


def mounting(phase: str) -> Manifest:
    """A pod that has the deployment's claim."""
    claim = {"name": "models", "persistentVolumeClaim": {"claimName": "chat-models"}}
    made = pod("chat-0", status={"phase": phase})
    return {**made, "spec": {**made["spec"], "volumes": [claim]}}


def test_without_its_cache_a_deployment_loses_its_job_and_then_the_claim_that_no_pod_has() -> None:
    serving = serving_from_claim(replicas=2)
    changed = rewritten(serving, deployment("hf://org/m", generation=2))
    desired = decide(changed, SETTINGS)
    rolling = replace(applied(changed, desired), pods=[mounting("Running")])
    rolled = replace(rolling, pods=[mounting("Succeeded")])

    assert served_model(desired) == "hf://org/m"
    assert [each.kind for each in desired.removed] == ["Job", "PodDisruptionBudget"]
    assert decide(rolling, SETTINGS).removed == (), "its pod could not be made again without"
    assert decide(rolled, SETTINGS).removed == (
        ObjectRef("v1", "PersistentVolumeClaim", "chat-models"),
    )


def test_a_served_model_does_not_wait_for_a_job_that_is_made_again() -> None:
    """Another image gives the Job another name; the folder is the same and complete."""
    serving = serving_from_claim()
    changed = rewritten(
        serving, deployment("hf://org/m", generation=2, cache=CLAIM, image="octavo-runtime:2")
    )
    desired = decide(changed, SETTINGS)

    assert condition(desired, "ModelCached")[:2] == ("True", "Downloaded")
    assert child(desired, "Deployment")["spec"]["template"]["spec"]["containers"][0]["image"] == (
        "octavo-runtime:2"
    )


def test_a_failing_download_tells_what_its_pod_says() -> None:
    first = observe(deployment("hf://org/m", cache=CLAIM))
    made = applied(first, decide(first, SETTINGS))
    job = next(each for each in made.children if each["kind"] == "Job")["metadata"]["name"]
    failed = pod("dl-1", status=waiting("ErrImagePull"))
    failed["metadata"]["labels"] = labels(NAME, DOWNLOAD_COMPONENT) | {"job-name": job}
    again = {**failed, "metadata": {**failed["metadata"], "name": "dl-2"}, "status": {}}
    desired = decide(replace(made, pods=[failed, again]), SETTINGS)

    assert condition(desired, "ModelCached")[:2] == ("False", "DownloadFailing")
    assert "pod dl-1: container engine: cannot pull image" in condition(desired, "ModelCached")[2]
    assert condition(desired, "Degraded")[:2] == ("True", "DownloadFailing")
    assert desired.status["replicas"] == 0


def test_a_failed_download_is_made_again_after_a_while() -> None:
    first = observe(deployment("hf://org/m", cache=CLAIM))
    made = applied(first, decide(first, SETTINGS))
    failed = with_job(made, "Failed", "Job has reached the specified backoff limit")
    soon = decide(later(failed, 60), SETTINGS)

    assert condition(soon, "ModelCached")[:2] == ("False", "DownloadFailed")
    assert "it is made again at 2026-03-01T12:05:00Z" in condition(soon, "ModelCached")[2]
    assert soon.look_again_s == 240
    assert "Job" in kinds(soon)

    due = later(failed, 301)
    desired = decide(due, SETTINGS)
    assert "Job" not in kinds(desired)
    assert [each.kind for each in desired.removed] == ["Job"]
    again = decide(applied(due, desired), SETTINGS)
    assert condition(again, "ModelCached")[:2] == ("False", "Downloading")
    assert "Job" in kinds(again)


def test_progress_of_a_download_is_told_in_steps() -> None:
    def message(done: int) -> str:
        folder = f"/models/{folder_key(ModelSource(source='hf://org/m'))}"
        progress = DownloadRecord(folder, "downloading m", done, 10 * 2**30)
        observed = observe(deployment("hf://org/m", cache=CLAIM), download=progress)
        return condition(decide(observed, SETTINGS), "ModelCached")[2]

    assert message(41 * 2**26).endswith(": downloading m, 25% of 10.0 GiB")
    assert message(42 * 2**26) == message(41 * 2**26)


def test_progress_without_a_total_tells_what_has_come() -> None:
    source = ModelSource(source="hf://org/m", revision="v1")
    progress = DownloadRecord(f"/models/{folder_key(source)}", "downloading m", 3 * 2**30)
    resource = deployment(model={"source": "hf://org/m", "revision": "v1"}, cache=CLAIM)
    desired = decide(observe(resource, download=progress), SETTINGS)

    assert condition(desired, "ModelCached")[2].endswith("chat-models: downloading m, 3 GiB done")
    assert (
        "--revision" in child(desired, "Job")["spec"]["template"]["spec"]["containers"][0]["args"]
    )


def test_progress_of_another_model_is_not_taken_for_that_of_the_wanted_one() -> None:
    progress = DownloadRecord("/models/former-0123456789", "downloading former", 2**30, 2**31)
    desired = decide(observe(deployment("hf://org/m", cache=CLAIM), download=progress), SETTINGS)

    assert condition(desired, "ModelCached")[2].endswith("into claim chat-models")


def test_a_claim_and_its_job_take_the_storage_class_and_the_pods_annotations() -> None:
    cache = {"claim": {"storageClassName": "fast", "size": "1024Mi"}}
    overlay = {"annotations": {"sidecar.istio.io/inject": "false"}}
    desired = decide(observe(deployment(cache=cache, podTemplate=overlay)), SETTINGS)

    assert child(desired, "PersistentVolumeClaim")["spec"] == {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "1Gi"}},
        "storageClassName": "fast",
    }
    assert (
        child(desired, "Job")["spec"]["template"]["metadata"]["annotations"]
        == (overlay["annotations"])
    )


def test_a_spec_too_long_to_be_kept_is_served_all_the_same() -> None:
    adapters = [{"name": f"a{i}", "model": {"source": f"hf://{'x' * 600}/{i}"}} for i in range(300)]
    desired = decide(observe(deployment(adapters=adapters)), SETTINGS)

    assert "annotations" not in child(desired, "Deployment")["metadata"]


def test_the_folder_goes_by_source_and_revision_alone() -> None:
    keys = [
        folder_key(ModelSource(source="hf://org/Model.1")),
        folder_key(ModelSource(source="hf://org/Model.1", revision="a")),
        folder_key(ModelSource(source="hf://other/Model.1")),
        folder_key(ModelSource(source="hf://org/___")),
    ]

    assert len(set(keys)) == 4
    assert keys[0].startswith("model-1-")
