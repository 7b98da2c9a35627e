"""Structured outputs through the whole engine, with a real model at temperature 1."""

import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from llguidance import LLMatcher

from octavo_protocol.errors import ValidationError
from octavo_protocol.outputs import CompletionOutput, RequestOutput
from octavo_protocol.sampling_params import RequestOutputKind, SamplingParams
from octavo_protocol.structured_outputs import StructuredOutputsParams
from octavo_protocol.tokenizer import Tokenizer
from octavo_runtime.config import EngineConfig
from octavo_runtime.engine.llm_engine import LLMEngine
from octavo_runtime.structured_outputs.compiler import GrammarCompiler

pytestmark = pytest.mark.model

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "mood": {"enum": ["good", "bad"]},
        "pets": {"type": "array", "items": {"type": "string", "maxLength": 6}, "maxItems": 2},
    },
    "required": ["name", "age", "mood"],
    "additionalProperties": False,
}
ADDRESS = r"\d{1,3}(\.\d{1,3}){3}"
CHOICES = ["yes", "no", "maybe, maybe not"]
SUM = 'root ::= num ("+" num){1,3}\nnum ::= [0-9]{1,4}'
CALL = {
    "type": "triggered_tags",
    "triggers": ["<call"],
    "at_least_one": True,
    "stop_after_first": True,
    "tags": [
        {
            "type": "tag",
            "begin": "<call:f>",
            "content": {"type": "json_schema", "json_schema": PERSON},
            "end": "</call>",
        }
    ],
}


def is_person(text: str) -> bool:
    return bool(jsonschema_rs.is_valid(PERSON, json.loads(text)))


def is_call(text: str) -> bool:
    match = re.fullmatch(r"<call:f>(.*)</call>", text, re.DOTALL)
    return match is not None and is_person(match[1])


CONSTRAINTS: dict[str, tuple[StructuredOutputsParams, Any]] = {
    "json": (StructuredOutputsParams(json=PERSON), is_person),
    "regex": (StructuredOutputsParams(regex=ADDRESS), re.compile(ADDRESS).fullmatch),
    "choice": (StructuredOutputsParams(choice=CHOICES), CHOICES.__contains__),
    "grammar": (
        StructuredOutputsParams(grammar=SUM),
        re.compile(r"\d{1,4}(\+\d{1,4}){1,3}").fullmatch,
    ),
    "tag": (StructuredOutputsParams(structural_tag=json.dumps({"format": CALL})), is_call),
}
PROMPTS = ["A person as JSON: ", "The address of the server is ", "Shall we? ", "1+1=", "Tools: "]


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Tokenizer:
    return Tokenizer.from_folder(smollm2)


@pytest.fixture(scope="module")
def llm(smollm2: Path, tokenizer: Tokenizer) -> Iterator[LLMEngine]:
    engine = new_engine(smollm2, tokenizer)
    yield engine
    engine.shutdown()


def new_engine(folder: Path, tokenizer: Tokenizer | None, **options: Any) -> LLMEngine:
    options = {"num_gpu_blocks_override": 256, "max_model_len": 400, "max_num_seqs": 16} | options
    return LLMEngine(EngineConfig(model=folder, dtype="float32", **options), tokenizer)


def params(constraint: StructuredOutputsParams | None = None, **fields: Any) -> SamplingParams:
    fields = {"temperature": 1.0, "seed": 0, "max_tokens": 300} | fields
    fields.setdefault("output_kind", RequestOutputKind.FINAL_ONLY)
    return SamplingParams(structured_outputs=constraint, **fields)


def run(llm: LLMEngine, *jobs: tuple[str, SamplingParams], **more: Any) -> list[RequestOutput]:
    """The jobs' last outputs, in their order; all run at the same time."""
    assert llm.tokenizer is not None
    for index, (prompt, sampling) in enumerate(jobs):
        llm.add_request(str(index), llm.tokenizer.encode(prompt), sampling, **more)
    last: dict[str, RequestOutput] = {}
    while llm.has_unfinished_requests():
        for output in llm.step():
            last[output.request_id] = output
        llm.core.scheduler.check()
    assert llm.core.scheduler.pool.num_free == llm.info.num_blocks
    return [last[str(index)] for index in range(len(jobs))]


def mixed_jobs(num_seeds: int) -> list[tuple[str, SamplingParams, Any]]:
    return [
        (prompt, params(constraint, seed=seed), is_valid)
        for seed in range(num_seeds)
        for prompt, (constraint, is_valid) in zip(PROMPTS, CONSTRAINTS.values(), strict=True)
    ]


def assert_valid(outputs: list[RequestOutput], checks: list[Any]) -> None:
    for output, is_valid in zip(outputs, checks, strict=True):
        for sample in output.outputs:
            assert sample.finish_reason == "stop", sample.text
            assert is_valid(sample.text), sample.text


def test_every_output_satisfies_its_constraint_in_a_mixed_batch(llm: LLMEngine) -> None:
    jobs = mixed_jobs(8)
    outputs = run(llm, *[(prompt, sampling) for prompt, sampling, _ in jobs])
    assert_valid(outputs, [check for _, _, check in jobs])
    texts = {output.outputs[0].text for output in outputs}
    assert len(texts) > 20  # the seeds differ, and so do the outputs


def test_outputs_are_valid_with_few_blocks_and_small_chunks(
    smollm2: Path, tokenizer: Tokenizer
) -> None:
    cramped = new_engine(
        smollm2,
        tokenizer,
        block_size=8,
        num_gpu_blocks_override=50,
        max_num_batched_tokens=24,
    )
    constraint, is_valid = CONSTRAINTS["json"]
    prompts = [f"Number {seed}: " + PROMPTS[0] * 8 for seed in range(10)]
    jobs = [(prompt, params(constraint, seed=seed)) for seed, prompt in enumerate(prompts)]
    outputs = run(cramped, *jobs)
    assert cramped.stats.preemptions_total > 0
    assert_valid(outputs, [is_valid] * 10)
    cramped.shutdown()


def test_samples_of_one_request_each_follow_the_grammar(llm: LLMEngine) -> None:
    constraint, is_valid = CONSTRAINTS["json"]
    [output] = run(llm, (PROMPTS[0], params(constraint, n=6)))
    assert len({sample.text for sample in output.outputs}) == 6
    assert_valid([output], [is_valid])


def test_a_cached_prompt_changes_nothing(llm: LLMEngine) -> None:
    constraint, _ = CONSTRAINTS["json"]
    prompt = "The same long prompt about a person and their pets. " * 6
    [first] = run(llm, (prompt, params(constraint)))
    [again] = run(llm, (prompt, params(constraint)))
    assert again.num_cached_tokens is not None
    assert again.num_cached_tokens > 0
    assert again.outputs[0].token_ids == first.outputs[0].token_ids


def test_deltas_add_up_to_the_whole_output(llm: LLMEngine) -> None:
    assert llm.tokenizer is not None
    constraint, is_valid = CONSTRAINTS["json"]
    [whole] = run(llm, (PROMPTS[0], params(constraint)))
    delta = params(constraint, output_kind=RequestOutputKind.DELTA)
    llm.add_request("delta", llm.tokenizer.encode(PROMPTS[0]), delta)
    text = ""
    while llm.has_unfinished_requests():
        text += "".join(output.outputs[0].text for output in llm.step())
    assert text == whole.outputs[0].text
    assert is_valid(text)


def test_neighbours_without_a_grammar_are_what_they_are_alone(llm: LLMEngine) -> None:
    # Draws race: the last bits of a sum, which depend on the batch, change next to none.
    free = [("Once upon a time", params(seed=s, max_tokens=30)) for s in range(3)]
    alone = [run(llm, job)[0].outputs[0].token_ids for job in free]
    jobs = [*free, *[(prompt, sampling) for prompt, sampling, _ in mixed_jobs(2)]]
    together = run(llm, *jobs)
    assert [output.outputs[0].token_ids for output in together[:3]] == alone


def only(llm: LLMEngine, sampling: SamplingParams, **more: Any) -> CompletionOutput:
    [output] = run(llm, ("Shall we? ", sampling), **more)
    return output.outputs[0]


def test_a_finished_grammar_leaves_only_the_end_token(llm: LLMEngine) -> None:
    output = only(llm, params(CONSTRAINTS["choice"][0]))
    assert output.text in CHOICES
    assert output.token_ids[-1] in llm.info.eos_token_ids


@pytest.mark.parametrize("fields", [{"ignore_eos": True}, {"min_tokens": 50}], ids=str)
def test_a_finished_grammar_ends_a_sequence_that_may_not_end(
    llm: LLMEngine, fields: dict[str, Any]
) -> None:
    output = only(llm, params(CONSTRAINTS["choice"][0], **fields))
    assert output.text in CHOICES
    assert output.finish_reason == "stop"


def test_min_tokens_keeps_an_open_grammar_going(llm: LLMEngine) -> None:
    constraint = StructuredOutputsParams(regex="[0-9]{1,90}")
    bias = {llm.info.eos_token_ids[0]: 100.0}  # it ends as soon as it may
    assert len(only(llm, params(constraint, logit_bias=bias)).token_ids) == 2
    output = only(llm, params(constraint, logit_bias=bias, min_tokens=20))
    assert re.fullmatch("[0-9]{20}", output.text)
    assert (output.finish_reason, len(output.token_ids)) == ("stop", 21)


def test_max_tokens_cuts_the_output_and_says_so(llm: LLMEngine) -> None:
    output = only(llm, params(CONSTRAINTS["json"][0], max_tokens=3))
    assert (output.finish_reason, len(output.token_ids)) == ("length", 3)


def test_greedy_output_follows_the_grammar(llm: LLMEngine) -> None:
    assert only(llm, params(CONSTRAINTS["choice"][0], temperature=0.0)).text in CHOICES


def test_the_grammar_begins_after_the_reasoning(llm: LLMEngine) -> None:
    assert llm.tokenizer is not None
    choice = CONSTRAINTS["choice"][0]
    free = only(llm, params(max_tokens=40, ignore_eos=True))
    end = free.token_ids[5:8]  # what this seed writes anyway is what ends the reasoning
    output = only(llm, params(choice), reasoning_end_token_ids=end, is_reasoning=True)
    assert output.token_ids[:8] == free.token_ids[:8]
    answer = llm.tokenizer.decode(output.token_ids[8:])
    assert answer in CHOICES
    at_once = only(llm, params(choice), reasoning_end_token_ids=end)
    assert at_once.text in CHOICES


def test_a_request_whose_parser_exceeds_its_limits_fails_alone(llm: LLMEngine) -> None:
    many = {"type": "object", "properties": {f"v{i}": {"type": "null"} for i in range(1500)}}
    constraint = StructuredOutputsParams(json=many)
    failed, good = run(llm, ("{", params(constraint)), ("Shall we? ", params(max_tokens=5)))
    assert failed.outputs[0].finish_reason == "error"
    assert (good.outputs[0].finish_reason, len(good.outputs[0].token_ids)) == ("length", 5)


def test_a_refused_constraint_queues_nothing(llm: LLMEngine) -> None:
    with pytest.raises(ValidationError, match="unclosed group"):
        llm.add_request("r", [1, 2], params(StructuredOutputsParams(regex="(")))
    assert not llm.has_unfinished_requests()
    assert not llm.core.has_work()


def test_an_engine_without_a_tokenizer_refuses_constraints(smollm2: Path) -> None:
    llm = new_engine(smollm2, None)
    with pytest.raises(ValidationError, match="no tokenizer") as caught:
        llm.add_request("r", [1, 2], params(CONSTRAINTS["regex"][0]))
    assert caught.value.parameter == "structured_outputs"
    llm.shutdown()


class Slow:
    """Holds compilations back until `go`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = threading.Event()
        compile_now = GrammarCompiler._compile

        def compile_later(compiler: GrammarCompiler, grammar: str) -> LLMatcher:
            assert self.go.wait(30)
            return compile_now(compiler, grammar)

        monkeypatch.setattr(GrammarCompiler, "_compile", compile_later)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    slow = Slow(monkeypatch)
    yield slow
    slow.go.set()


def test_a_grammar_that_is_being_compiled_delays_nobody_and_spins_not(
    llm: LLMEngine, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: Future[LLMatcher] = Future()
    known.set_result(None)  # the API side has checked it
    monkeypatch.setattr(llm._grammars._compiler, "compile", lambda grammar: known)
    constraint = StructuredOutputsParams(regex="new [a-z]{3}")
    llm.add_request("slow", [1, 2, 3], params(constraint))
    assert not llm.core.has_work()
    llm.add_request("free", [1, 2, 3], params(max_tokens=2))
    while llm.core.has_work():
        last = llm.step()
    assert [output.request_id for output in last] == ["free"]
    assert llm.stats.waiting == 1
    slow.go.set()
    while llm.has_unfinished_requests():
        last = llm.step()
    assert re.fullmatch("new [a-z]{3}", last[0].outputs[0].text)


def test_a_request_is_aborted_while_its_grammar_is_compiled(
    llm: LLMEngine, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: Future[LLMatcher] = Future()
    known.set_result(None)
    monkeypatch.setattr(llm._grammars._compiler, "compile", lambda grammar: known)
    llm.add_request("slow", [1, 2, 3], params(StructuredOutputsParams(regex="gone")))
    llm.abort_request(["slow"])
    slow.go.set()
    assert not llm.has_unfinished_requests()
    assert not llm.core.has_work()
    assert llm.step() == []
    assert llm.stats.waiting == 0
