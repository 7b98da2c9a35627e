"""What was just written counts until the watches tell of it."""

from typing import Any

import pytest

from octavo_operator.gather import (
    TRUSTED_S,
    WrittenObjects,
    adapter_names,
    gpu_memory_mib,
    is_owned,
)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def written(clock: Clock) -> WrittenObjects:
    return WrittenObjects(clock)


def service(version: int | str, uid: str = "u", name: str = "chat") -> dict[str, Any]:
    metadata = {"name": name, "uid": uid, "resourceVersion": str(version)}
    return {"kind": "Service", "metadata": metadata}


def test_the_newer_of_the_written_and_the_watched_counts(written: WrittenObjects) -> None:
    assert written.newest(service(9)) == service(9)
    written.note(service(10))
    assert written.newest(service(9)) == service(10), "9 is less than 10, though not as text"
    assert written.is_ahead
    assert written.newest(service(10)) == service(10)
    assert not written.is_ahead
    assert written.newest(service(9)) == service(9), "forgotten once the watches caught up"


@pytest.mark.parametrize("watched", [service(5, uid="other"), service("opaque")])
def test_what_cannot_be_compared_is_as_watched(
    written: WrittenObjects, watched: dict[str, Any]
) -> None:
    written.note(service(10))
    assert written.newest(watched) == watched
    assert not written.is_ahead


def test_new_objects_are_known_before_the_watches_tell(
    written: WrittenObjects, clock: Clock
) -> None:
    written.note(service(1))
    written.note(service(2, name="other"))
    written.note({**service(3), "kind": "ModelDeployment"})
    assert written.unwatched([service(2, name="other")], ["Service"]) == [service(1)]
    written.forget("Service", "chat")
    assert written.unwatched([], ["Service"]) == [service(2, name="other")]


def test_an_object_that_the_watches_never_tell_of_is_not_believed_in_for_long(
    written: WrittenObjects, clock: Clock
) -> None:
    written.note(service(1))
    clock.now = TRUSTED_S
    assert written.unwatched([], ["Service"]) == [service(1)]
    clock.now += 0.1
    assert written.unwatched([], ["Service"]) == []
    assert not written.is_ahead


def test_children_of_a_former_deployment_of_that_name_are_not_owned() -> None:
    owner = {"metadata": {"uid": "new"}}
    assert is_owned({"metadata": {"ownerReferences": [{"uid": "new"}]}}, owner)
    assert not is_owned({"metadata": {"ownerReferences": [{"uid": "old"}]}}, owner)
    assert not is_owned({"metadata": {}}, owner)


@pytest.mark.parametrize(
    ("selector", "defaults", "memory"),
    [
        (None, {}, 81559),
        ({}, {"zone": "a"}, 24576),
        ({"zone": "b"}, {"zone": "a"}, 81559),
        ({"zone": "c"}, {}, None),
        ("not a table", {}, 81559),
    ],
)
def test_gpu_memory_is_the_largest_of_the_nodes_that_pods_may_run_on(
    selector: Any, defaults: dict[str, str], memory: int | None
) -> None:
    deployment = {"spec": {"podTemplate": {"nodeSelector": selector}}}
    nodes = [
        {"zone": "a", "nvidia.com/gpu.memory": "24576"},
        {"zone": "b", "nvidia.com/gpu.memory": "81559"},
        {"zone": "c", "nvidia.com/gpu.memory": "unknown"},
    ]
    assert gpu_memory_mib(deployment, nodes, defaults) == memory


def test_adapters_are_served_by_their_own_name_unless_another_is_given() -> None:
    deployment = {"spec": {"adapters": [{"name": "sql"}]}}
    adapters = [
        {"metadata": {"name": "law"}, "spec": {}},
        {"metadata": {"name": "code"}, "spec": {"servedName": "python"}},
    ]
    assert list(adapter_names(deployment, adapters)) == ["sql", "law", "python"]
