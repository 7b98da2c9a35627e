"""`octavo sim`: what a fleet would make of a trace, without a model."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, get_args

from octavo.cli.options import option
from octavo.cli.trace_options import BlockSize, Limit, Speed, Trace
from octavo.sim.options import AdapterTraffic, FleetOptions, ReplicaModel
from octavo_protocol.errors import ConfigError
from octavo_protocol.resources.model_deployment import RoutingPolicyName
from octavo_router.policies.weights import DEFAULT_WEIGHTS, read_weights

_FLEET = FleetOptions()
_MODEL = ReplicaModel()
_ADAPTERS = AdapterTraffic()


def sim(
    *,
    trace: Trace,
    policy: Annotated[
        list[str] | None,
        option("--policy", help="Routing policy; repeat it to compare several. Default: all."),
    ] = None,
    replicas: Annotated[
        int, option("--replicas", help="Replicas of the fleet.", min=1)
    ] = _FLEET.num_replicas,
    num_blocks: Annotated[
        int, option("--num-blocks", help="KV blocks of each replica.", min=1)
    ] = _MODEL.num_blocks,
    block_size: BlockSize = None,
    prefill_rate: Annotated[
        float, option("--prefill-rate", help="Prompt tokens per second of a replica.", min=1)
    ] = _MODEL.prefill_tokens_per_s,
    decode_ms: Annotated[
        float, option("--decode-ms", help="Step time of one decoding sequence, in ms.", min=0.001)
    ] = _MODEL.decode_step_s * 1000,
    decode_sequence_ms: Annotated[
        float, option("--decode-sequence-ms", help="Added by each further sequence.", min=0)
    ] = _MODEL.decode_sequence_s * 1000,
    max_num_seqs: Annotated[
        int, option("--max-num-seqs", help="Sequences that run at once.", min=1)
    ] = _MODEL.max_num_seqs,
    max_num_batched_tokens: Annotated[
        int, option("--max-num-batched-tokens", help="Token budget of one step.", min=1)
    ] = _MODEL.max_num_batched_tokens,
    adapters: Annotated[
        int, option("--adapters", help="LoRA adapters that requests ask for.", min=0)
    ] = _ADAPTERS.num_adapters,
    adapter_share: Annotated[
        float, option("--adapter-share", help="Share of such requests.", min=0, max=1)
    ] = _ADAPTERS.share,
    adapter_skew: Annotated[
        float,
        option("--adapter-skew", help="Exponent of Zipf's law of their use; 0: all alike.", min=0),
    ] = _ADAPTERS.skew,
    max_adapters: Annotated[
        int, option("--max-adapters", help="Adapters that a replica holds.", min=1)
    ] = _MODEL.max_adapters,
    adapter_load_ms: Annotated[
        float, option("--adapter-load-ms", help="What the load of one takes, in ms.", min=0)
    ] = _MODEL.adapter_load_s * 1000,
    speed: Speed = 1.0,
    limit: Limit = None,
    fail_at: Annotated[
        float | None, option("--fail-at", help="Second at which half of the replicas die.", min=0)
    ] = None,
    policy_weights: Annotated[
        Path | None,
        option("--policy-weights", help="YAML file with the factors of expected-ttft."),
    ] = None,
    seed: Annotated[int, option("--seed", help="Of the policies' ties.")] = _FLEET.seed,
) -> None:
    """Play a trace against simulated replicas behind the real routing code.

    Replicas have the engine's own block pool and a cost model in place of a GPU, so that an hour of
    traffic takes seconds: to compare policies, or to see how many replicas a load needs. Prints for
    each policy the share of prompt blocks found cached, the busiest replica's prompt work over the
    mean, and times to first token and per token; with adapters also the share of their requests
    that did not wait for a load, and the number of loads.
    """
    from octavo.sim.fleet import simulate
    from octavo.sim.report import report
    from octavo.sim.trace import load_trace

    policies = _policies(policy)
    requests, block_size = load_trace(trace, block_size=block_size, speed=speed, limit=limit)
    model = ReplicaModel(
        num_blocks=num_blocks,
        block_size=block_size,
        prefill_tokens_per_s=prefill_rate,
        decode_step_s=decode_ms / 1000,
        decode_sequence_s=decode_sequence_ms / 1000,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_adapters=max_adapters,
        adapter_load_s=adapter_load_ms / 1000,
    )
    options = FleetOptions(
        num_replicas=replicas,
        model=model,
        adapters=AdapterTraffic(num_adapters=adapters, share=adapter_share, skew=adapter_skew),
        weights=read_weights(policy_weights) if policy_weights else DEFAULT_WEIGHTS,
        seed=seed,
        fail_at_s=fail_at,
    )
    rows: list[dict[str, Any]] = []
    for name in policies:
        result = simulate(requests, dataclasses.replace(options, policy=name))
        rows.append({"policy": name, **dataclasses.asdict(report(result, block_size))})
    _print(rows, with_adapters=adapters > 0)


def _policies(names: list[str] | None) -> list[RoutingPolicyName]:
    known: tuple[RoutingPolicyName, ...] = get_args(RoutingPolicyName)
    chosen = [name for name in known if names is None or name in names]
    for name in names or ():
        if name not in known:
            raise ConfigError(f"--policy {name}: there are {', '.join(known)}")
    return chosen


def _print(rows: list[dict[str, Any]], *, with_adapters: bool) -> None:
    more = f"{'adapters':>10}{'loads':>7}" if with_adapters else ""
    times = f"{'TTFT mean':>11}{'p50':>8}{'p99':>9}{'TPOT':>10}"
    print(f"{'policy':<16}{'hits':>8}{'load':>7}{times}{more}")
    for row in rows:
        if with_adapters:
            more = f"{row['adapter_hit_rate']:>10.1%}{row['num_adapter_loads']:>7}"
        print(
            f"{row['policy']:<16}{row['block_hit_rate']:>8.1%}{row['load_ratio']:>7.2f}"
            f"{row['ttft_mean_s']:>9.3f} s{row['ttft_p50_s']:>8.3f}{row['ttft_p99_s']:>9.3f}"
            f"{row['tpot_mean_s'] * 1000:>7.1f} ms{more}"
        )
