"""The workload of a deployment: what makes, replaces and removes its replicas.

An apps/v1 Deployment: surge, replacement and their bookkeeping are its controller's, and go on
while the operator is away. Another kind of workload, such as groups over several nodes, is another
module with the same function (docs/adr/0009-groups-over-several-nodes.md).
"""

from octavo_operator.children.replica import pod_template
from octavo_operator.desired import Manifest
from octavo_operator.names import LAST_GOOD_SPEC, REPLICA_COMPONENT, object_metadata, selector
from octavo_operator.settings import OperatorSettings
from octavo_protocol.resources.model_deployment import ModelDeployment

API_VERSION = "apps/v1"
KIND = "Deployment"
# The controller gives up on a rollout this long after a replica should have started.
_PROGRESS_MARGIN_S = 120
_REVISIONS_KEPT = 2
# An object's annotations may have 256 KiB together.
_MAX_SPEC_CHARS = 128 * 1024


def workload(deployment: ModelDeployment, settings: OperatorSettings, replicas: int) -> Manifest:
    """The Deployment of `replicas` replicas."""
    metadata, rollout = deployment.metadata, deployment.spec.rollout
    made = object_metadata(metadata, metadata.name, REPLICA_COMPONENT)
    spec = deployment.spec.model_dump_json(by_alias=True, exclude_defaults=True)
    if len(spec) <= _MAX_SPEC_CHARS:
        made["annotations"] = {LAST_GOOD_SPEC: spec}
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": made,
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": selector(metadata.name)},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {
                    "maxSurge": rollout.max_surge,
                    "maxUnavailable": rollout.max_unavailable,
                },
            },
            "progressDeadlineSeconds": rollout.start_seconds + _PROGRESS_MARGIN_S,
            "revisionHistoryLimit": _REVISIONS_KEPT,
            "template": pod_template(deployment, settings),
        },
    }
