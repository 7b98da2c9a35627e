"""The Service that reaches ready replicas directly, past the router."""

from octavo_operator.children.replica import PORT
from octavo_operator.desired import Manifest
from octavo_operator.names import REPLICA_COMPONENT, object_metadata, selector
from octavo_protocol.resources.model_deployment import ModelDeployment


def service(deployment: ModelDeployment) -> Manifest:
    """Port 80 of the deployment's name."""
    metadata = deployment.metadata
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": object_metadata(metadata, metadata.name, REPLICA_COMPONENT),
        "spec": {
            "type": "ClusterIP",
            "selector": selector(metadata.name),
            "ports": [{"name": "http", "port": 80, "targetPort": PORT, "protocol": "TCP"}],
        },
    }
