"""What kopf tells of BatchJobs, their Jobs and pods: indices beside those of ModelDeployments.

Jobs and pods are watched once for both; here are further indices over them, by another label.
"""

from collections.abc import Callable, Mapping
from typing import Any

import kopf

from octavo_operator.names import BATCH_JOB
from octavo_operator.observed import KubernetesObject
from octavo_operator.queue import Key
from octavo_operator.watches import Watches, index_by, label_key, own_key, stored
from octavo_protocol.resources.metadata import GROUP, VERSION

BATCH_JOBS = "batchjobs"
_INDICES = ("batch_jobs", "batch_children", "batch_pods")


class BatchJobWatches:
    """The indices. Complete once kopf runs; empty before."""

    def __init__(self, watches: Watches, changed: Callable[[Key], None]) -> None:
        self._changed = changed
        self._watches = watches
        self._indices: Mapping[str, Any] = {}
        registry = watches.registry
        kopf.on.startup(id="batch-jobs-started", registry=registry)(self._started)
        what = (GROUP, VERSION, BATCH_JOBS)
        kopf.index(*what, id="batch_jobs", registry=registry)(index_by(own_key))
        kopf.on.event(*what, id="batch-job-changed", registry=registry)(self._job_changed)
        self._watch("batch", "v1", "jobs", "batch_children")
        self._watch("", "v1", "pods", "batch_pods")

    def resource(self, key: Key) -> KubernetesObject | None:
        return next(iter(stored(self._indices, "batch_jobs", key)), None)

    def keys(self) -> list[Key]:
        """Every BatchJob that there is."""
        return list(self._indices.get("batch_jobs", ()))

    def jobs(self, key: Key) -> list[KubernetesObject]:
        """Jobs that have the BatchJob's label."""
        return list(stored(self._indices, "batch_children", key))

    def pods(self, key: Key) -> list[KubernetesObject]:
        return list(stored(self._indices, "batch_pods", key))

    def _started(self, **arguments: Any) -> None:
        self._indices = {name: arguments[name] for name in _INDICES if name in arguments}

    def _watch(self, group: str, version: str, plural: str, index: str) -> None:
        child, registry = (group, version, plural), self._watches.registry
        kopf.index(*child, id=index, registry=registry)(index_by(_batch_key))
        kopf.on.event(*child, id=f"{index}-changed", registry=registry)(self._child_changed)

    def _job_changed(self, body: KubernetesObject, **event: Any) -> None:
        self._watches.note(BATCH_JOBS, body, event)
        self._changed(own_key(body))

    def _child_changed(self, body: KubernetesObject, **_: Any) -> None:
        if (key := _batch_key(body)) is not None:
            self._changed(key)


def _batch_key(body: KubernetesObject) -> Key | None:
    return label_key(body, BATCH_JOB)
