"""A trace through the router's own code and simulated replicas, on one virtual clock.

The router's part is the real one: the deployment's replica set, load tracker, prefix index and
policy, the decision over them, and the copies of adapters that it keeps. Replicas tell it what real
ones do: a record every second, cache events after each step, first tokens and ends as they come.
"""

import random
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from octavo.sim.adapters import adapter_names, with_adapters
from octavo.sim.options import FleetOptions, ReplicaModel
from octavo.sim.replica import Progress, SimulatedReplica, SimulatedSequence
from octavo.sim.trace import TraceRequest
from octavo_protocol.keys import HEARTBEAT_S, Keys
from octavo_protocol.records import (
    AdapterSource,
    BlocksRemoved,
    BlocksStored,
    ReplicaRecord,
    encode,
)
from octavo_router.adapters.holdings import AdapterHoldings
from octavo_router.adapters.spreading import AdapterSpreading
from octavo_router.decisions import PromptKey, choose, speculate
from octavo_router.deployment import Deployment
from octavo_router.policies import make_policy
from octavo_router.prefix_index import IndexBudget


@dataclass(slots=True)
class Outcome:
    """What became of one request. Times since the trace began; cached tokens, and whether the
    adapter was there: where it began.
    """

    request: TraceRequest
    replica: str = ""
    first_token_s: float | None = None
    end_s: float | None = None
    num_cached_tokens: int = 0
    num_moves: int = 0
    found_adapter: bool = True

    @property
    def ttft_s(self) -> float:
        assert self.first_token_s is not None
        return self.first_token_s - self.request.arrival_s


@dataclass(frozen=True, slots=True)
class FleetResult:
    """outcomes: one per request, in order. prefill_tokens: computed by each replica.
    num_adapter_loads: on all.
    """

    outcomes: tuple[Outcome, ...]
    prefill_tokens: dict[str, int]
    num_adapter_loads: int = 0


def simulate(requests: Sequence[TraceRequest], options: FleetOptions) -> FleetResult:
    """Runs all requests to their end."""
    fleet = _Fleet(with_adapters(requests, options.adapters, options.seed), options)
    return fleet.run()


class _Fleet:
    def __init__(self, requests: Sequence[TraceRequest], options: FleetOptions) -> None:
        self._options = options
        self._now = 0.0
        self._outcomes = [Outcome(request) for request in requests]
        self._tickets: dict[int, tuple[str, int]] = {}
        names = [f"replica-{index}" for index in range(options.num_replicas)]
        self._replicas = {name: SimulatedReplica(name, options.model) for name in names}
        self._stopped: dict[str, SimulatedReplica] = {}
        self._deployment = Deployment(
            Keys("sim", "fleet"), budget=IndexBudget(), clock=lambda: self._now
        )
        self._deployment.policy = make_policy(
            options.policy, random.Random(options.seed), options.weights
        )
        self._deployment.replicas.adapters.take_sources(
            AdapterSource(name, f"sim://{name}", on_demand=True)
            for name in adapter_names(options.adapters)
        )
        self._demands: dict[int, AbstractContextManager[None]] = {}
        self._spreading = AdapterSpreading(lambda: (), self)
        self._next_heartbeat = 0.0

    def run(self) -> FleetResult:
        for key, outcome in enumerate(self._outcomes):
            self._go_to(outcome.request.arrival_s)
            self._demand(key, outcome.request)
            self._send(key, outcome.request)
        while any(outcome.end_s is None for outcome in self._outcomes):
            self._go_to(self._now + HEARTBEAT_S)
        everyone = {**self._stopped, **self._replicas}
        prefilled = {name: replica.num_prefill_tokens for name, replica in everyone.items()}
        num_loads = sum(replica.adapters.num_loads for replica in everyone.values())
        return FleetResult(tuple(self._outcomes), prefilled, num_loads)

    def is_loading(self, incarnation: str, name: str) -> bool:
        """As the router's loader."""
        return self._replicas[incarnation].adapters.is_loading(name)

    def start(
        self, adapters: AdapterHoldings, record: ReplicaRecord, source: AdapterSource
    ) -> None:
        """As the router's loader."""
        self._replicas[record.incarnation].adapters.load(source.name, self._now)

    def _go_to(self, time_s: float) -> None:
        """Everything up to `time_s` happens: steps, heartbeats, failures."""
        fail_at = self._options.fail_at_s
        if fail_at is not None and not self._stopped and self._now < fail_at <= time_s:
            self._beat_until(fail_at)
            self._fail()
        self._beat_until(time_s)

    def _beat_until(self, time_s: float) -> None:
        while self._next_heartbeat <= time_s:
            self._advance(self._next_heartbeat)
            self._heartbeat()
            self._next_heartbeat += HEARTBEAT_S
        self._advance(time_s)

    def _advance(self, time_s: float) -> None:
        progress: list[tuple[Progress, str]] = []
        for name, replica in self._replicas.items():
            replica.advance(time_s)
            progress += [(each, name) for each in replica.take_progress()]
        for each, name in sorted(progress, key=lambda item: item[0].time_s):
            self._note(each, name)
        self._now = time_s
        self._tell_caches()

    def _tell_caches(self) -> None:
        index = self._deployment.index
        for name, replica in self._replicas.items():
            for event in replica.take_events() if self._options.has_index else ():
                match event:
                    case BlocksStored():
                        index.add(name, event.hashes)
                    case BlocksRemoved():
                        index.remove(name, event.hashes)

    def _note(self, progress: Progress, replica: str) -> None:
        key, outcome = progress.sequence.key, self._outcomes[progress.sequence.key]
        name, ticket = self._tickets[key]
        self._now = progress.time_s
        if progress.is_end:
            outcome.end_s = progress.time_s
            self._deployment.loads.ended(name, ticket)
            self._demands.pop(key).__exit__(None, None, None)
            return
        self._deployment.loads.first_token(name, ticket)
        if outcome.first_token_s is None:
            outcome.first_token_s = progress.time_s
            outcome.replica = replica
            outcome.num_cached_tokens = progress.sequence.num_cached_tokens
            outcome.found_adapter = progress.sequence.found_adapter

    def _heartbeat(self) -> None:
        model = self._options.model
        self._deployment.take(
            {
                name: encode(
                    ReplicaRecord(
                        replica_id=name,
                        incarnation=name,
                        url="",
                        model="sim",
                        served_names=["sim"],
                        cache_model="sim",
                        block_size=model.block_size,
                        num_blocks=model.num_blocks,
                        max_model_len=model.num_blocks * model.block_size,
                        running=replica.num_running,
                        waiting_tokens=replica.num_waiting_tokens,
                        prefill_tokens_per_s=model.prefill_tokens_per_s,
                        decode_tokens_per_s=_decode_rate(model, replica.num_running),
                        max_num_seqs=model.max_num_seqs,
                        adapters=sorted(replica.adapters.known),
                        loaded_adapters=replica.adapters.loaded,
                        max_adapters=model.max_adapters,
                        adapter_load_s=model.adapter_load_s,
                    )
                )
                for name, replica in self._replicas.items()
            }
        )
        self._spreading.spread(self._deployment)

    def _demand(self, key: int, request: TraceRequest) -> None:
        demand = self._demands[key] = self._deployment.adapter_request(request.adapter)
        demand.__enter__()

    def _send(self, key: int, request: TraceRequest) -> None:
        prompt = PromptKey(
            hashes=request.hashes,
            num_tokens=request.num_prompt_tokens,
            block_size=self._options.model.block_size,
            session=request.session,
        )
        choice = choose(self._deployment, request.adapter or "sim", prompt)
        name = choice.record.incarnation
        speculate(self._deployment, choice, prompt)
        num_uncached = request.num_prompt_tokens - choice.view.num_cached_tokens
        self._tickets[key] = (name, self._deployment.loads.sent(name, num_uncached))
        self._replicas[name].submit(SimulatedSequence(key, request))

    def _fail(self) -> None:
        """The first replicas by name die; what they ran goes on elsewhere, its output as prompt."""
        num_failing = int(len(self._replicas) * self._options.failing)
        for name in list(self._replicas)[:num_failing]:
            replica = self._stopped[name] = self._replicas.pop(name)
            self._deployment.index.drop(name)
            lost = replica.stop()
            self._heartbeat()
            for sequence in lost:
                self._outcomes[sequence.key].num_moves += 1
                self._send(sequence.key, _rest(sequence))


def _rest(sequence: SimulatedSequence) -> TraceRequest:
    request, done = sequence.request, sequence.num_output_tokens
    return replace(
        request,
        num_prompt_tokens=request.num_prompt_tokens + done,
        num_output_tokens=max(1, request.num_output_tokens - done),
    )


def _decode_rate(model: ReplicaModel, num_running: int) -> float:
    num_running = max(1, num_running)
    step = model.decode_step_s + (num_running - 1) * model.decode_sequence_s
    return num_running / step
