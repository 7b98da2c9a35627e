"""The PodDisruptionBudget: evictions (of drained nodes) take one replica at a time."""

from octavo_operator.desired import Manifest
from octavo_operator.names import REPLICA_COMPONENT, object_metadata, selector
from octavo_protocol.resources.model_deployment import ModelDeployment

KIND = "PodDisruptionBudget"
_API_VERSIONS = ("policy/v1", "policy/v1beta1")


def disruption_budget(
    deployment: ModelDeployment, replicas: int, served: frozenset[str]
) -> Manifest | None:
    """None with fewer than two replicas, and where the API server serves no such kind.

    served: `group/version/Kind`; empty where it is not known, which is taken for a current server.
    """
    version = next((each for each in _API_VERSIONS if f"{each}/{KIND}" in served), None)
    if not served:
        version = _API_VERSIONS[0]
    if version is None or replicas < 2:
        return None
    metadata = deployment.metadata
    spec: Manifest = {"maxUnavailable": 1, "selector": {"matchLabels": selector(metadata.name)}}
    if version == _API_VERSIONS[0]:
        # Replicas that load or fail take no traffic: no node's draining is to wait for them.
        spec["unhealthyPodEvictionPolicy"] = "AlwaysAllow"
    return {
        "apiVersion": version,
        "kind": KIND,
        "metadata": object_metadata(metadata, metadata.name, REPLICA_COMPONENT),
        "spec": spec,
    }
