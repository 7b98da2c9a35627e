"""Names, labels and annotations of what the operator makes. Users may rely on them."""

from typing import Any

from octavo_protocol.resources.metadata import Metadata

FIELD_MANAGER = "octavo-operator"

# On every child, and what their selectors go by; the last two have their owner's name.
MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGED_BY_VALUE = "octavo-operator"
COMPONENT = "app.kubernetes.io/component"
DEPLOYMENT = "octavo.dev/model-deployment"
BATCH_JOB = "octavo.dev/batch-job"

REPLICA_COMPONENT = "replica"
DOWNLOAD_COMPONENT = "download"
BATCH_COMPONENT = "batch"

# On replicas' pods: equal for pods of equal templates.
TEMPLATE_HASH = "octavo.dev/template-hash"
# On the workload: the spec that it was planned from, as JSON. It goes on while a newer one cannot.
LAST_GOOD_SPEC = "octavo.dev/last-good-spec"
# On a BatchJob's Job: the spec that it was made from, as JSON.
BATCH_SPEC = "octavo.dev/batch-spec"
# On replicas' pods: changes with the Redis URL, which they read only when they start.
REDIS_HASH = "octavo.dev/redis-hash"

# The controller removes pods of lower cost first when a workload shrinks (Kubernetes 1.22).
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"


def selector(deployment: str) -> dict[str, str]:
    """Labels that exactly the replicas' pods of `deployment` have, in its namespace."""
    return {DEPLOYMENT: deployment, COMPONENT: REPLICA_COMPONENT}


def labels(deployment: str, component: str) -> dict[str, str]:
    return {MANAGED_BY: MANAGED_BY_VALUE, DEPLOYMENT: deployment, COMPONENT: component}


def object_metadata(deployment: Metadata, name: str, component: str) -> dict[str, Any]:
    """Metadata of the child `name` of a deployment."""
    return {
        "name": name,
        "namespace": deployment.namespace,
        "labels": labels(deployment.name, component),
    }


def redis_secret(deployment: str) -> str:
    """The Secret with the Redis URL for its replicas."""
    return f"{deployment}-redis"
