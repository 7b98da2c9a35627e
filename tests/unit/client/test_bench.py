"""`octavo bench`: workloads, statistics, and the load generator against fake replicas."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from tests.fakes.fake_pooling import EMBEDDER
from tests.fakes.fake_replica import FakeReplica
from tests.unit.server.conftest import running_replica
from typer.testing import CliRunner

from octavo.bench.backends import BackendName
from octavo.bench.online import Target, run_load, wait_until_ready
from octavo.bench.results import summarise
from octavo.bench.statistics import mean, percentile, percentiles
from octavo.bench.workload import BenchRequest, RandomWorkload
from octavo.cli.bench import app
from octavo.cli.bench_dataset import parse_range
from octavo_protocol.errors import UnavailableError
from octavo_protocol.keys import Keys

KEYS = Keys("default", "bench")


@pytest.mark.parametrize("percent", [0, 10, 50, 90, 99, 100])
def test_percentiles_are_numpy_s(percent: int) -> None:
    values = [5.0, 1.0, 4.0, 2.5, 9.0, 7.0]
    assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)))


def test_no_values_have_percentile_and_mean_zero() -> None:
    assert percentiles([], (50, 99)) == {"50": 0.0, "99": 0.0}
    assert mean([]) == 0.0


def test_a_seed_makes_the_same_requests_for_everyone() -> None:
    workload = RandomWorkload(5, (4, 9), (2, 3), prefix_len=6, seed=7)
    requests = workload.requests(32_000)
    assert requests == workload.requests(32_000)
    assert requests != RandomWorkload(5, (4, 9), (2, 3), prefix_len=6, seed=8).requests(32_000)
    assert len({tuple(r.prompt_token_ids[:6]) for r in requests}) == 1
    assert all(10 <= len(r.prompt_token_ids) <= 15 and 2 <= r.output_len <= 3 for r in requests)
    assert all(1000 <= t < 32_000 for r in requests for t in r.prompt_token_ids)


@pytest.mark.parametrize(("text", "bounds"), [("64", (64, 64)), ("64-256", (64, 256))])
def test_lengths_are_a_number_or_a_range(text: str, bounds: tuple[int, int]) -> None:
    assert parse_range(text) == bounds


@pytest.mark.parametrize("text", ["", "0", "x", "9-3", "-5", "1-2-3"])
def test_other_lengths_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="write a number, or a range as 64-256"):
        parse_range(text)


def requests_of(count: int) -> list[BenchRequest]:
    return [BenchRequest([1000 + i, 1001, 1002], 8) for i in range(count)]


def target_of(replica: FakeReplica, **settings: Any) -> Target:
    body = {"temperature": 0, "ignore_eos": True}
    return Target(replica.record.url, replica.record.model, body=body, **settings)


@pytest.mark.parametrize("backend", ["openai", "openai-chat"])
async def test_load_is_measured_per_request(backend: BackendName) -> None:
    async with FakeReplica("a", keys=KEYS) as replica:
        replica.behaviour.first_token_s, replica.behaviour.chunk_s = 0.02, 0.005
        seconds, results = await run_load(target_of(replica, backend=backend), requests_of(6))
    summary = summarise(seconds, results)
    assert (summary["completed"], summary["failed"]) == (6, 0)
    assert summary["total_input_tokens"] == sum(times.num_input_tokens for times in results) > 0
    assert summary["total_output_tokens"] == 48
    assert summary["median_ttft_ms"] >= 20
    assert summary["median_itl_ms"] >= 5
    assert summary["median_e2el_ms"] >= summary["median_ttft_ms"] + 7 * 5
    assert summary["max_concurrent_requests"] == 6
    assert results[0].text.split() == [f"w{i}" for i in range(8)]


@pytest.mark.parametrize(
    "backend", ["openai-embeddings", "openai-embeddings-chat", "vllm-pooling", "vllm-rerank"]
)
async def test_pooling_is_measured_from_request_to_answer(backend: BackendName) -> None:
    requests = [BenchRequest([65 + i, 66, 67], 8, text=f"red {i} rose") for i in range(6)]
    async with running_replica(pooling=EMBEDDER) as replica:
        seconds, results = await run_load(Target(replica.url, "first", backend), requests)

    assert [times.error for times in results] == [None] * 6
    summary = summarise(seconds, results)
    num_tokens = sum(len(request.prompt_token_ids) for request in replica.llm.pooled)
    assert (summary["total_input_tokens"], summary["total_output_tokens"]) == (num_tokens, 0)
    assert 0 < summary["median_e2el_ms"] == summary["median_ttft_ms"]
    assert summary["request_throughput"] == 6 / seconds


async def test_failed_requests_are_counted_and_named_and_nothing_else() -> None:
    async with FakeReplica("a", keys=KEYS) as replica:
        replica.behaviour.status = 503
        seconds, results = await run_load(target_of(replica), requests_of(3))
    summary = summarise(seconds, results)
    assert (summary["completed"], summary["failed"]) == (0, 3)
    assert summary["output_throughput"] == 0
    assert all((times.error or "").startswith("503") for times in results)


async def test_nobody_there_is_an_error_of_each_request() -> None:
    _, results = await run_load(Target("http://127.0.0.1:1", "m"), requests_of(2))
    assert all("ClientConnectorError" in (times.error or "") for times in results)


async def test_a_server_that_never_answers_is_not_ready() -> None:
    with pytest.raises(UnavailableError, match="the first request failed"):
        await wait_until_ready(Target("http://127.0.0.1:1", "m"), requests_of(1)[0], 0.1)


async def test_no_more_requests_are_open_than_asked_for() -> None:
    most = 0

    def look(_: int) -> None:
        nonlocal most
        most = max(most, replica.seen.num_open)

    async with FakeReplica("a", keys=KEYS) as replica:
        replica.behaviour.chunk_s = 0.002
        await run_load(
            target_of(replica),
            requests_of(9),
            max_concurrency=2,
            progress=look,
        )
    assert len(replica.seen.requests) == 9
    assert most <= 2


@pytest.mark.model
def test_throughput_runs_a_real_model_and_writes_its_result(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    lengths = ["--input-len", "8", "--output-len", "4"]
    result = CliRunner().invoke(
        app, ["throughput", "--num-prompts", "2", *lengths, "--output-json", str(out)]
    )
    assert result.exit_code == 0, result.output
    written = json.loads(out.read_text())
    assert written["num_requests"] == 2
    assert written["total_num_tokens"] == 24
