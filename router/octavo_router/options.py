"""Settings of one router process."""

from dataclasses import dataclass, field
from pathlib import Path

from octavo_protocol.errors import ConfigError
from octavo_protocol.http_options import HttpOptions
from octavo_protocol.resources.model_deployment import RoutingPolicyName
from octavo_router.admission.queue_options import QueueOptions
from octavo_router.admission.room import DEFAULT_BACKLOG_S
from octavo_router.batches.options import BatchOptions
from octavo_router.capture import DEFAULT_BLOCK_SIZE, DEFAULT_MAX_BYTES
from octavo_router.health import MAX_EJECTED_SHARE
from octavo_router.policies.weights import DEFAULT_WEIGHTS, PolicyWeights

_QUEUE_REQUESTS = 1024


@dataclass(frozen=True, kw_only=True)
class RouterOptions(HttpOptions):
    """redis_url: where replicas make themselves known; replica_urls: fixed addresses instead.

    all_deployments: serve every deployment in the registry of the cluster (of `namespaces`, where
    given), each by its own policy, in place of the one that `namespace` and `deployment` name.
    drain_delay_s: how long a router that is to stop still takes requests while it says that it is
    not ready. index_budget_bytes: for the prefix indexes of all deployments.
    max_ejected_share: of a deployment's replicas, at once, for slowness and errors.
    token_memo_bytes: for token ids and block hashes of prompts, of all deployments.

    max_attempts: replicas that one request may be sent to. Timeouts in seconds; read_timeout_s is
    the longest silence of a replica, also before its first token. replica_api_key: what replicas
    ask for; without it they get the key that the client sent. continue_patience_s: how long a
    stream whose replica broke it off waits for another one that can go on with it. adapter_wait_s:
    how long a request waits until a replica has loaded its adapter, before it goes elsewhere.

    resume_*: of answers that clients can come back to: seconds for which one is generated for a
    client that has left (grace) and kept after its end (ttl); most bytes of one and of all of a
    deployment.

    capture: file for a trace of the traffic, of at most capture_bytes with the one before it; its
    blocks have capture_block_size tokens.

    tenants: file or folder that says who may use the router, in place of api_key. usage_records:
    finished requests of tenants that Redis remembers one by one. queue_requests, queue_tokens: what
    may wait in the router for each deployment; None: 1024 requests with tenants, else 0, which
    sends all on at once. replica_backlog_s: seconds of work that replicas get in advance of that.

    files_url: folder or bucket for files and batches; None: their routes do not exist.
    batch_worker: this router works on batches too. max_file_bytes, max_batch_lines: of uploads.
    """

    redis_url: str | None = None
    replica_urls: tuple[str, ...] = ()
    namespace: str = "default"
    deployment: str = "default"
    all_deployments: bool = False
    namespaces: tuple[str, ...] = ()
    policy: RoutingPolicyName = "expected-ttft"
    policy_weights: PolicyWeights = DEFAULT_WEIGHTS
    connect_timeout_s: float = 2.0
    read_timeout_s: float = 600.0
    replica_api_key: str | None = field(default=None, repr=False)
    max_attempts: int = 4
    continue_patience_s: float = 10.0
    adapter_wait_s: float = 60.0
    resume_grace_s: float = 30.0
    resume_ttl_s: float = 300.0
    resume_stream_bytes: int = 4 * 2**20
    resume_total_bytes: int = 64 * 2**20
    tenants: Path | None = None
    usage_records: int = 100_000
    queue_requests: int | None = None
    queue_tokens: int = 4_000_000
    replica_backlog_s: float = DEFAULT_BACKLOG_S
    files_url: str | None = None
    batch_worker: bool = True
    max_file_bytes: int = 512 * 2**20
    max_batch_lines: int = 1_000_000
    max_body_bytes: int = 16 * 2**20
    drain_delay_s: float = 0.0
    drain_timeout_s: float = 30.0
    index_budget_bytes: int = 512 * 2**20
    max_ejected_share: float = MAX_EJECTED_SHARE
    token_memo_bytes: int = 128 * 2**20
    capture: Path | None = None
    capture_bytes: int = DEFAULT_MAX_BYTES
    capture_block_size: int = DEFAULT_BLOCK_SIZE
    log_level: str = "info"

    def __post_init__(self) -> None:
        if self.redis_url is None and not self.replica_urls:
            raise ConfigError(
                "the router needs --redis-url, or --replica-url for each replica, to find replicas"
            )
        if self.redis_url is not None and self.replica_urls:
            raise ConfigError("give either --redis-url or --replica-url, not both")
        if self.all_deployments and self.redis_url is None:
            raise ConfigError("--all-deployments needs --redis-url: the registry is in Redis")
        if self.namespaces and not self.all_deployments:
            raise ConfigError("--namespaces filters --all-deployments; give that too")
        if self.tenants is not None and self.api_key:
            raise ConfigError(
                "--tenants says which keys are good: leave --api-key out, and give tenants its keys"
            )

        if self.files_url is not None and self.redis_url is None:
            raise ConfigError("--files-url needs --redis-url: what becomes of batches is in Redis")

    @property
    def batches(self) -> BatchOptions | None:
        """Where files and batches are, if they are."""
        if self.files_url is None:
            return None
        return BatchOptions(
            files_url=self.files_url,
            has_worker=self.batch_worker,
            max_file_bytes=self.max_file_bytes,
            max_lines=self.max_batch_lines,
            max_line_bytes=self.max_body_bytes,
        )

    @property
    def queues(self) -> QueueOptions:
        """Bounds of what may wait in the router."""
        num_requests = self.queue_requests
        if num_requests is None:
            num_requests = 0 if self.tenants is None else _QUEUE_REQUESTS
        return QueueOptions(num_requests, self.queue_tokens, self.replica_backlog_s)
