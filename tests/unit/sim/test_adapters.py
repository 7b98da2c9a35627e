"""Simulated adapters: who asks for which, what replicas hold, and what policies make of it."""

import dataclasses
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.cli.main import main
from octavo.sim.adapters import SimulatedAdapters, with_adapters
from octavo.sim.fleet import FleetResult, simulate
from octavo.sim.options import AdapterTraffic, FleetOptions, ReplicaModel
from octavo.sim.replica import SimulatedReplica, SimulatedSequence
from octavo.sim.report import report
from octavo.sim.trace import TraceRequest

BLOCK = 16
MODEL = ReplicaModel(
    num_blocks=4000, block_size=BLOCK, prefill_tokens_per_s=8000, max_adapters=4, adapter_load_s=0.5
)


def requests_of(count: int, *, per_s: float = 20.0) -> list[TraceRequest]:
    rng = random.Random(1)
    now, made = 0.0, []
    for number in range(count):
        now += rng.expovariate(per_s)
        hashes = tuple(f"{number}/{index}".encode() for index in range(4))
        made.append(TraceRequest(now, 4 * BLOCK, 20, hashes))
    return made


def test_zipf_s_law_says_how_often_each_is_asked_for_and_none_shares_blocks() -> None:
    requests = requests_of(4000)
    traffic = AdapterTraffic(num_adapters=10, share=0.5, skew=1.0)
    asked = with_adapters(requests, traffic, seed=3)

    assert asked == with_adapters(requests, traffic, seed=3) != with_adapters(requests, traffic, 4)
    counts = Counter(request.adapter for request in asked)
    assert counts.pop(None) == pytest.approx(2000, rel=0.1)
    assert counts["adapter-1"] / counts["adapter-2"] == pytest.approx(2, rel=0.3)
    assert counts["adapter-1"] / counts["adapter-10"] == pytest.approx(10, rel=0.5)
    same = [TraceRequest(0, 16, 1, (b"x",))] * 50
    told = {(each.adapter, each.hashes) for each in with_adapters(same, traffic, 0)}
    assert len({hashes for _, hashes in told}) == len(told)
    assert with_adapters(requests, AdapterTraffic(), 0) == requests


def test_a_request_waits_for_its_load_and_others_do_not() -> None:
    replica = SimulatedReplica("a", MODEL)
    prompt = TraceRequest(0.0, 80, 1, (b"x",))
    replica.submit(SimulatedSequence(0, dataclasses.replace(prompt, adapter="sql")))
    replica.submit(SimulatedSequence(1, prompt))
    replica.submit(SimulatedSequence(2, dataclasses.replace(prompt, adapter="sql")))
    replica.advance(2.0)
    ends = {each.sequence.key: each.time_s for each in replica.take_progress() if each.is_end}
    assert ends[1] == pytest.approx(0.01)
    assert 0.5 < ends[0] <= ends[2] < 0.53
    assert (replica.adapters.num_loads, replica.adapters.loaded) == (1, ["sql"])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 7), st.floats(0, 1.5)), max_size=60))
def test_places_are_never_exceeded_and_what_is_used_stays(asked: list[tuple[int, float]]) -> None:
    adapters, now, used = SimulatedAdapters(3, 0.4), 0.0, Counter[str]()
    for number, gap in asked:
        now, name = now + gap, f"adapter-{number}"
        if adapters.has(name) and used.total() < 5:
            adapters.begin(name)
            used[name] += 1
        else:
            adapters.load(name, now)
        list(adapters.settle(now))
        adapters.check()
        assert all(adapters.has(each) for each, count in used.items() if count)
        if number % 2 and (busy := next((each for each in +used), None)):
            adapters.end(busy)
            used[busy] -= 1
    for name, count in used.items():
        for _ in range(count):
            adapters.end(name)
    while (at := adapters.next_read(now)) < float("inf"):
        now = at
        list(adapters.settle(now))
        adapters.check()
    assert len(adapters.loaded) <= 3


def run(count: int = 1500, **options: object) -> FleetResult:
    traffic = AdapterTraffic(num_adapters=20, skew=1.0)
    fleet = FleetOptions(num_replicas=4, model=MODEL, adapters=traffic)
    return simulate(requests_of(count), dataclasses.replace(fleet, **options))  # type: ignore[arg-type]


def test_expected_ttft_waits_for_fewer_loads_than_round_robin() -> None:
    aware, blind = report(run(), BLOCK), report(run(policy="round-robin"), BLOCK)

    assert aware.adapter_hit_rate > blind.adapter_hit_rate
    assert aware.ttft_mean_s < blind.ttft_mean_s
    assert run() == run()


def test_with_a_place_for_each_every_adapter_is_loaded_a_few_times_at_most() -> None:
    result = run(model=dataclasses.replace(MODEL, max_adapters=20))
    assert 20 <= result.num_adapter_loads <= 4 * 20
    assert report(result, BLOCK).adapter_hit_rate > 0.9


def test_what_dies_with_its_adapters_goes_on_elsewhere() -> None:
    result = run(600, fail_at_s=10.0)
    assert all(each.end_s is not None for each in result.outcomes)


def test_the_command_tells_of_adapters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 900, "output_length": 3}\n' * 3)
    flags = "--policy round-robin --adapters 5 --adapter-skew 2 --max-adapters 2"
    with pytest.raises(SystemExit) as exited:
        main(
            ["sim", str(trace), *flags.split(), "--adapter-share", "1", "--adapter-load-ms", "100"]
        )
    assert exited.value.code in (0, None)
    head, row = capsys.readouterr().out.splitlines()
    assert head.split()[-2:] == ["adapters", "loads"]
    assert row.split()[-2] == "0.0%"
