"""What a simulated fleet is made of."""

from dataclasses import dataclass, field

from octavo_protocol.resources.model_deployment import RoutingPolicyName
from octavo_router.policies.weights import DEFAULT_WEIGHTS, PolicyWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaModel:
    """What a replica can do. Rates in tokens per second, times in seconds.

    decode_step_s: of a step with one decoding sequence; decode_sequence_s: for each further one.
    max_adapters: that it holds; adapter_load_s: what a load of one takes.
    """

    num_blocks: int = 2400
    block_size: int = 512
    prefill_tokens_per_s: float = 16_000.0
    decode_step_s: float = 0.010
    decode_sequence_s: float = 0.0001
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_adapters: int = 8
    adapter_load_s: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterTraffic:
    """num_adapters: that there are. share: of the requests that ask for one. skew: of Zipf's law;
    0: all are asked for alike.
    """

    num_adapters: int = 0
    share: float = 1.0
    skew: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetOptions:
    """failing: share of the replicas that die, at fail_at_s; their requests go on elsewhere from
    the tokens that they have. has_index: whether the router hears of what replicas cache; it does
    not while Redis is away. seed: of the policy's ties, and of who asks for which adapter.
    """

    num_replicas: int = 8
    model: ReplicaModel = field(default_factory=ReplicaModel)
    adapters: AdapterTraffic = field(default_factory=AdapterTraffic)
    policy: RoutingPolicyName = "expected-ttft"
    weights: PolicyWeights = DEFAULT_WEIGHTS
    seed: int = 0
    fail_at_s: float | None = None
    failing: float = 0.5
    has_index: bool = True
