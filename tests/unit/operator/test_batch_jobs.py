"""What the operator decides of a BatchJob: its Job, its status, and when it is over."""

from dataclasses import replace
from typing import Any

import pytest
from tests.fakes.batch_jobs import (
    BATCH,
    UID,
    batch,
    batch_job,
    conditions,
    ended_pod,
    later,
    observe,
    pod,
    summary,
)
from tests.fakes.observations import SETTINGS

from octavo_operator.batch_jobs.decide import decide
from octavo_operator.batch_jobs.observed import DesiredBatchJob, ObservedBatchJob
from octavo_operator.batch_jobs.open_batches import owner_of
from octavo_operator.queue import Key
from octavo_operator.settings import OperatorSettings
from octavo_protocol.batch_runs import decode_summary


def decided(observed: ObservedBatchJob) -> DesiredBatchJob:
    return decide(observed, SETTINGS)


def begun(**fields: Any) -> ObservedBatchJob:
    """A BatchJob whose Job is there, and what else has come true."""
    first = observe()
    return later(first, decided(first), **fields)


def container(desired: DesiredBatchJob) -> dict[str, Any]:
    assert desired.job is not None
    [found] = desired.job["spec"]["template"]["spec"]["containers"]
    return dict(found)


def test_a_new_one_gets_a_job_that_runs_under_its_uid() -> None:
    desired = decided(observe())
    assert container(desired)["args"] == [
        *("batch", "run", "--input", "s3://b/in.jsonl", "--output", "s3://b/out.jsonl"),
        *("--errors", "s3://b/out.errors.jsonl", "--model", "chat"),
        *("--endpoint", "/v1/chat/completions", "--window", "24h", "--priority", "0"),
        *("--key", UID, "--metadata", "octavo.dev/batch-job=team/nightly"),
        *("--url", SETTINGS.router_url, "--summary-file", "/dev/termination-log"),
    ]
    assert desired.status["phase"] == "Pending"
    assert conditions(desired.status) == {
        "Accepted": ("True", "Accepted"),
        "Running": ("False", "Starting"),
        "Complete": ("False", "NotFinished"),
        "Failed": ("False", "NotFinished"),
    }


def test_the_pod_has_no_rights_and_no_token() -> None:
    desired = decided(observe())
    assert desired.job is not None
    spec = desired.job["spec"]["template"]["spec"]
    assert (spec["automountServiceAccountToken"], spec["serviceAccountName"]) == (False, "default")
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert container(desired)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_claims_are_mounted_and_only_those_that_are_written_can_be() -> None:
    files = {"input": {"url": "pvc://a.b/x/in"}, "output": {"url": "pvc://c/out"}}
    desired = decided(observe(batch_job(**files)))
    assert desired.job is not None
    args = container(desired)["args"]
    assert args[args.index("--input") + 1] == "/claims/a.b/x/in"
    assert args[args.index("--errors") + 1] == "/claims/c/out.errors"
    mounts = {m["mountPath"]: m.get("readOnly", False) for m in container(desired)["volumeMounts"]}
    assert mounts == {"/tmp": False, "/claims/a.b": True, "/claims/c": False}
    same = batch_job(input={"url": "pvc://c/in"}, output={"url": "pvc://c/out"})
    mounted = container(decided(observe(same)))["volumeMounts"]
    assert [each["mountPath"] for each in mounted] == ["/tmp", "/claims/c"]


def test_secrets_reach_the_pod_by_name() -> None:
    router = {"url": "http://elsewhere", "apiKeySecretRef": {"name": "keys", "key": "team"}}
    desired = decided(observe(batch_job(router=router, secretRef={"name": "bucket"})))
    assert container(desired)["envFrom"] == [{"secretRef": {"name": "bucket"}}]
    source = {"secretKeyRef": {"name": "keys", "key": "team"}}
    assert container(desired)["env"] == [{"name": "OCTAVO_API_KEY", "valueFrom": source}]
    assert "http://elsewhere" in container(desired)["args"]


@pytest.mark.parametrize(
    ("spec", "settings", "image"),
    [
        ({}, {}, "runtime:1"),
        ({}, {"batch_image": "router:1"}, "router:1"),
        ({"image": "own:1"}, {"batch_image": "router:1"}, "own:1"),
    ],
)
def test_the_image_is_the_specs_else_the_operators(
    spec: dict[str, str], settings: dict[str, str], image: str
) -> None:
    given = replace(SETTINGS, runtime_image="runtime:1", **settings)  # type: ignore[arg-type]
    assert container(decide(observe(batch_job(**spec)), given))["image"] == image


def test_a_batch_that_goes_on_is_told_with_its_numbers() -> None:
    desired = decided(begun(batch=batch(), pods=[pod(phase="Running")]))
    status = desired.status
    assert (desired.job, status["phase"], status["batchId"]) == (None, "Running", BATCH)
    assert status["counts"] == {"total": 40, "completed": 30, "failed": 2}
    assert (status["progressPercent"], status["startedAt"]) == (80, "2026-03-01T11:54:40Z")
    # 32 lines in 380 s: 8 more in 95 s.
    assert status["estimatedCompletionAt"] == "2026-03-01T12:02:35Z"
    assert conditions(status)["Running"] == ("True", "InProgress")


def test_a_batch_of_a_platform_elsewhere_runs_while_its_pod_does() -> None:
    """Whose Redis is not this one: no numbers, but no word that it has yet to start either."""
    first = observe(batch_job(router={"url": "http://elsewhere"}))

    def status(**fields: Any) -> dict[str, Any]:
        return decided(later(first, decided(first), **fields)).status

    running = status(pods=[pod(phase="Running")])
    assert (running["phase"], running["progressPercent"]) == ("Running", 0)
    found = next(each for each in running["conditions"] if each["type"] == "Running")
    assert (found["status"], found["reason"]) == ("True", "InProgress")
    assert (
        "answered by http://elsewhere; lines are counted once the operator sees the batch"
        in (found["message"])
    )
    assert status(pods=[pod(phase="Pending")])["phase"] == "Pending"
    assert status(pods=[pod(phase="Running")], batch=batch("validating"))["phase"] == "Pending"
    assert status(pods=[pod(phase="Running")], batch=batch())["progressPercent"] == 80
    assert status(pods=[ended_pod("octavo: no such router", 2)])["phase"] == "Pending"
    ended = status(pods=[ended_pod(summary(), 0)])
    assert (ended["phase"], ended["progressPercent"]) == ("Complete", 100)


def test_numbers_stay_when_redis_knows_the_batch_no_more() -> None:
    running = begun(batch=batch(), pods=[pod(phase="Running")])
    status = decided(later(running, decided(running), batch=None)).status
    assert (status["batchId"], status["progressPercent"]) == (BATCH, 80)
    assert conditions(status)["Running"] == ("False", "Starting")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"batch": batch("validating")}, "Starting"),
        ({"batch": batch("completed")}, "WritingResults"),
        ({"pods": [pod(phase="Pending")]}, "Starting"),
        ({"pods": [ended_pod("octavo: cannot read s3://b/in.jsonl", 2)]}, "ContainerFailed"),
        (
            {
                "pods": [
                    ended_pod("octavo: cannot read", 2),
                    pod("nightly-2", "2026-03-01T11:30:00Z", phase="Running"),
                ]
            },
            "Starting",
        ),
    ],
)
def test_what_it_waits_for_is_told(fields: dict[str, Any], reason: str) -> None:
    status = decided(begun(**fields)).status
    assert (status["phase"], conditions(status)["Running"]) == ("Pending", ("False", reason))


def test_a_batch_goes_on_while_nobody_waits_for_it() -> None:
    failing = ended_pod("octavo: cannot write", 2)
    status = decided(begun(batch=batch(), pods=[failing])).status
    [running] = [each for each in status["conditions"] if each["type"] == "Running"]
    assert (running["status"], "nobody waits for it: pod nightly-1" in running["message"]) == (
        "True",
        True,
    )


def test_the_last_words_of_the_pod_are_the_end() -> None:
    running = begun(batch=batch(), pods=[pod(phase="Running")])
    ended = later(running, decided(running), pods=[ended_pod(summary())])
    desired = decided(ended)
    status = desired.status
    assert (status["phase"], status["progressPercent"]) == ("Complete", 100)
    assert status["counts"] == {"total": 40, "completed": 38, "failed": 2}
    assert (status["completedAt"], "estimatedCompletionAt" in status) == (
        "2026-03-01T11:58:00Z",
        False,
    )
    assert status["outputUrl"] == "s3://b/out.jsonl"
    assert status["errorsUrl"] == "s3://b/out.errors.jsonl"
    assert conditions(status) == {
        "Accepted": ("True", "Accepted"),
        "Running": ("False", "Completed"),
        "Complete": ("True", "Completed"),
        "Failed": ("False", "Completed"),
    }
    assert [(each.type, each.reason) for each in desired.events] == [("Normal", "Completed")]


@pytest.mark.parametrize(
    ("ended", "reason"),
    [
        ("failed", "BatchFailed"),
        ("expired", "BatchExpired"),
        ("cancelled", "BatchCancelled"),
    ],
)
def test_a_batch_that_did_not_complete_has_failed_for_good(ended: str, reason: str) -> None:
    failing = begun(pods=[ended_pod(summary(ended), 1)])
    desired = decided(failing)
    assert desired.status["phase"] == "Failed"
    assert conditions(desired.status)["Failed"] == ("True", reason)
    assert [(each.type, each.reason) for each in desired.events] == [("Warning", reason)]
    after = decided(later(failing, desired))
    assert (after.job, after.stops_job, after.status) == (None, True, desired.status)


def test_a_job_that_gave_up_says_what_its_pod_said() -> None:
    running = begun()
    over = [{"type": "Failed", "status": "True", "message": "BackoffLimitExceeded"}]
    job = {**(running.job or {}), "status": {"conditions": over}}
    pods = [ended_pod("octavo: cannot read s3://b/in.jsonl: Access Denied", 2)]
    desired = decided(later(running, decided(running), job=job, pods=pods))
    assert conditions(desired.status)["Failed"] == ("True", "GaveUp")
    assert "Access Denied" in str(desired.status["conditions"])
    assert decided(later(running, desired, job=job)).stops_job is False


def test_nothing_is_made_again_after_the_end() -> None:
    ended = begun(pods=[ended_pod(summary())])
    after = decided(later(ended, decided(ended), job=None, pods=[]))
    assert (after.job, after.status) == (None, decided(ended).status)


def test_a_job_that_somebody_deleted_is_made_again_before_the_end() -> None:
    running = begun(batch=batch())
    again = decided(later(running, decided(running), job=None))
    assert container(again)["args"] == container(decided(observe()))["args"]


def test_one_that_is_over_is_deleted_in_its_time() -> None:
    resource = batch_job(ttlSecondsAfterFinished=180)
    first = observe(resource)
    ended = later(first, decided(first), pods=[ended_pod(summary())])  # 11:58:00, seen at 12:01
    assert decided(ended).is_over is False
    soon = decided(later(ended, decided(ended), seconds=-30))
    assert (soon.is_over, soon.look_again_s) == (False, 30)
    assert decided(later(ended, decided(ended), seconds=0)).is_over is True


def test_an_invalid_spec_makes_no_job_and_names_its_fields() -> None:
    desired = decided(observe(batch_job(output={"url": "https://x/y"}, priority=9999)))
    assert (desired.job, desired.status["phase"]) == (None, "Pending")
    [accepted] = [each for each in desired.status["conditions"] if each["type"] == "Accepted"]
    assert (accepted["status"], accepted["reason"]) == ("False", "Invalid")
    assert "spec.output.url: write s3://bucket/file" in accepted["message"]
    assert "spec.priority: " in accepted["message"]


def test_an_operator_without_a_router_asks_for_its_url() -> None:
    lone = OperatorSettings(runtime_image="r:1", redis_url="redis://r")
    desired = decide(observe(), lone)
    assert (desired.job, conditions(desired.status)["Accepted"]) == (None, ("False", "Invalid"))
    assert decide(observe(batch_job(router={"url": "http://x"})), lone).job is not None


def test_a_spec_that_was_changed_says_so_and_the_batch_goes_on() -> None:
    running = begun(batch=batch())
    changed = {**batch_job(model="other"), "status": running.resource["status"]}
    desired = decided(later(running, decided(running), resource=changed))
    assert desired.job is None
    assert conditions(desired.status)["Accepted"] == ("False", "SpecChanged")
    assert conditions(desired.status)["Running"] == ("True", "InProgress")


def test_a_target_gives_the_model_and_is_waited_for() -> None:
    resource = batch_job(target={"name": "chat"})
    del resource["spec"]["model"]
    missing = decided(observe(resource))
    assert (missing.job, missing.look_again_s) == (None, 10)
    assert conditions(missing.status)["Accepted"] == ("False", "TargetMissing")
    there = decided(observe(resource, target_model="org/chat"))
    args = container(there)["args"]
    assert args[args.index("--model") + 1] == "org/chat"


def test_what_the_server_refused_is_told_and_tried_again() -> None:
    desired = decided(observe(apply_error="Job nightly: exceeded quota"))
    assert desired.job is not None
    assert conditions(desired.status)["Accepted"] == ("False", "ApplyFailed")


def test_one_that_is_being_deleted_is_left_alone() -> None:
    resource = batch_job()
    resource["metadata"]["deletionTimestamp"] = "2026-03-01T11:59:00Z"
    assert decided(observe(resource)) == DesiredBatchJob(status={})


@pytest.mark.parametrize("odd", [None, 7, {}, {"output": 7}, {"input": {"url": []}}])
def test_odd_specs_never_raise(odd: Any) -> None:
    resource = {**batch_job(), "spec": odd}
    assert conditions(decided(observe(resource)).status)["Accepted"] == ("False", "Invalid")


def test_a_log_is_no_summary() -> None:
    assert decode_summary("octavo: cannot read") is None
    assert decode_summary("{}") is None


def test_a_batch_names_its_owner() -> None:
    assert owner_of(batch()) == (Key("team", "nightly"), UID)
    assert owner_of(batch(metadata='{"octavo.dev/batch-job": "no-slash"}'))[0] is None
    assert owner_of(batch(metadata="null"))[0] is None
