"""When a child is written, and when what is there is good enough."""

import copy
from typing import Any

import pytest

from octavo_operator.apply import (
    APPLIED_HASH,
    essence,
    holds,
    is_of_former,
    needs_apply,
    owner_reference,
    prepared,
)

OWNER = {
    "apiVersion": "octavo.dev/v1alpha1",
    "kind": "ModelDeployment",
    "metadata": {"name": "chat", "namespace": "team", "uid": "u-1"},
}
MANIFEST: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "chat", "labels": {"a": "b"}},
    "spec": {
        "replicas": 2,
        "template": {
            "spec": {
                "containers": [
                    {"name": "engine", "args": ["serve", "x"], "env": [{"name": "A", "value": "1"}]}
                ],
                "tolerations": [],
                "securityContext": {},
            }
        },
    },
}
ENGINE = ("spec", "template", "spec", "containers", 0)


def served(manifest: dict[str, Any]) -> dict[str, Any]:
    """As an API server gives it back: with defaults, a status and bookkeeping."""
    live = copy.deepcopy(manifest)
    live["metadata"] |= {"uid": "u-2", "resourceVersion": "7", "generation": 1}
    live["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = "1"
    live["spec"]["revisionHistoryLimit"] = 10
    pod = live["spec"]["template"]["spec"]
    pod["restartPolicy"] = "Always"
    del pod["tolerations"]
    pod["containers"][0]["terminationMessagePath"] = "/dev/termination-log"
    pod["containers"].insert(0, {"name": "sidecar", "image": "mesh"})
    live["status"] = {"readyReplicas": 0}
    return live


def set_at(value: Any, path: tuple[str | int, ...], new: object) -> None:
    for part in path[:-1]:
        value = value[part]
    value[path[-1]] = new


def test_a_prepared_manifest_has_namespace_owner_and_hash_and_leaves_the_given_one_alone() -> None:
    before = copy.deepcopy(MANIFEST)
    made = prepared(MANIFEST, OWNER)
    metadata = made["metadata"]
    assert (metadata["namespace"], metadata["labels"]) == ("team", {"a": "b"})
    assert metadata["ownerReferences"] == [
        {
            "apiVersion": "octavo.dev/v1alpha1",
            "kind": "ModelDeployment",
            "name": "chat",
            "uid": "u-1",
            "controller": True,
            "blockOwnerDeletion": True,
        }
    ]
    assert made["spec"] == MANIFEST["spec"]
    assert metadata["annotations"].keys() == {APPLIED_HASH}
    assert before == MANIFEST


def test_what_the_server_and_others_add_is_no_drift_even_after_a_restart() -> None:
    manifest = prepared(MANIFEST, OWNER)
    assert not needs_apply(manifest, served(manifest), None)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "replicas"), 3),
        (("metadata", "labels"), {}),
        (("metadata", "ownerReferences"), []),
        (("spec", "template", "spec", "containers"), []),
        (("spec", "template", "spec", "containers", 1, "args"), ["serve", "y"]),
        (("spec", "template", "spec", "containers", 1, "args"), ["serve", "x", "--more"]),
        (("spec", "template", "spec", "containers", 1, "env"), [{"name": "A", "value": "2"}]),
    ],
)
def test_whatever_is_changed_of_ours_is_put_back(path: tuple[str | int, ...], value: Any) -> None:
    manifest = prepared(MANIFEST, OWNER)
    live = served(manifest)
    applied = (manifest["metadata"]["annotations"][APPLIED_HASH], essence(live))
    set_at(live, path, value)
    assert needs_apply(manifest, live, None)
    assert needs_apply(manifest, live, applied)


def test_a_manifest_that_only_lost_a_field_is_applied() -> None:
    live = served(prepared(MANIFEST, OWNER))
    smaller = copy.deepcopy(MANIFEST)
    del smaller["spec"]["template"]["spec"]["containers"][0]["env"]
    assert holds(live, smaller)
    assert needs_apply(prepared(smaller, OWNER), live, None)


def test_a_value_that_the_server_writes_differently_is_applied_once() -> None:
    manifest = prepared(MANIFEST, OWNER)
    live = served(manifest)
    set_at(live, ("spec", "template", "spec", "containers", 1, "args"), ["serve", "X"])
    assert needs_apply(manifest, live, None)
    applied = (manifest["metadata"]["annotations"][APPLIED_HASH], essence(live))
    assert not needs_apply(manifest, live, applied)
    live["status"] = {"readyReplicas": 2}
    live["metadata"]["resourceVersion"] = "8"
    assert not needs_apply(manifest, live, applied), "a new status is no drift"


@pytest.mark.parametrize(
    ("live", "wanted", "is_held"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, True),
        ({}, {"a": None, "b": {}, "c": []}, True),
        ({}, {"a": 0}, False),
        ({}, {"a": False}, False),
        ({"a": True}, {"a": 1}, False),
        ({"a": "1"}, {"a": 1}, False),
        (None, {"a": 1}, False),
        ([1, 2], [1], False),
        (["a"], ["a"], True),
        ("a", ["a"], False),
        ([{"name": "y"}, {"name": "x", "v": 1}], [{"name": "x"}], True),
        ([{"name": "x", "v": 1}], [{"name": "x", "v": 2}], False),
        ([{"v": 1}], [{"v": 1}, {"v": 1}], False),
        ([{"name": "x"}, {"name": "x", "v": 1}], [{"name": "x"}, {"name": "x", "v": 1}], True),
        ([{"containerPort": 80, "protocol": "TCP"}], [{"containerPort": 80}], True),
    ],
)
def test_holds_everything_that_is_wanted(live: Any, wanted: Any, is_held: bool) -> None:
    assert holds(live, wanted) is is_held


def test_a_child_of_a_deleted_deployment_of_the_same_name_is_told_from_a_strangers() -> None:
    metadata = {"name": "chat", "namespace": "team", "uid": "u-0"}
    former = {"metadata": {"ownerReferences": [owner_reference({**OWNER, "metadata": metadata})]}}
    other = {"metadata": {"ownerReferences": [owner_reference({**OWNER, "kind": "App"})]}}
    own = {"metadata": {"ownerReferences": [owner_reference(OWNER)]}}
    assert is_of_former(former, OWNER)
    assert not any(is_of_former(each, OWNER) for each in (own, other))
    assert not is_of_former({"metadata": {}}, OWNER)
