"""Kubernetes Events: what changed, for `kubectl describe` and whoever follows events.

The same words about the same object within an hour are one Event whose count rises. Posting is best
effort: an event that cannot be posted is logged, and nothing waits for it.
"""

import logging
from collections import OrderedDict
from datetime import UTC, datetime
from typing import Any

from octavo_operator.apply import digest
from octavo_operator.cluster import ApiError, ApiUnreachableError, Cluster
from octavo_operator.desired import Event
from octavo_operator.names import FIELD_MANAGER
from octavo_operator.observed import KubernetesObject

logger = logging.getLogger(__name__)

_REMEMBERED = 2000
_MAX_MESSAGE = 1024  # Kubernetes' limit


class Events:
    """Posts events as `component` of this process."""

    def __init__(self, cluster: Cluster, instance: str) -> None:
        self._cluster = cluster
        self._instance = instance
        self._posted: OrderedDict[str, tuple[str, int]] = OrderedDict()  # name -> first time, count

    async def post(self, about: KubernetesObject, event: Event) -> None:
        manifest = self._manifest(about, event, datetime.now(UTC))
        try:
            await self._cluster.apply(manifest)
        except (ApiError, ApiUnreachableError) as error:
            logger.warning("event %s of %s: %s", event.reason, manifest["metadata"]["name"], error)

    def _manifest(self, about: KubernetesObject, event: Event, now: datetime) -> dict[str, Any]:
        metadata = about["metadata"]
        hour = now.strftime("%Y-%m-%dT%H")
        words = digest([metadata["uid"], event.type, event.reason, event.message, hour])
        name = f"{metadata['name'][:200]}.{words}"
        last = now.strftime("%Y-%m-%dT%H:%M:%SZ")
        first, count = self._posted.pop(name, (last, 0))
        self._posted[name] = (first, count + 1)
        if len(self._posted) > _REMEMBERED:
            self._posted.popitem(last=False)
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": metadata["namespace"]},
            "involvedObject": {
                "apiVersion": about["apiVersion"],
                "kind": about["kind"],
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
            },
            "type": event.type,
            "reason": event.reason,
            "message": event.message[:_MAX_MESSAGE],
            "count": count + 1,
            "firstTimestamp": first,
            "lastTimestamp": last,
            "source": {"component": FIELD_MANAGER},
            "reportingComponent": FIELD_MANAGER,
            "reportingInstance": self._instance,
        }
