"""Turns of BatchJobs: what is written to the API server, and what is left alone."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from tests.fakes.batch_jobs import UID, batch, batch_job, ended_pod, pod, summary
from tests.fakes.observations import SETTINGS

from octavo_operator.act import Actor
from octavo_operator.batch_jobs.open_batches import OpenBatches
from octavo_operator.batch_jobs.reconciler import BatchJobReconciler
from octavo_operator.batch_jobs.watches import BatchJobWatches
from octavo_operator.cluster import ApiError, Cluster
from octavo_operator.desired import Event
from octavo_operator.events import Events
from octavo_operator.gather import TRUSTED_S
from octavo_operator.metrics import OperatorMetrics
from octavo_operator.observed import KubernetesObject
from octavo_operator.queue import Key, ReconcileQueue
from octavo_operator.watches import Watches
from octavo_protocol.batch_record import BatchRecord

KEY = Key("team", "nightly")
JOB_UID = "job-1"


@dataclass
class World:
    """The API server, the watches on it and Redis, as far as a BatchJob goes. delay: watches tell
    nothing of what the reconciler writes.
    """

    found: dict[Key, dict[str, Any]] = field(default_factory=lambda: {KEY: batch_job()})
    jobs_there: list[KubernetesObject] = field(default_factory=list)
    pods_there: list[KubernetesObject] = field(default_factory=list)
    batches: dict[str, BatchRecord] = field(default_factory=dict)
    deployments: dict[Key, KubernetesObject] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    refusal: ApiError | None = None
    is_delayed: bool = False

    # The watches.
    def resource(self, key: Key) -> KubernetesObject | None:
        return self.found.get(key)

    def jobs(self, key: Key) -> list[KubernetesObject]:
        return [] if self.is_delayed else self.jobs_there

    def pods(self, key: Key) -> list[KubernetesObject]:
        return self.pods_there

    def deployment(self, key: Key) -> KubernetesObject | None:
        return self.deployments.get(key)

    # Redis.
    def batch(self, uid: str) -> BatchRecord | None:
        return self.batches.get(uid)

    def forget(self, uid: str) -> None:
        self.calls.append(f"forget {uid}")

    # The API server.
    async def find(self, path: str) -> KubernetesObject | None:
        return next(iter(self.jobs_there), None)

    async def apply(self, manifest: Mapping[str, Any], subresource: str = "") -> KubernetesObject:
        self.calls.append(f"apply {manifest['kind']} {subresource}".strip())
        if subresource:
            self.found[KEY] = {**self.found[KEY], "status": manifest["status"]}
            return self.found[KEY]
        if self.refusal is not None:
            raise self.refusal
        job = {**manifest, "metadata": {**manifest["metadata"], "uid": JOB_UID}}
        self.jobs_there = [job]
        return job

    async def merge(self, path: str, patch: Mapping[str, Any]) -> None:
        self.calls.append(f"merge {path} {patch}")

    async def delete(self, path: str, uid: str) -> None:
        self.calls.append(f"delete {path} {uid}")

    # Events.
    async def post(self, about: KubernetesObject, event: Event) -> None:
        self.events.append(event.reason)

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.found[KEY]["status"]
        return found

    def has_pod(self, made: dict[str, Any]) -> None:
        made["metadata"]["labels"] = {"controller-uid": JOB_UID}
        self.pods_there = [made]


class Turning:
    """A reconciler of a world; `turn` takes one turn and gives the calls that it made."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.now = 0.0
        self.queue = ReconcileQueue(clock=lambda: self.now)
        cluster, watches = cast(Cluster, world), cast(BatchJobWatches, world)
        actor = Actor(
            cluster=cluster, fleet=cast(Any, None), adapters=cast(Any, None), events=cast(Any, None)
        )
        self.reconciler = BatchJobReconciler(
            settings=SETTINGS,
            queue=self.queue,
            watches=watches,
            deployments=cast(Watches, world),
            batches=cast(OpenBatches, world),
            cluster=cluster,
            actor=actor,
            events=cast(Events, world),
            metrics=OperatorMetrics(),
            check=lambda: None,
        )

    async def turn(self) -> list[str]:
        self.queue.add(KEY, 0)
        self.now = max(self.now, self.queue.next_due or 0.0)
        self.world.calls.clear()
        key = await self.queue.take()
        assert key is not None
        await self.reconciler.turn(key)
        return list(self.world.calls)


@pytest.fixture
def turning() -> Turning:
    return Turning(World())


async def test_a_new_one_gets_its_job_and_a_status_and_then_nothing_is_written(
    turning: Turning,
) -> None:
    assert await turning.turn() == ["apply Job", "apply BatchJob status"]
    [job] = turning.world.jobs_there
    assert job["metadata"]["ownerReferences"][0]["uid"] == UID
    assert await turning.turn() == []
    assert turning.queue.next_due is None or turning.queue.next_due <= turning.now + TRUSTED_S


async def test_a_job_that_the_watches_do_not_tell_of_yet_is_not_made_twice(
    turning: Turning,
) -> None:
    turning.world.is_delayed = True
    await turning.turn()
    assert await turning.turn() == []


async def test_progress_is_written_as_it_comes(turning: Turning) -> None:
    await turning.turn()
    turning.world.batches[UID] = batch()
    assert await turning.turn() == ["apply BatchJob status"]
    assert turning.world.status["progressPercent"] == 80


async def test_a_pod_of_another_job_of_that_name_says_nothing(turning: Turning) -> None:
    await turning.turn()
    turning.world.pods_there = [ended_pod(summary("cancelled"), 1)]
    await turning.turn()
    assert turning.world.status["phase"] == "Pending"


async def test_an_end_is_told_and_a_job_that_would_try_again_is_stopped(turning: Turning) -> None:
    await turning.turn()
    turning.world.has_pod(ended_pod(summary("expired"), 1))
    assert await turning.turn() == ["apply BatchJob status"]
    assert turning.world.events == ["BatchExpired"]
    [stop] = await turning.turn()
    path = "/apis/batch/v1/namespaces/team/jobs/nightly"
    assert stop == f"merge {path} {{'spec': {{'parallelism': 0}}}}"


async def test_somebody_elses_job_of_that_name_is_left_alone_and_told_of(
    turning: Turning,
) -> None:
    metadata = {"name": "nightly", "namespace": "team", "uid": "theirs", "labels": {}}
    turning.world.jobs_there = [{"kind": "Job", "metadata": metadata}]
    assert await turning.turn() == ["apply BatchJob status"]
    await turning.turn()
    [accepted, *_] = turning.world.status["conditions"]
    assert (accepted["status"], accepted["reason"]) == ("False", "ApplyFailed")
    assert "does not belong to this BatchJob" in accepted["message"]
    turning.world.jobs_there = []
    assert "apply Job" in await turning.turn()
    await turning.turn()
    assert turning.world.status["conditions"][0]["reason"] == "Accepted"


async def test_what_the_server_refuses_is_told_and_tried_again(turning: Turning) -> None:
    turning.world.refusal = ApiError(403, "Forbidden", "exceeded quota")
    await turning.turn()
    await turning.turn()
    assert "exceeded quota" in turning.world.status["conditions"][0]["message"]
    assert turning.queue.next_due is not None


async def test_a_target_is_looked_up_in_the_namespace(turning: Turning) -> None:
    resource = batch_job(target={"name": "chat"})
    del resource["spec"]["model"]
    turning.world.found[KEY] = resource
    assert await turning.turn() == ["apply BatchJob status"]
    metadata = {"name": "chat", "namespace": "team"}
    turning.world.deployments[Key("team", "chat")] = {
        "metadata": metadata,
        "spec": {"servedNames": ["org/chat", "chat"]},
    }
    assert "apply Job" in await turning.turn()
    [job] = turning.world.jobs_there
    assert "org/chat" in job["spec"]["template"]["spec"]["containers"][0]["args"]


async def test_one_that_is_over_is_deleted_by_its_uid(turning: Turning) -> None:
    turning.world.found[KEY] = batch_job(ttlSecondsAfterFinished=0)
    await turning.turn()
    turning.world.has_pod(ended_pod(summary()))
    await turning.turn()
    calls = await turning.turn()
    assert calls[-1] == f"delete /apis/octavo.dev/v1alpha1/namespaces/team/batchjobs/nightly {UID}"


async def test_one_that_is_gone_is_forgotten(turning: Turning) -> None:
    turning.world.has_pod(pod(phase="Running"))
    await turning.turn()
    turning.world.found.clear()
    assert await turning.turn() == [f"forget {UID}"]
    assert await turning.turn() == []
