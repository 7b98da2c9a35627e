"""From a ModelDeployment and the machine's facts to the processes that serve it. Pure.

    router, port given by the user ──► Redis ◄── replica 0 … n-1, each on a free loopback port

The replicas share the cores and the memory evenly; each child gets its settings as flags alone:
OCTAVO_* and VLLM_* variables of the user's shell do not reach the processes.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from octavo.local.process import ProcessSpec
from octavo_protocol.resources.engine_spec import EngineSpec, serve_flags
from octavo_protocol.resources.model_deployment import ModelDeployment, lora_flags

_LOOPBACK = "127.0.0.1"
_DRAIN_S = 20.0
_STOP_MARGIN_S = 5.0
# Share of the available memory that all replicas' KV pools together may take.
_KV_MEMORY_FRACTION = 0.4
_MAX_FRACTION_PER_REPLICA = 0.3
_KEPT_VARIABLES = frozenset({"OCTAVO_CACHE", "OCTAVO_CPU_KERNELS", "OCTAVO_DEBUG"})
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFacts:
    """What the plan depends on, gathered before.

    model: local folder of the model; adapters: of each of its adapters. replica_ports: one free
    loopback port per replica.
    environment: the supervisor's own, to see which variables must not reach the children.
    files: folder for files and batches.
    """

    model: Path
    num_cores: int
    redis_url: str
    replica_ports: Sequence[int]
    environment: Mapping[str, str]
    files: Path
    adapters: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalPlan:
    """The processes to run. `router_url` is where clients go."""

    replicas: tuple[ProcessSpec, ...]
    router: ProcessSpec
    router_url: str
    model_name: str


def plan(
    deployment: ModelDeployment, facts: MachineFacts, *, host: str, port: int, log_level: str
) -> LocalPlan:
    """The processes that serve `deployment` behind a router on `host:port`."""
    spec, metadata = deployment.spec, deployment.metadata
    num_threads = max(1, facts.num_cores // max(1, spec.replicas))
    common = (
        *("--namespace", metadata.namespace),
        *("--deployment", metadata.name),
        *("--log-level", log_level),
    )
    replicas = []
    for index in range(spec.replicas):
        replica_port = facts.replica_ports[index]
        replicas.append(
            ProcessSpec(
                name=f"replica-{index}",
                command=(
                    *(sys.executable, "-m", "octavo", "serve", str(facts.model)),
                    *_names(spec.served_names),
                    *("--host", _LOOPBACK, "--port", str(replica_port)),
                    *("--replica-id", f"{metadata.name}-{index}"),
                    *("--threads", str(num_threads)),
                    *("--drain-timeout", f"{_DRAIN_S:g}"),
                    *lora_flags(spec.lora_room),
                    *_modules(facts.adapters),
                    *_engine_flags(spec.engine, spec.replicas),
                    *common,
                ),
                env=_environment(facts, num_threads),
                ready_url=f"http://{_LOOPBACK}:{replica_port}/ready",
                stop_timeout_s=_DRAIN_S + _STOP_MARGIN_S,
            )
        )
    reachable = _LOOPBACK if host in ("0.0.0.0", "::", "") else host
    router_url = f"http://{f'[{reachable}]' if ':' in reachable else reachable}:{port}"
    router = ProcessSpec(
        name="router",
        command=(
            *(sys.executable, "-m", "octavo", "router"),
            *("--host", host, "--port", str(port)),
            *("--policy", spec.routing.policy),
            *("--files-url", str(facts.files)),
            *("--drain-timeout", f"{_DRAIN_S:g}"),
            *common,
        ),
        env=_environment(facts, 1),
        ready_url=f"{router_url}/ready",
        stop_timeout_s=_DRAIN_S + _STOP_MARGIN_S,
    )
    return LocalPlan(
        replicas=tuple(replicas),
        router=router,
        router_url=router_url,
        model_name=spec.served_names[0],
    )


def _names(names: Sequence[str]) -> list[str]:
    return [part for name in names for part in ("--served-model-name", name)]


def _modules(adapters: Mapping[str, Path]) -> list[str]:
    modules = ({"name": name, "path": str(folder)} for name, folder in adapters.items())
    return [part for each in modules for part in ("--lora-modules", json.dumps(each))]


def _engine_flags(engine: EngineSpec, num_replicas: int) -> list[str]:
    if engine.kv_cache_memory_mib is not None:
        return serve_flags(engine)
    share = min(_MAX_FRACTION_PER_REPLICA, _KV_MEMORY_FRACTION / num_replicas)
    return ["--kv-memory-fraction", f"{share:.3f}", *serve_flags(engine)]


def _environment(facts: MachineFacts, num_threads: int) -> dict[str, str | None]:
    leaking = (name for name in facts.environment if name.startswith(("OCTAVO_", "VLLM_")))
    removed: dict[str, str | None] = {name: None for name in leaking if name not in _KEPT_VARIABLES}
    threads = dict.fromkeys(_THREAD_VARIABLES, str(num_threads))
    return {
        **removed,
        **threads,
        # Not a flag: the URL may hold a password, and every user of the machine can read arguments.
        "OCTAVO_REDIS_URL": facts.redis_url,
        # The folder that `octavo up` runs in must not supply modules; grandchildren inherit this.
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
    }
