"""Settings of the operator process; the chart writes them, as flags and one mounted file."""

from dataclasses import dataclass, field

from octavo_protocol.resources.pod_spec import PodTemplateSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorSettings:
    """runtime_image: of replicas whose spec names none; its entry point is `octavo`.
    batch_image: of the Jobs of BatchJobs; empty: the runtime's. image_pull_policy: of all pods that
    it makes. router_url: base URL of the router's Service, for
    `status.endpoint`. redis_url: where replicas register, as pods reach it; it may hold a
    password, so pods get it from a Secret. namespaces: watched ones, empty for all.
    operator_namespace, identity: where and as whom the leader's lease is held. resync_s: how often
    every deployment is looked at though nothing happened. pod_defaults: laid under every
    deployment's own `podTemplate`. health_port: of /healthz and /metrics.
    max_concurrent: deployments that are reconciled at once. replica_api_key: what replicas ask for,
    where they ask for one.
    """

    runtime_image: str
    redis_url: str = field(repr=False)
    replica_api_key: str | None = field(default=None, repr=False)
    batch_image: str = ""
    image_pull_policy: str = "IfNotPresent"
    router_url: str = ""
    namespaces: tuple[str, ...] = ()
    operator_namespace: str = "octavo-system"
    identity: str = "octavo-operator"
    leader_election: bool = True
    resync_s: float = 300.0
    pod_defaults: PodTemplateSpec = field(default_factory=PodTemplateSpec)
    health_port: int = 8080
    max_concurrent: int = 8
    log_level: str = "info"
