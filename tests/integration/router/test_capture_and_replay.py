"""A trace that is replayed through a router, captured there, and replayed from the capture."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.router_cluster import RouterCluster, RunningRouter
from tests.fakes.tiny_model import VOCAB_SIZE

from octavo.bench.online import Target
from octavo.bench.results import summarise
from octavo.replay.player import play
from octavo.replay.prompts import PromptMaker
from octavo.replay.report import ReplayReport, report
from octavo.sim.trace import TraceRequest, load_trace

pytestmark = pytest.mark.integration
BLOCK = 16


async def replay(url: str, requests: list[TraceRequest], **options: Any) -> ReplayReport:
    target = Target(url, "fake", body={"temperature": 0.0, "ignore_eos": True})
    return report(*await play(target, requests, PromptMaker(BLOCK, VOCAB_SIZE, **options)))


def chats() -> list[TraceRequest]:
    """Three conversations of three turns, each a block longer than the one before."""
    return [
        TraceRequest(
            0.05 * (3 * turn + chat),
            BLOCK * (turn + 2) + 5,
            4,
            tuple(f"{chat}/{index}".encode() for index in range(turn + 2)),
            session=f"chat-{chat}",
        )
        for turn in range(3)
        for chat in range(3)
    ]


def shape(requests: list[TraceRequest]) -> list[Any]:
    """What a trace says apart from names: lengths, and which earlier requests share how much."""
    names: Counter[bytes] = Counter()
    shaped = []
    for request in requests:
        known = sum(1 for each in request.hashes if names[each])
        names.update(request.hashes)
        shaped.append((request.num_prompt_tokens, len(request.hashes), known))
    return shaped


async def test_a_replayed_capture_shares_what_the_first_traffic_shared(
    cluster: RouterCluster, tmp_path: Path
) -> None:
    path = tmp_path / "trace.jsonl"
    await cluster.replica("a")
    router = await cluster.router(1, capture=path, capture_block_size=BLOCK)
    first = await replay(router.url, chats())
    assert (first.num_errors, first.num_requests) == (0, 9)
    # Of each chat the second turn finds two blocks, the third three.
    assert first.cached_tokens == 3 * (2 + 3) * BLOCK

    captured, block_size = load_trace(path)
    assert block_size == BLOCK
    assert shape(captured) == shape(chats())
    assert len({request.session for request in captured}) == 3
    assert {request.num_output_tokens for request in captured} == {8}  # what fakes generate
    assert 0 < captured[-1].arrival_s < 60

    again = await replay(router.url, captured, seed=1)
    assert again.cached_tokens == first.cached_tokens


async def test_a_capture_holds_no_text_and_nothing_of_failed_requests(
    cluster: RouterCluster, tmp_path: Path
) -> None:
    path = tmp_path / "trace.jsonl"
    replica = await cluster.replica("a")
    router = await cluster.router(1, capture=path, capture_block_size=BLOCK)
    for status in (400, None):
        replica.behaviour.status = status
        await router.completion("the quick brown fox " * 9, user="somebody")
    await _stream(router)
    [whole, streamed] = [json.loads(line) for line in path.read_text().splitlines()]
    assert whole.keys() == {
        "timestamp", "input_length", "output_length", "hash_ids", "session_id", "block_size"
    }  # fmt: skip
    assert whole["output_length"] == 8
    assert streamed["output_length"] == 8  # counted: this stream does not tell its usage
    assert "fox" not in path.read_text()
    assert "somebody" not in path.read_text()


async def test_a_replay_keeps_to_its_concurrency(cluster: RouterCluster) -> None:
    replica = await cluster.replica("a")
    replica.behaviour.first_token_s = 0.05
    router = await cluster.router(1)
    target = Target(router.url, "fake", body={"temperature": 0.0})
    prompts = PromptMaker(BLOCK, VOCAB_SIZE)
    seconds, times = await play(target, chats(), prompts, max_concurrency=2)
    summed = summarise(seconds, times)
    assert (summed["completed"], summed["max_concurrent_requests"]) == (9, 2)


async def _stream(router: RunningRouter) -> None:
    body = {"model": "fake", "prompt": "the lazy dog", "stream": True}
    async with router.client.post("/v1/completions", json=body) as response:
        assert (await response.read()).endswith(b"data: [DONE]\n\n")
