"""The Secret through which pods learn the Redis URL, which may hold a password."""

from base64 import b64encode

from octavo_operator.desired import Manifest
from octavo_operator.names import REPLICA_COMPONENT, object_metadata
from octavo_operator.names import redis_secret as secret_name
from octavo_operator.settings import OperatorSettings
from octavo_protocol.resources.model_deployment import ModelDeployment


def redis_environment(deployment: ModelDeployment) -> Manifest:
    """The variable of a container from which `octavo` takes the URL."""
    secret = {"name": secret_name(deployment.metadata.name), "key": "url"}
    return {"name": "OCTAVO_REDIS_URL", "valueFrom": {"secretKeyRef": secret}}


def redis_secret(deployment: ModelDeployment, settings: OperatorSettings) -> Manifest:
    """One key, `url`."""
    metadata = deployment.metadata
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": object_metadata(metadata, secret_name(metadata.name), REPLICA_COMPONENT),
        "type": "Opaque",
        "data": {"url": b64encode(settings.redis_url.encode()).decode()},
    }
