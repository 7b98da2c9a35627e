"""Sampling through the whole engine: prompt log-probabilities, seeds, rules, ends of sequences.

The reference is Hugging Face's forward pass in fp32 of a tiny random model, and of the real one.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fakes.tiny_model import VOCAB_SIZE, tiny_bundle, tiny_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from octavo_protocol.logprobs import FlatLogprobs
from octavo_protocol.outputs import RequestOutput
from octavo_protocol.sampling_params import (
    RepetitionDetectionParams,
    RequestOutputKind,
    SamplingParams,
)
from octavo_protocol.tokenizer import Tokenizer
from octavo_runtime.config import EngineConfig, LogprobsMode
from octavo_runtime.engine.llm_engine import LLMEngine

TOKENIZER = tiny_tokenizer()
PROMPT = [(7 * i) % 300 + 5 for i in range(45)]
PROCESSOR = "tests.unit.runtime.sampling.processors:OnlyToken"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=TOKENIZER.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(path)
    (path / "tokenizer.json").write_text(tiny_bundle().tokenizer_json)  # for grammars
    return path


def engine(folder: Path, **options: Any) -> LLMEngine:
    options = {"num_gpu_blocks_override": 64, "max_model_len": 128} | options
    return LLMEngine(EngineConfig(model=folder, dtype="float32", **options), TOKENIZER)


def generate(
    llm: LLMEngine, *requests: dict[str, Any], prompt: list[int] = PROMPT
) -> list[RequestOutput]:
    """The final output of each request; they run together."""
    for i, params in enumerate(requests):
        tokens = params.pop("prompt", prompt)
        sampling = SamplingParams(**{"output_kind": RequestOutputKind.FINAL_ONLY} | params)
        llm.add_request(str(i), tokens, sampling)
    done: dict[str, RequestOutput] = {}
    while llm.has_unfinished_requests():
        done |= {output.request_id: output for output in llm.step()}
        llm.core.scheduler.check()
    return [done[str(i)] for i in range(len(requests))]


def reference_logits(folder: Path, token_ids: list[int]) -> torch.Tensor:
    """[len(token_ids), vocab_size]: after each token."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([token_ids])).logits[0]
    return logits


def reference_logprobs(folder: Path, token_ids: list[int]) -> torch.Tensor:
    """[len(token_ids) - 1, vocab_size]: of every token after the first."""
    return reference_logits(folder, token_ids)[:-1].log_softmax(-1)


def check_positions(
    positions: Any, token_ids: list[int], reference: torch.Tensor, num_best: int
) -> None:
    """Values, ranks and texts of one entry per row of `reference`."""
    assert len(positions) == len(reference)
    for entry, token_id, logprobs in zip(positions, token_ids, reference, strict=True):
        best = logprobs.topk(num_best).indices.tolist()
        assert set(entry) == {token_id, *best}
        for each, found in entry.items():
            assert found.logprob == pytest.approx(float(logprobs[each]), abs=1e-4)
            assert found.rank == int((logprobs > logprobs[each]).sum()) + 1
            assert found.decoded_token is not None


GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 6, "ignore_eos": True}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_num_batched_tokens": 7, "max_num_seqs": 4},
        {"long_prefill_token_threshold": 16},
        {"enable_prefix_caching": False},
        {"block_size": 1, "num_gpu_blocks_override": 300},
    ],
    ids=str,
)
def test_prompt_logprobs_are_hugging_face_s_however_the_prompt_is_cut(
    folder: Path, options: dict[str, Any]
) -> None:
    llm = engine(folder, **options)
    reference = reference_logprobs(folder, PROMPT)

    for _ in range(2):  # the second time, the prefix cache holds the prompt
        plain, scored = generate(llm, GREEDY | {}, GREEDY | {"prompt_logprobs": 3, "logprobs": 2})

        assert plain.prompt_logprobs is None
        assert scored.prompt_logprobs is not None
        assert scored.prompt_logprobs[0] is None
        check_positions(scored.prompt_logprobs[1:], PROMPT[1:], reference, 3)
        assert scored.num_cached_tokens == 0
        assert scored.outputs[0].token_ids == plain.outputs[0].token_ids
        output = list(scored.outputs[0].token_ids)
        after = reference_logprobs(folder, PROMPT + output)[len(PROMPT) - 1 :]
        check_positions(scored.outputs[0].logprobs, output, after, 2)


def test_prompt_logprobs_survive_preemption_without_gaps_or_duplicates(folder: Path) -> None:
    """Blocks for one and a half of the three sequences."""
    llm = engine(
        folder,
        max_model_len=80,
        num_gpu_blocks_override=7,
        max_num_batched_tokens=24,
        max_num_seqs=3,
    )
    prompts = [PROMPT, PROMPT[::-1], PROMPT[10:] + PROMPT[:10]]

    outputs = generate(
        llm,
        *({"prompt": p, "prompt_logprobs": 0, **GREEDY, "max_tokens": 20} for p in prompts),
    )

    assert llm.core.scheduler.num_preemptions > 0
    for prompt, output in zip(prompts, outputs, strict=True):
        assert output.prompt_logprobs is not None
        reference = reference_logprobs(folder, prompt)
        check_positions(output.prompt_logprobs[1:], prompt[1:], reference, 0)


def test_a_scored_prompt_leaves_its_blocks_for_others(folder: Path) -> None:
    llm = engine(folder)
    generate(llm, GREEDY | {"prompt_logprobs": 0})

    [later] = generate(llm, GREEDY | {})

    assert later.num_cached_tokens == len(PROMPT) // 16 * 16


def test_the_prefix_cache_can_be_left_unread(folder: Path) -> None:
    llm = engine(folder)
    generate(llm, GREEDY | {})

    [output] = generate(llm, GREEDY | {"skip_reading_prefix_cache": True})

    assert output.num_cached_tokens == 0


@pytest.mark.parametrize("threshold", [0, 16], ids=["", "chunked"])
def test_samples_of_one_prompt_share_its_logprobs(folder: Path, threshold: int) -> None:
    """In small chunks, the second sample is ahead of the first, whose blocks it reads."""
    llm = engine(folder, long_prefill_token_threshold=threshold)

    llm.add_request(
        "r",
        PROMPT,
        SamplingParams(
            n=3, seed=1, prompt_logprobs=1, max_tokens=4, output_kind=RequestOutputKind.DELTA
        ),
    )
    outputs: list[RequestOutput] = []
    while llm.has_unfinished_requests():
        outputs += llm.step()

    first, *later = outputs
    assert first.prompt_logprobs is not None
    check_positions(first.prompt_logprobs[1:], PROMPT[1:], reference_logprobs(folder, PROMPT), 1)
    assert all(output.prompt_logprobs is None for output in later)
    by_sample = {i: [o for out in outputs for o in out.outputs if o.index == i] for i in range(3)}
    for deltas in by_sample.values():
        assert sum(len(delta.token_ids) for delta in deltas) == 4
        assert [delta.finished() for delta in deltas][-1]


def test_a_stream_gets_its_prompt_logprobs_with_the_first_token(folder: Path) -> None:
    llm = engine(folder, max_num_batched_tokens=8, max_num_seqs=2)
    params = GREEDY | {"prompt_logprobs": 0, "output_kind": RequestOutputKind.DELTA}
    llm.add_request("r", PROMPT, SamplingParams(**params))
    outputs: list[RequestOutput] = []
    while llm.has_unfinished_requests():
        outputs += llm.step()

    assert [len(output.outputs[0].token_ids) for output in outputs] == [1] * 6
    given = [output.prompt_logprobs for output in outputs]
    assert len(given[0] or []) == len(PROMPT)
    assert given[1:] == [None] * 5


def test_whole_vocabulary_prompt_logprobs_of_a_one_token_prompt(folder: Path) -> None:
    llm = engine(folder, max_logprobs=-1)

    one, two = generate(
        llm,
        GREEDY | {"prompt": [9], "prompt_logprobs": -1, "logprobs": -1, "max_tokens": 1},
        GREEDY | {"prompt": [9, 10], "prompt_logprobs": -1},
    )

    assert one.prompt_logprobs == [None]
    assert len((one.outputs[0].logprobs or [])[0]) == VOCAB_SIZE
    assert [len(entry or {}) for entry in two.prompt_logprobs or []] == [0, VOCAB_SIZE]


def test_flat_logprobs_hold_the_same(folder: Path) -> None:
    llm = engine(folder)
    wanted = GREEDY | {"logprobs": 2, "prompt_logprobs": 1}

    plain, flat = generate(llm, dict(wanted), {"flat_logprobs": True, **wanted})

    assert isinstance(flat.outputs[0].logprobs, FlatLogprobs)
    assert isinstance(flat.prompt_logprobs, FlatLogprobs)
    assert flat.outputs[0].logprobs == plain.outputs[0].logprobs
    assert plain.prompt_logprobs is not None
    assert list(flat.prompt_logprobs) == [{}, *plain.prompt_logprobs[1:]]


def test_named_logprobs_carry_their_true_ranks(folder: Path) -> None:
    [output] = generate(engine(folder), GREEDY | {"logprob_token_ids": [11, 250]})

    tokens = list(output.outputs[0].token_ids)
    reference = reference_logprobs(folder, PROMPT + tokens)[len(PROMPT) - 1 :]
    positions = output.outputs[0].logprobs
    assert positions is not None
    for entry, token_id, logprobs in zip(positions, tokens, reference, strict=True):
        assert set(entry) == {token_id, 11, 250}
        for each, found in entry.items():
            assert found.logprob == pytest.approx(float(logprobs[each]), abs=1e-4)
            assert found.rank == int((logprobs > logprobs[each]).sum()) + 1


def test_the_engine_s_mode_decides_what_logprobs_are(folder: Path) -> None:
    raw = reference_logits(folder, PROMPT)[-1]
    biased = raw.clone()
    biased[9] += 100.0
    wanted: dict[LogprobsMode, torch.Tensor] = {
        "raw_logits": raw,
        "raw_logprobs": raw.log_softmax(-1),
        "processed_logits": biased,
        "processed_logprobs": biased.log_softmax(-1),
    }
    for mode, expected in wanted.items():
        [output] = generate(
            engine(folder, logprobs_mode=mode),
            GREEDY | {"logprobs": 3, "logit_bias": {9: 100.0}, "max_tokens": 1},
        )
        [entry] = output.outputs[0].logprobs or []
        assert list(output.outputs[0].token_ids) == [9]
        for token_id, found in entry.items():
            assert found.logprob == pytest.approx(float(expected[token_id]), abs=1e-4), mode


SEEDED: list[dict[str, Any]] = [
    {"seed": 1},
    {"seed": 2, "top_p": 0.9, "repetition_penalty": 1.2},
    {"seed": 3, "top_k": 40, "temperature": 1.4, "frequency_penalty": 0.5},
    {"seed": 4, "min_p": 0.01, "logprobs": 2, "prompt_logprobs": 1},
]


def test_a_seeded_request_gives_the_same_tokens_whatever_runs_beside_it(folder: Path) -> None:
    length = {"max_tokens": 24, "ignore_eos": True}
    alone = [generate(engine(folder), params | length)[0].outputs[0] for params in SEEDED]

    noise: list[dict[str, Any]] = [
        {"prompt": PROMPT[i:], "temperature": 1.0 + i / 10, "top_k": 5 * i, **length}
        for i in range(6)
    ]
    variants: list[dict[str, Any]] = [
        {},
        {"max_num_batched_tokens": 16, "max_num_seqs": 10},
        {"num_gpu_blocks_override": 12},
    ]
    for options in variants:
        mixed = [dict(params) | length for params in SEEDED]
        together = generate(engine(folder, **options), *[dict(n) for n in noise], *mixed)
        assert [o.outputs[0].token_ids for o in together[len(noise) :]] == [
            each.token_ids for each in alone
        ]


def test_rules_hold_through_a_whole_generation(folder: Path) -> None:
    llm = engine(folder)
    end = TOKENIZER.eos_token_id
    assert end is not None
    allowed, banned, ended = generate(
        llm,
        {"allowed_token_ids": [20, 21, 22], "max_tokens": 30, "seed": 1},
        {"bad_words": ["e", "o"], "logit_bias": {69: 50.0, 79: 50.0}, "seed": 2, "max_tokens": 30},
        {"min_tokens": 9, "logit_bias": {end: 100.0}, "max_tokens": 30, "seed": 3},
    )

    assert set(allowed.outputs[0].token_ids) <= {20, 21, 22}
    forbidden = {ids[0] for word in "eo" if len(ids := TOKENIZER.encode(word)) == 1}
    assert forbidden
    assert not forbidden & set(banned.outputs[0].token_ids)
    assert len(ended.outputs[0].token_ids) == 10
    assert ended.outputs[0].finish_reason == "stop"


def test_a_repeated_pattern_ends_the_sequence(folder: Path) -> None:
    detection = RepetitionDetectionParams(max_pattern_size=2, min_pattern_size=1, min_count=4)

    [output] = generate(
        engine(folder),
        {"allowed_token_ids": [20], "repetition_detection": detection, "max_tokens": 50},
    )

    completion = output.outputs[0]
    assert list(completion.token_ids) == [20] * 4
    assert completion.finish_reason == "repetition"
    assert completion.stop_reason == "repetition_detected"


def test_times_of_a_request_follow_each_other(folder: Path) -> None:
    [output] = generate(engine(folder), GREEDY | {})

    stats = output.metrics
    assert stats is not None
    times = [stats.queued_ts, stats.scheduled_ts, stats.first_token_ts, stats.last_token_ts]
    assert times == sorted(times)
    assert stats.queued_ts > 0


def test_a_logits_processor_of_the_engine_acts_on_the_requests_that_ask(folder: Path) -> None:
    llm = engine(folder, logits_processors=(PROCESSOR,), max_num_batched_tokens=32, max_num_seqs=8)
    plain = generate(engine(folder), GREEDY | {})[0].outputs[0].token_ids

    outputs = generate(
        llm,
        GREEDY | {"extra_args": {"only": 30}, "max_tokens": 3},
        GREEDY | {},
        GREEDY | {"extra_args": {"only": 31}},
        GREEDY | {"extra_args": {"only": 32}, "max_tokens": 9},
    )

    assert [list(o.outputs[0].token_ids) for o in outputs] == [
        [30] * 3,
        list(plain),
        [31] * 6,
        [32] * 9,
    ]


@pytest.mark.model
def test_logprobs_of_the_real_model_are_hugging_face_s(smollm2: Path) -> None:
    tokenizer = Tokenizer.from_folder(smollm2)
    prompt = tokenizer.encode("The capital of France is Paris, and the capital of Italy is " * 8)
    config = EngineConfig(
        model=smollm2, dtype="float32", max_model_len=512, max_num_batched_tokens=64
    )
    llm = LLMEngine(config, tokenizer)

    scored, _ = generate(
        llm,
        {**GREEDY, "prompt": prompt, "logprobs": 5, "prompt_logprobs": 5},
        {**GREEDY, "prompt": prompt[5:]},
    )

    assert scored.prompt_logprobs is not None
    output = list(scored.outputs[0].token_ids)
    reference = reference_logprobs(smollm2, prompt + output)
    positions = [*scored.prompt_logprobs[1:], *(scored.outputs[0].logprobs or [])]
    for entry, token_id, logprobs in zip(positions, (prompt + output)[1:], reference, strict=True):
        assert entry is not None
        assert token_id in entry
        assert len(entry) in (5, 6)
        for each, found in entry.items():
            assert found.logprob == pytest.approx(float(logprobs[each]), abs=1e-4)
