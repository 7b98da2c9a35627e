"""Names, labels and annotations that the operator gives to what it makes. Users may rely on them."""

FIELD_MANAGER = "octavo-operator"

# On every child of a ModelDeployment, and what their selectors go by.
MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGED_BY_VALUE = "octavo-operator"
COMPONENT = "app.kubernetes.io/component"
DEPLOYMENT = "octavo.dev/model-deployment"

REPLICA_COMPONENT = "replica"
DOWNLOAD_COMPONENT = "download"

# The controller removes pods of lower cost first when a workload shrinks (Kubernetes 1.22).
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"


def selector(deployment: str) -> dict[str, str]:
    """Labels that exactly the replicas' pods of `deployment` have, in its namespace."""
    return {DEPLOYMENT: deployment, COMPONENT: REPLICA_COMPONENT}


def labels(deployment: str, component: str) -> dict[str, str]:
    return {MANAGED_BY: MANAGED_BY_VALUE, DEPLOYMENT: deployment, COMPONENT: component}
