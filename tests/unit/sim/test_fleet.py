"""A simulated fleet is a function of its trace, options and seed; policies differ as known."""

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest

from octavo.cli.main import main
from octavo.sim.fleet import FleetResult, simulate
from octavo.sim.options import FleetOptions, ReplicaModel
from octavo.sim.report import report
from octavo.sim.trace import TraceRequest

BLOCK = 16
MODEL = ReplicaModel(num_blocks=400, block_size=BLOCK, prefill_tokens_per_s=2000.0)


def conversations(num: int, turns: int, seed: int = 0) -> list[TraceRequest]:
    """Chats that all begin with the same block and grow by four blocks a turn."""
    rng = random.Random(seed)
    requests = []
    for chat in range(num):
        hashes = [b"system"]
        arrival = rng.uniform(0, 60)
        for turn in range(turns):
            hashes += [f"{chat}/{turn}/{index}".encode() for index in range(4)]
            requests.append(TraceRequest(arrival, len(hashes) * BLOCK, 60, tuple(hashes)))
            arrival += rng.uniform(2, 10)
    return sorted(requests, key=lambda request: request.arrival_s)


def run(requests: list[TraceRequest], **options: Any) -> FleetResult:
    return simulate(
        requests, dataclasses.replace(FleetOptions(num_replicas=4, model=MODEL), **options)
    )


def test_a_simulation_is_a_function_of_trace_options_and_seed() -> None:
    requests = conversations(20, 4)
    assert run(requests) == run(requests)


def test_the_prefix_aware_policy_finds_what_round_robin_computes_again() -> None:
    requests = conversations(40, 5)
    aware = report(run(requests), BLOCK)
    blind = report(run(requests, policy="round-robin"), BLOCK)
    assert aware.block_hit_rate > 0.65 > 0.5 > blind.block_hit_rate
    assert aware.load_ratio < 1.5
    assert aware.ttft_mean_s < blind.ttft_mean_s


def test_without_news_of_caches_the_default_policy_still_keeps_conversations_together() -> None:
    """As after Redis went away and what was known of caches proved wrong."""
    requests = conversations(40, 5)
    blind = report(run(requests, has_index=False), BLOCK)
    by_load = report(run(requests, policy="least-load", has_index=False), BLOCK)
    assert blind.block_hit_rate > 0.5 > 0.4 > by_load.block_hit_rate
    assert blind.load_ratio < 1.5


def test_when_half_of_the_replicas_die_every_request_ends_all_the_same() -> None:
    requests = conversations(200, 5)
    result = run(requests, policy="round-robin", fail_at_s=30.0)
    assert all(each.end_s is not None for each in result.outcomes)
    assert report(result, BLOCK).num_moves > 0
    late = [each for each in result.outcomes if each.request.arrival_s > 30.0]
    assert {each.replica for each in late} == {"replica-2", "replica-3"}


def test_the_command_compares_policies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 900, "output_length": 3}\n' * 3)
    main_exit = pytest.raises(SystemExit)
    with main_exit as exited:
        main(["sim", str(trace), "--policy", "round-robin", "--policy", "least-load"])
    assert exited.value.code in (0, None)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["policy", "least-load", "round-robin"]


def test_the_command_names_the_policies_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["sim", str(tmp_path), "--policy", "longest"])
    assert exited.value.code == 2
    known = "expected-ttft, least-load, power-of-two, prefix-hash, round-robin, session-affinity"
    assert f"there are {known}" in capsys.readouterr().err


def test_the_command_takes_a_weights_file_and_says_what_is_wrong_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace, weights = tmp_path / "trace.jsonl", tmp_path / "weights.yaml"
    trace.write_text('{"timestamp": 0, "input_length": 900, "output_length": 3}\n')
    for text, code in (("recent: 0.1", (0, None)), ("recents: 0.1", (2,))):
        weights.write_text(text)
        with pytest.raises(SystemExit) as exited:
            main(["sim", str(trace), "--policy-weights", str(weights)])
        assert exited.value.code in code
    assert "there is no weight 'recents'" in capsys.readouterr().err
