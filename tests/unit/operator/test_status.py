"""What the status says, and that it says it once."""

from dataclasses import replace
from typing import Any

import pytest
from tests.fakes.observations import (
    NAME,
    NOW,
    SETTINGS,
    applied,
    condition,
    deployment,
    later,
    observe,
    pod,
    ready_pod,
    record,
    running,
    settled,
    template_of,
    unschedulable,
    waiting,
)

from octavo_operator.decide import decide
from octavo_operator.desired import Desired, Event, Manifest
from octavo_operator.observed import Observed
from octavo_protocol.resources.status import ModelDeploymentStatus


def with_pod(status: Manifest, node: str = "node1", **fields: Any) -> Observed:
    """A new deployment whose only pod is in that state."""
    made = observe(deployment())
    first = applied(made, decide(made, SETTINGS))
    return replace(
        first, pods=[pod(f"{NAME}-0", template_of(first), status=status, node=node)], **fields
    )


def transition_time(desired: Desired, type_: str) -> str:
    found: str = next(
        each["lastTransitionTime"] for each in desired.status["conditions"] if each["type"] == type_
    )
    return found


def test_a_ready_deployment_says_so_with_numbers() -> None:
    desired = decide(settled(deployment(replicas=2), 2), SETTINGS)

    assert {each["type"]: each["reason"] for each in desired.status["conditions"]} == {
        "Ready": "Serving",
        "Valid": "Valid",
        "Progressing": "Complete",
        "Degraded": "NothingFails",
        "Registered": "Registered",
    }
    assert condition(desired, "Ready")[2] == "2 of 2 replicas take traffic"
    status = desired.status
    assert (status["replicas"], status["readyReplicas"], status["updatedReplicas"]) == (2, 2, 2)
    assert status["desiredReplicas"] == 2
    assert status["capacity"] == {"tokens": 32000, "sequences": 128}
    assert status["endpoint"] == "http://octavo-router.octavo-system.svc/v1"
    assert status["pods"] == []
    assert status["observedGeneration"] == 1
    assert ModelDeploymentStatus.model_validate(status).selector == (
        f"octavo.dev/model-deployment={NAME},app.kubernetes.io/component=replica"
    )


def test_a_deployment_at_rest_keeps_its_status_and_has_no_events() -> None:
    observed = settled(deployment(replicas=2), 2)
    first = decide(observed, SETTINGS)
    busy = [record(each.replica_id, running=9, kv_usage=0.5) for each in observed.replicas]
    second = decide(later(applied(observed, first), 3600, replicas=busy), SETTINGS)

    assert (first.events, second.events) == ((), ())
    assert second.status == first.status
    assert second.look_again_s is None


STATES = [
    (
        {
            "status": unschedulable("0/3 nodes are available: 3 Insufficient nvidia.com/gpu."),
            "node": "",
        },
        "Pending",
        "Unschedulable",
        "no node takes it: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
    ),
    ({"status": {"phase": "Pending"}, "node": ""}, "Pending", "NoReplicaReady", "waits for a node"),
    (
        {"status": waiting("ContainerCreating")},
        "Pending",
        "NoReplicaReady",
        "its container is being made on node node1",
    ),
    (
        {"status": waiting("ImagePullBackOff", "Back-off pulling image")},
        "Failed",
        "ImagePullFailed",
        "container engine: cannot pull image 'octavo-runtime:test'",
    ),
    (
        {"status": waiting("CreateContainerConfigError", 'secret "token" not found')},
        "Failed",
        "CannotStart",
        'container engine cannot start: secret "token" not found',
    ),
    (
        {
            "status": waiting(
                "CrashLoopBackOff",
                "back-off 5m0s",
                restartCount=3,
                lastState={
                    "terminated": {"exitCode": 1, "reason": "Error", "message": "no model\n'x'"}
                },
            )
        },
        "Failed",
        "ContainerFailed",
        "container engine ended 4 times, last with exit code 1 (Error): no model 'x'",
    ),
    (
        {
            "status": waiting(
                "CrashLoopBackOff",
                lastState={"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
            )
        },
        "Failed",
        "OutOfMemory",
        "container engine ended once, last with exit code 137 (OOMKilled)",
    ),
    (
        {"status": {"phase": "Failed", "reason": "Evicted", "message": "low on disk"}},
        "Failed",
        "PodLost",
        "the pod is Failed (Evicted): low on disk",
    ),
    (
        {"status": running(is_ready=False, started=False)},
        "Loading",
        "Loading",
        "loads the model since 2026-03-01T11:31:00Z",
    ),
    (
        {"status": running(is_ready=False)},
        "Loading",
        "Loading",
        "was ready before; now /ready does not answer 200, or its node does not report",
    ),
    (
        {"status": running(is_ready=True)},
        "Loading",
        "Loading",
        "answers, but is not registered in Redis",
    ),
]


@pytest.mark.parametrize(("made", "stage", "reason", "message"), STATES)
def test_a_pod_that_is_not_ready_tells_why(
    made: Manifest, stage: str, reason: str, message: str
) -> None:
    observed = with_pod(**made)
    desired = decide(observed, SETTINGS)
    status, ready_reason, ready_message = condition(desired, "Ready")

    assert desired.status["pods"] == [{"name": f"{NAME}-0", "stage": stage, "message": message}]
    assert (status, ready_reason) == ("False", reason)
    assert message in ready_message
    fails = reason not in ("Loading", "NoReplicaReady")
    assert condition(desired, "Degraded")[0] == ("True" if fails else "False")
    if fails:
        assert [each.reason for each in desired.events] == [reason]
        assert decide(applied(observed, desired), SETTINGS).events == ()
    else:
        assert desired.events == ()


def test_an_evicted_pod_counts_until_another_one_replaces_it() -> None:
    observed = settled(deployment(), 1)
    evicted = pod(f"{NAME}-x", template_of(observed), status={"phase": "Failed"})
    evicted["metadata"]["creationTimestamp"] = "2026-03-01T11:00:00Z"
    alone = decide(replace(observed, pods=[evicted], replicas=()), SETTINGS)
    replaced = decide(replace(observed, pods=[evicted, *observed.pods]), SETTINGS)

    assert condition(alone, "Degraded")[1] == "PodLost"
    assert replaced.status == observed.deployment["status"]


def test_replicas_that_go_are_told_until_they_have_gone() -> None:
    observed = settled(deployment(), 3)
    many = decide(observed, SETTINGS)
    leaving = [*observed.pods]
    for each in leaving[1:]:
        each["metadata"]["deletionTimestamp"] = "2026-03-01T12:00:00Z"
    fewer = decide(replace(observed, pods=leaving), SETTINGS)

    assert condition(many, "Progressing") == ("True", "Scaling", "3 replicas become 1")
    assert condition(fewer, "Progressing") == (
        "True",
        "Draining",
        "2 replicas finish their requests",
    )


def test_a_status_that_somebody_broke_is_written_anew() -> None:
    observed = settled(deployment(), 1)
    broken = {**observed.deployment, "status": {"conditions": [{"type": "Ready"}], "capacity": 3}}
    desired = decide(
        replace(observed, deployment=broken, is_fleet_known=False, replicas=()), SETTINGS
    )

    assert condition(desired, "Ready")[0] == "True"
    assert "capacity" not in desired.status


def test_the_kubelets_two_words_for_a_failed_pull_give_one_status() -> None:
    one = decide(with_pod(waiting("ErrImagePull", "not found")), SETTINGS)
    other = decide(with_pod(waiting("ImagePullBackOff", "Back-off")), SETTINGS)

    assert one.status == other.status


def test_a_crash_loop_keeps_its_conditions_while_the_container_runs_again() -> None:
    ended = {"terminated": {"exitCode": 1, "reason": "Error", "message": "boom"}}
    down = with_pod(waiting("CrashLoopBackOff", restartCount=1, lastState=ended))
    again = running(is_ready=False, started=False)
    again["containerStatuses"][0] |= {"restartCount": 2, "lastState": ended}
    up = with_pod(again)

    assert decide(up, SETTINGS).status == decide(down, SETTINGS).status


def test_the_worst_failure_is_told_first() -> None:
    base = with_pod(unschedulable("full"), node="")
    template = template_of(base)
    pods = [*base.pods, pod(f"{NAME}-9", template, status=waiting("ErrImagePull"))]
    desired = decide(replace(base, pods=pods), SETTINGS)

    assert condition(desired, "Degraded") == (
        "True",
        "ImagePullFailed",
        f"2 of 2 pods fail; {NAME}-9: container engine: cannot pull image 'octavo-runtime:test'",
    )


def test_ready_needs_pod_and_record_and_neither_that_drains() -> None:
    observed = settled(deployment(replicas=4), 4)
    leaving = ready_pod(f"{NAME}-3", template_of(observed))
    leaving["metadata"]["deletionTimestamp"] = "2026-03-01T12:00:00Z"
    records = [
        record(f"{NAME}-0"),
        record(f"{NAME}-1", draining=True),
        record(f"{NAME}-2", ready=False),
        record(f"{NAME}-3"),
    ]
    desired = decide(
        replace(observed, pods=[*observed.pods[:3], leaving], replicas=records), SETTINGS
    )

    assert desired.status["readyReplicas"] == 1
    assert [(each["name"], each["stage"]) for each in desired.status["pods"]] == [
        (f"{NAME}-1", "Draining"),
        (f"{NAME}-2", "Loading"),
        (f"{NAME}-3", "Draining"),
    ]


def test_redis_away_leaves_the_pods_word_and_says_so() -> None:
    observed = settled(deployment(), 1)
    desired = decide(replace(observed, replicas=(), is_fleet_known=False), SETTINGS)

    assert condition(desired, "Ready") == (
        "True",
        "Serving",
        "1 of 1 replicas take traffic; Redis does not answer, so this is the pods' own word",
    )
    assert condition(desired, "Registered")[:2] == ("Unknown", "RedisUnavailable")
    assert desired.status["capacity"] == {"tokens": 16000, "sequences": 64}
    assert desired.events == ()


def test_a_transition_time_moves_only_with_the_status() -> None:
    observed = settled(deployment(), 1)
    loaded = decide(observed, SETTINGS)
    lost = decide(later(applied(observed, loaded), 60, pods=[], replicas=()), SETTINGS)
    still = decide(later(applied(observed, lost), 120, pods=[], replicas=()), SETTINGS)

    assert transition_time(loaded, "Ready") == "2026-03-01T12:00:00Z"
    assert transition_time(lost, "Ready") == "2026-03-01T12:01:00Z"
    assert transition_time(still, "Ready") == "2026-03-01T12:01:00Z"
    assert transition_time(still, "Valid") == "2026-03-01T12:00:00Z"


def test_becoming_ready_is_told_once() -> None:
    made = observe(deployment())
    first = applied(made, decide(made, SETTINGS))
    up = replace(first, pods=[ready_pod("chat-0", template_of(first))], replicas=[record("chat-0")])
    desired = decide(up, SETTINGS)

    assert desired.events == (Event("Normal", "Serving", "1 of 1 replicas take traffic"),)
    assert decide(later(applied(up, desired), 5), SETTINGS).events == ()


def test_a_rollout_is_told_by_progressing_while_old_replicas_serve() -> None:
    observed = settled(deployment(replicas=2), 2)
    changed = replace(
        observed,
        deployment={
            **deployment(replicas=2, generation=2, engine={"maxNumSeqs": 8}),
            "status": observed.deployment["status"],
        },
    )
    desired = decide(changed, SETTINGS)

    assert condition(desired, "Ready") == (
        "True",
        "ServingOlderSpec",
        "2 of 2 replicas take traffic, of an older spec",
    )
    assert condition(desired, "Progressing") == (
        "True",
        "RollingOut",
        "0 of 2 replicas of the current spec are ready; 2 of older ones",
    )
    assert desired.status["updatedReplicas"] == 0
    assert {each["observedGeneration"] for each in desired.status["conditions"]} == {2}
    assert desired.events == ()


def test_a_rollout_that_the_controller_gave_up_on_is_stalled() -> None:
    observed = settled(deployment(), 1)
    over = {
        "type": "Progressing",
        "status": "False",
        "reason": "ProgressDeadlineExceeded",
        "message": 'ReplicaSet "chat-2" has timed out progressing.',
    }
    children = [
        {**each, "status": {"conditions": [over]}} if each["kind"] == "Deployment" else each
        for each in observed.children
    ]
    desired = decide(replace(observed, children=children), SETTINGS)

    assert condition(desired, "Progressing")[:2] == ("False", "Stalled")
    assert condition(desired, "Degraded")[:2] == ("True", "Stalled")
    assert condition(desired, "Ready")[0] == "True"


def test_pods_that_cannot_be_made_are_told_at_once_and_alike_for_each_attempt() -> None:
    def decided(pod_name: str) -> Desired:
        refused = {
            "type": "ReplicaFailure",
            "status": "True",
            "reason": "FailedCreate",
            "message": f'pods "{pod_name}" is forbidden: exceeded quota: team, requested: pods=1',
        }
        first = observe(deployment())
        children = [
            {**each, "status": {"conditions": [refused]}} if each["kind"] == "Deployment" else each
            for each in applied(first, decide(first, SETTINGS)).children
        ]
        return decide(replace(first, children=children), SETTINGS)

    words = "pod is forbidden: exceeded quota: team, requested: pods=1"
    assert condition(decided("chat-6b-aaaaa"), "Degraded") == ("True", "PodsRefused", words)
    assert condition(decided("chat-6b-aaaaa"), "Ready") == ("False", "PodsRefused", words)
    assert decided("chat-6b-bbbbb").status == decided("chat-6b-aaaaa").status


def test_what_the_api_server_refuses_is_told_in_its_words() -> None:
    refusal = "Deployment chat: spec.template.spec.volumes[3].name: Required value (422)"
    desired = decide(observe(deployment(), apply_errors=(refusal,)), SETTINGS)

    assert condition(desired, "Degraded") == ("True", "ApplyFailed", refusal)
    assert [each.reason for each in desired.events] == ["ApplyFailed"]


def test_zero_replicas_are_not_a_failure() -> None:
    desired = decide(observe(deployment(replicas=0)), SETTINGS)

    assert condition(desired, "Ready")[:2] == ("False", "ScaledToZero")
    assert condition(desired, "Degraded")[0] == "False"
    assert condition(desired, "Progressing")[1] == "Complete"
    assert desired.events == ()


def test_a_taken_name_is_not_registered_and_named_with_its_owner() -> None:
    resource = deployment(servedNames=["small", "chat-model"])
    observed = observe(resource, owners_of_names={"small": "other/small"})
    desired = decide(observed, SETTINGS)
    told = "the name small belongs to the older deployment other/small; give another in servedNames"

    assert condition(desired, "Ready") == ("False", "NameTaken", told)
    assert condition(desired, "Registered") == (
        "False",
        "NameTaken",
        f"{told}; routers serve it as chat-model",
    )
    assert desired.registration is not None
    assert desired.registration.served_names == ["chat-model"]
    assert [each.reason for each in desired.events] == ["NameTaken"]


def test_at_most_twenty_pods_are_told_of() -> None:
    base = with_pod(waiting("ErrImagePull"))
    pods = [pod(f"p-{i:03}", "", status=waiting("ErrImagePull")) for i in range(50)]
    desired = decide(replace(base, pods=pods), SETTINGS)

    assert len(desired.status["pods"]) == 20
    assert desired.status["replicas"] == 50


def test_a_very_long_message_is_cut() -> None:
    refusal = "x" * 5000
    desired = decide(observe(deployment(), apply_errors=(refusal,), now=NOW), SETTINGS)

    assert len(condition(desired, "Degraded")[2]) == 1024
