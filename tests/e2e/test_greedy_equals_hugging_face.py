"""Greedy fp32 output equals Hugging Face's `generate`, token for token, whatever runs beside it."""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo_protocol.sampling_params import SamplingParams
from octavo_protocol.tokenizer import Tokenizer
from octavo_runtime.config import EngineConfig
from octavo_runtime.engine.engine_core import EngineCore
from octavo_runtime.engine.messages import EngineRequest
from tests.e2e.make_reference import (
    MAX_TOKENS,
    REFERENCE,
    hugging_face_greedy,
    load_hugging_face,
)
from tests.e2e.prompts import varied_prompts

pytestmark = pytest.mark.model

LIMIT = 2048


@pytest.fixture(scope="module")
def prompts(smollm2: Path) -> list[list[int]]:
    return varied_prompts(Tokenizer.from_folder(smollm2))


@pytest.fixture(scope="module")
def expected(prompts: list[list[int]]) -> list[list[int]]:
    """What `generate` gives for each prompt alone, end token included."""
    rows = json.loads(REFERENCE.read_text())
    assert [row["prompt"] for row in rows] == prompts, "run python -m tests.e2e.make_reference"
    return [row["output"] for row in rows]


@pytest.fixture(scope="module")
def hugging_face(smollm2: Path) -> Any:
    return load_hugging_face(smollm2)


@pytest.fixture
def two_threads() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(num_threads)


def test_the_kept_reference_is_hugging_face_s(
    hugging_face: Any, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    for i in (0, 14, 18, 33, 55, 63):
        assert hugging_face_greedy(hugging_face, prompts[i]) == expected[i]


def engine(folder: Path, **options: Any) -> EngineCore:
    return EngineCore(EngineConfig(model=folder, dtype="float32", max_model_len=LIMIT, **options))


def request(request_id: str, prompt: Sequence[int], **params: Any) -> EngineRequest:
    params = {"temperature": 0.0, "max_tokens": MAX_TOKENS} | params
    return EngineRequest(
        request_id, list(prompt), SamplingParams(**params), time.time(), eos_token_id=2
    )


def run(core: EngineCore) -> dict[str, list[int]]:
    outputs: dict[str, list[int]] = {}
    while core.has_work():
        for output in core.step().outputs:
            outputs.setdefault(output.request_id, []).extend(output.new_token_ids)
        core.scheduler.check()
    return outputs


def generate_all(core: EngineCore, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    for i, prompt in enumerate(prompts):
        core.add_request(request(str(i), prompt))
    outputs = run(core)
    return [outputs[str(i)] for i in range(len(prompts))]


def test_all_prompts_at_once(
    smollm2: Path, prompts: list[list[int]], expected: list[list[int]], two_threads: None
) -> None:
    assert generate_all(engine(smollm2), prompts) == expected


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"enable_prefix_caching": False}, id="no-prefix-caching"),
        pytest.param({"max_num_seqs": 4, "block_size": 8}, id="batch-4-block-8"),
        pytest.param({"max_num_seqs": 16, "block_size": 32}, id="batch-16-block-32"),
        pytest.param({"max_num_seqs": 16, "max_num_batched_tokens": 16}, id="budget-16"),
        pytest.param(
            {"max_num_batched_tokens": 64, "long_prefill_token_threshold": 7}, id="chunk-7"
        ),
        pytest.param({"max_num_batched_tokens": 8192}, id="whole-prompts"),
        pytest.param({"scheduling_policy": "priority"}, id="priority"),
    ],
)
def test_no_option_changes_an_output(
    smollm2: Path, prompts: list[list[int]], expected: list[list[int]], options: dict[str, Any]
) -> None:
    """Every other prompt is enough for all kinds of them."""
    assert generate_all(engine(smollm2, **options), prompts[::2]) == expected[::2]


def test_one_at_a_time(smollm2: Path, prompts: list[list[int]], expected: list[list[int]]) -> None:
    core = engine(smollm2, max_num_seqs=1)
    assert generate_all(core, prompts[::8]) == expected[::8]


def test_chunks_of_one_token(
    smollm2: Path, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    short = [i for i, prompt in enumerate(prompts) if len(prompt) < 60][::2]
    core = engine(smollm2, long_prefill_token_threshold=1)
    assert generate_all(core, [prompts[i] for i in short]) == [expected[i] for i in short]


def test_cached_prompts_give_the_same_again(
    smollm2: Path, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    prompts, expected = prompts[1::2], expected[1::2]
    core = engine(smollm2)
    assert generate_all(core, prompts) == expected
    hits_before = core.scheduler.num_hit_tokens
    assert generate_all(core, prompts) == expected
    hits = core.scheduler.num_hit_tokens - hits_before
    assert hits >= sum(len(prompt) // 16 * 16 - 1 for prompt in prompts if len(prompt) >= 16)


def test_preemption_changes_nothing(
    smollm2: Path, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    core = EngineCore(
        EngineConfig(model=smollm2, dtype="float32", max_model_len=640, num_gpu_blocks_override=40)
    )
    fitting = [i for i, prompt in enumerate(prompts) if len(prompt) < 600]
    assert generate_all(core, [prompts[i] for i in fitting]) == [expected[i] for i in fitting]
    assert core.scheduler.num_preemptions > 0


def test_neighbours_of_any_kind_change_nothing(
    smollm2: Path, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    """Sampled, penalised, logprob and cancelled requests come and go between the greedy ones."""
    prompts, expected = prompts[::2], expected[::2]
    core = engine(smollm2, max_num_seqs=16)
    kinds: list[dict[str, Any]] = [
        {"temperature": 1.0, "seed": 1},
        {"temperature": 0.7, "top_p": 0.8, "top_k": 40, "logprobs": 3},
        {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.5},
        {"min_tokens": 20, "ignore_eos": True, "logprobs": 0},
    ]
    for i, prompt in enumerate(prompts):
        core.add_request(request(str(i), prompt))
        core.add_request(request(f"n{i}", prompt[::-1], **kinds[i % len(kinds)]))
    outputs: dict[str, list[int]] = {}
    steps = 0
    while core.has_work():
        for output in core.step().outputs:
            outputs.setdefault(output.request_id, []).extend(output.new_token_ids)
        steps += 1
        core.abort([f"n{steps // 2}"])
        core.scheduler.check()
    assert [outputs[str(i)] for i in range(len(prompts))] == expected


def test_seeded_sampling_does_not_depend_on_neighbours(
    smollm2: Path, prompts: list[list[int]]
) -> None:
    params: dict[str, Any] = {"temperature": 0.9, "top_p": 0.95, "seed": 7}
    alone = engine(smollm2, enable_prefix_caching=False)
    alone.add_request(request("a", prompts[4], **params))
    crowded = engine(smollm2, long_prefill_token_threshold=5)
    for i in range(12):
        crowded.add_request(request(str(i), prompts[i], temperature=1.0))
    crowded.add_request(request("a", prompts[4], **params))
    assert run(alone)["a"] == run(crowded)["a"]


def test_samples_of_one_prompt_share_its_blocks(smollm2: Path, prompts: list[list[int]]) -> None:
    core = engine(smollm2)
    prompt = prompts[-4][:100]
    for i in range(4):
        core.add_request(request(str(i), prompt, temperature=1.0, seed=i))
    core.step()
    tables = [sequence.block_table for sequence in core.scheduler.running]
    assert len(tables) == 4
    assert all(table[:6] == tables[0][:6] for table in tables)


def test_logprobs_equal_hugging_face(
    smollm2: Path, hugging_face: Any, prompts: list[list[int]]
) -> None:
    core = engine(smollm2)
    prompt = prompts[33]
    core.add_request(request("a", prompt, max_tokens=8, logprobs=5))
    positions = []
    tokens = []
    while core.has_work():
        for output in core.step().outputs:
            tokens += output.new_token_ids
            positions += output.new_logprobs or []
    with torch.inference_mode():
        logits = hugging_face(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    reference = logits.log_softmax(-1)
    assert len(positions) == len(tokens)
    for row, (token, position) in enumerate(zip(tokens, positions, strict=True)):
        assert position.token_ids[0] == token
        assert position.sampled_rank == 1
        for token_id, logprob in zip(position.token_ids, position.logprobs, strict=True):
            assert abs(logprob - reference[row, token_id].item()) < 1e-4
        top = reference[row].topk(5).indices.tolist()
        assert position.token_ids[1:] == top


def test_bf16_logprobs_stay_near_fp32(smollm2: Path, prompts: list[list[int]]) -> None:
    """bf16 has 8 bits of mantissa: over 30 layers a logprob near the top moves by < 0.35."""
    full, half = (
        engine(smollm2),
        EngineCore(EngineConfig(model=smollm2, dtype="bfloat16", max_model_len=LIMIT)),
    )
    worst = 0.0
    for prompt in (prompts[1], prompts[32], prompts[40], prompts[-5]):
        first = []
        for core in (full, half):
            core.add_request(request("a", prompt, max_tokens=1, logprobs=10))
            output = core.step().outputs
            while not output:
                output = core.step().outputs
            assert output[0].new_logprobs is not None
            row = output[0].new_logprobs[0]
            first.append(dict(zip(row.token_ids, row.logprobs, strict=True)))
        shared = first[0].keys() & first[1].keys()
        assert len(shared) >= 8
        worst = max(worst, *(abs(first[0][t] - first[1][t]) for t in shared))
    assert worst < 0.35
