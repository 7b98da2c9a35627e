"""Beam search: the pure search by hand-made models, `LLM.beam_search` against Hugging Face."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from octavo import LLM, SamplingParams
from octavo.beam_search import BeamSearchParams
from octavo_protocol.errors import ValidationError
from octavo_protocol.outputs import Logprob
from octavo_protocol.structured_outputs import StructuredOutputsParams
from octavo_runtime.engine.beam_search import BeamSearch

EOS = 0


def table(*rows: float) -> dict[int, Logprob]:
    """Log-probabilities of tokens 0, 1, …"""
    return {token: Logprob(math.log(p)) for token, p in enumerate(rows)}


def model(prompt: list[int]) -> dict[int, Logprob]:
    """Four tokens; what follows depends on the last one. 0 ends."""
    return {
        1: table(0.1, 0.2, 0.3, 0.4),
        2: table(0.6, 0.2, 0.1, 0.1),
        3: table(0.05, 0.05, 0.8, 0.1),
    }[prompt[-1]]


def run(params: BeamSearchParams, prompt: list[int], max_model_len: int = 100) -> BeamSearch:
    search = BeamSearch(prompt, params, [EOS], max_model_len=max_model_len)
    while prompts := search.next_prompts():
        search.advance([model(each) for each in prompts])
    return search


def every_output(prompt: list[int], length: int) -> dict[tuple[int, ...], float]:
    """Log-probability of each output of at most `length` tokens that ends or is of that length."""
    outputs: dict[tuple[int, ...], float] = {}
    for n in range(1, length + 1):
        for tokens in itertools.product(range(4), repeat=n):
            if EOS in tokens[:-1] or (tokens[-1] != EOS and n < length):
                continue
            whole = [*prompt, *tokens]
            outputs[tokens] = sum(
                model(whole[: len(prompt) + i])[token].logprob for i, token in enumerate(tokens)
            )
    return outputs


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0, -1.0])
def test_a_beam_as_wide_as_the_tree_finds_the_best_outputs(length_penalty: float) -> None:
    params = BeamSearchParams(
        beam_width=27,
        max_tokens=3,
        length_penalty=length_penalty,
        include_stop_str_in_output=True,
    )

    found = run(params, [1]).result()

    outputs = every_output([1], 3)
    ranked = sorted(outputs, key=lambda t: outputs[t] / len(t) ** length_penalty, reverse=True)
    scores = [outputs[t] / len(t) ** length_penalty for t in ranked[:27]]
    assert [beam.cum_logprob / (len(beam.tokens) - 1) ** length_penalty for beam in found] == (
        pytest.approx(scores)
    )
    assert found[0].tokens == [1, *ranked[0]]


def test_completed_and_live_beams_say_how_they_ended() -> None:
    found = run(BeamSearchParams(beam_width=2, max_tokens=2), [1]).result()

    assert [(b.tokens, b.finish_reason, b.stop_reason) for b in found] == [
        ([1, 3, 2], "length", None),
        ([1, 2], "stop", EOS),
    ]
    assert found[1].cum_logprob == pytest.approx(math.log(0.3) + math.log(0.6))
    assert [len(beam.logprobs) for beam in found] == [2, 2]


def test_end_token_is_kept_only_where_it_is_asked_for() -> None:
    params = BeamSearchParams(beam_width=1, max_tokens=5, include_stop_str_in_output=True)

    assert run(params, [2]).result()[0].tokens == [2, EOS]
    params.include_stop_str_in_output = False
    assert run(params, [2]).result()[0].tokens == [2]


def test_the_context_bounds_the_search() -> None:
    params = BeamSearchParams(beam_width=2, max_tokens=50, ignore_eos=True)

    search = BeamSearch([1, 1, 1], params, [EOS], max_model_len=5)
    lengths = []
    while prompts := search.next_prompts():
        lengths.append({len(each) for each in prompts})
        search.advance([table(0.1, 0.2, 0.3, 0.4) for _ in prompts])

    assert lengths == [{3}, {4}]
    assert [len(beam.tokens) for beam in search.result()] == [5, 5]


def test_only_allowed_tokens_are_generated() -> None:
    params = BeamSearchParams(beam_width=2, max_tokens=2, allowed_token_ids=[1, 2])

    found = run(params, [1]).result()

    assert {token for beam in found for token in beam.tokens} == {1, 2}
    assert len(found) == 2


def test_search_ends_when_every_continuation_has_ended() -> None:
    params = BeamSearchParams(beam_width=2, max_tokens=9, allowed_token_ids=[EOS])

    search = run(params, [1])

    [only] = search.result()
    assert (only.tokens, only.finish_reason) == ([1], "stop")
    assert search.next_prompts() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_width": 0}, "beam_width must be between 1 and 16384, got 0"),
        ({"beam_width": 2.0}, "beam_width must be an integer, got 2.0"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"temperature": 3}, r"temperature must be in \[0, 2\], got 3"),
        ({"length_penalty": math.nan}, "length_penalty must be in"),
        ({"length_penalty": "1"}, "length_penalty must be a number, got '1'"),
        ({"allowed_token_ids": []}, "allowed_token_ids must not be empty"),
        ({"watermarking": True}, "watermarking is not supported"),
    ],
)
def test_wrong_parameter_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        BeamSearchParams(**({"beam_width": 2, "max_tokens": 4} | options))


# -- the real model -------------------------------------------------------------------------------

TEXTS = [
    "The capital of France is",
    "Once upon a time there was a",
    "def fibonacci(n):",
]
QUESTION = "<|im_start|>user\nAnswer with one word: what colour is the sky?<|im_end|>\n" + (
    "<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def llm(smollm2: Path) -> Iterator[LLM]:
    with LLM(str(smollm2), dtype="float32", max_model_len=256) as llm:
        yield llm


@pytest.fixture(scope="module")
def reference(smollm2: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)


def by_transformers(
    model: Any, prompt: list[int], params: BeamSearchParams, eos: int | None
) -> list[tuple[list[int], float]]:
    """Generated tokens without the end token, and scores; best first."""
    result = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt)),
        num_beams=params.beam_width,
        num_return_sequences=params.beam_width,
        max_new_tokens=params.max_tokens,
        length_penalty=params.length_penalty,
        early_stopping="never",
        do_sample=False,
        eos_token_id=eos,
        pad_token_id=-1 if eos is None else eos,
        return_dict_in_generate=True,
        output_scores=True,
    )
    rows = [row[len(prompt) :].tolist() for row in result.sequences]
    cut = [row[: row.index(eos)] if eos in row else row for row in rows]
    return list(zip(cut, result.sequences_scores.tolist(), strict=True))


def scored(beams: Any, prompt: list[int], length_penalty: float) -> list[tuple[list[int], float]]:
    return [
        (beam.tokens[len(prompt) :], beam.cum_logprob / len(beam.logprobs) ** length_penalty)
        for beam in beams
    ]


@pytest.mark.model
@pytest.mark.parametrize(("width", "length_penalty"), [(2, 1.0), (4, 0.5), (8, 2.0)])
def test_beams_equal_those_of_transformers(
    llm: LLM, reference: Any, width: int, length_penalty: float
) -> None:
    """Without end tokens the two are the same by definition."""
    params = BeamSearchParams(
        beam_width=width, max_tokens=10, length_penalty=length_penalty, ignore_eos=True
    )
    tokenizer = llm.get_tokenizer()

    outputs = llm.beam_search(TEXTS, params)

    for text, output in zip(TEXTS, outputs, strict=True):
        prompt = tokenizer.encode(text)
        expected = by_transformers(reference, prompt, params, None)
        found = scored(output.sequences, prompt, length_penalty)
        assert [tokens for tokens, _ in found] == [tokens for tokens, _ in expected]
        assert [score for _, score in found] == pytest.approx([s for _, s in expected], abs=1e-4)


@pytest.mark.model
@pytest.mark.parametrize(("width", "length_penalty"), [(2, 1.0), (4, 1.0), (4, 0.0)])
def test_beams_that_end_equal_those_of_transformers(
    llm: LLM, reference: Any, width: int, length_penalty: float
) -> None:
    """A question whose likely answers end: every end is among the best of its step."""
    params = BeamSearchParams(beam_width=width, max_tokens=16, length_penalty=length_penalty)
    tokenizer = llm.get_tokenizer()
    prompt = tokenizer.encode(QUESTION)

    [output] = llm.beam_search([QUESTION], params)

    expected = by_transformers(reference, prompt, params, tokenizer.eos_token_id)
    found = scored(output.sequences, prompt, length_penalty)
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in expected]
    assert [score for _, score in found] == pytest.approx([s for _, s in expected], abs=1e-4)
    assert "stop" in {beam.finish_reason for beam in output.sequences}


@pytest.mark.model
def test_one_beam_is_greedy_generation(llm: LLM) -> None:
    outputs = llm.beam_search(TEXTS, BeamSearchParams(beam_width=1, max_tokens=10))

    greedy = llm.generate(TEXTS, SamplingParams(temperature=0, max_tokens=10), use_tqdm=False)
    assert [output.sequences[0].text for output in outputs] == [
        text + result.outputs[0].text for text, result in zip(TEXTS, greedy, strict=True)
    ]


@pytest.mark.model
def test_output_carries_whole_texts_and_the_prompt(llm: LLM) -> None:
    params = BeamSearchParams(beam_width=2, max_tokens=4)
    ids = llm.get_tokenizer().encode(TEXTS[0])

    by_text, by_ids = llm.beam_search([TEXTS[0], {"prompt_token_ids": ids}], params)

    assert [b.tokens for b in by_text.sequences] == [b.tokens for b in by_ids.sequences]
    for beam in by_text.sequences:
        assert beam.text == llm.get_tokenizer().decode(beam.tokens)
        assert str(beam.text).startswith(TEXTS[0])
        assert beam.orig_prompt == TEXTS[0]
    assert by_ids.sequences[0].orig_prompt == {"prompt_token_ids": ids}


@pytest.mark.model
def test_limit_of_concurrent_prompts_changes_no_result(llm: LLM) -> None:
    params = BeamSearchParams(beam_width=3, max_tokens=4)

    together = llm.beam_search(TEXTS, params)
    in_turn = llm.beam_search(TEXTS, params, concurrency_limit=1)

    assert [[b.tokens for b in o.sequences] for o in in_turn] == [
        [b.tokens for b in o.sequences] for o in together
    ]
    assert llm.beam_search([], params) == []


@pytest.mark.model
def test_allowed_tokens_are_the_only_ones_generated(llm: LLM) -> None:
    allowed = llm.get_tokenizer().encode(" Paris London Rome")
    params = BeamSearchParams(beam_width=2, max_tokens=2, allowed_token_ids=allowed)
    [output] = llm.beam_search(TEXTS[:1], params)

    start = len(llm.get_tokenizer().encode(TEXTS[0]))
    assert len(output.sequences) == 2
    assert {t for beam in output.sequences for t in beam.tokens[start:]} <= set(allowed)
    assert " Paris" in str(output.sequences[0].text)


@pytest.mark.model
def test_what_cannot_be_honoured_is_refused_and_nothing_stays_queued(llm: LLM) -> None:
    wide = BeamSearchParams(beam_width=11, max_tokens=2)
    shaped = BeamSearchParams(
        beam_width=2, max_tokens=2, structured_outputs=StructuredOutputsParams(choice=["a"])
    )
    narrow = BeamSearchParams(beam_width=2, max_tokens=2)
    wrong: Any = object()

    with pytest.raises(ValidationError, match=r"needs 22 log-probabilities.*max_logprobs=22"):
        llm.beam_search(TEXTS, wide)
    with pytest.raises(ValidationError, match="beam search takes no structured_outputs"):
        llm.beam_search(TEXTS, shaped)
    with pytest.raises(ValidationError, match="concurrency_limit must be at least 1"):
        llm.beam_search(TEXTS, narrow, concurrency_limit=0)
    with pytest.raises(TypeError, match="expected BeamSearchParams, got object"):
        llm.beam_search(TEXTS, wrong)
    assert not llm.llm_engine.has_unfinished_requests()


@pytest.mark.model
def test_generate_with_beam_search_params_is_translated(llm: LLM) -> None:
    params = BeamSearchParams(beam_width=2, max_tokens=4)
    wrong: Any = params
    [beams] = llm.beam_search([TEXTS[0]], params)

    with pytest.warns(DeprecationWarning, match="is now beam_search"):
        [output] = llm.generate(TEXTS[0], wrong, use_tqdm=False)

    start = len(output.prompt_token_ids or ())
    assert [list(c.token_ids) for c in output.outputs] == [
        beam.tokens[start:] for beam in beams.sequences
    ]
    assert [TEXTS[0] + c.text for c in output.outputs] == [beam.text for beam in beams.sequences]
