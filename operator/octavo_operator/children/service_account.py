"""The ServiceAccount of a deployment's pods. It has no rights, and no pod gets its token."""

from octavo_operator.desired import Manifest
from octavo_operator.names import REPLICA_COMPONENT, object_metadata
from octavo_protocol.resources.model_deployment import ModelDeployment


def service_account(deployment: ModelDeployment) -> Manifest:
    """Made also where the pods use another one: older pods may still be of this one."""
    metadata = deployment.metadata
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": object_metadata(metadata, metadata.name, REPLICA_COMPONENT),
        "automountServiceAccountToken": False,
    }
