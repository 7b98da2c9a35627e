"""From the engine's tokens to what a caller sees."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.tiny_model import VOCAB_SIZE, tiny_tokenizer

from octavo_protocol.errors import ValidationError
from octavo_protocol.outputs import RequestOutput
from octavo_protocol.sampling_params import RequestOutputKind, SamplingParams
from octavo_runtime.engine.messages import EngineRequest, SequenceOutput, TokenLogprobs
from octavo_runtime.engine.output_processor import OutputProcessor, ProcessedStep

TOKENIZER = tiny_tokenizer()
PROMPT = TOKENIZER.encode("the dog")
CUMULATIVE, DELTA, FINAL_ONLY = RequestOutputKind


def added(
    processor: OutputProcessor, request_id: str = "r", **params: Any
) -> tuple[OutputProcessor, list[str]]:
    """The processor with one more request, and the ids of its sequences."""
    sampling = SamplingParams(**{"max_tokens": 1000} | params)
    ids = [request_id] if sampling.n == 1 else [f"{request_id}_{i}" for i in range(sampling.n)]
    children = [EngineRequest(child, PROMPT, sampling, arrival_time=1.5) for child in ids]
    processor.add(request_id, children, sampling, prompt="the dog")
    return processor, ids


def processor_with(**params: Any) -> OutputProcessor:
    return added(OutputProcessor(TOKENIZER), **params)[0]


def steps(token_ids: Sequence[int], finish_reason: str | None = "length") -> list[SequenceOutput]:
    """One token per step; the last one finishes."""
    outputs = [SequenceOutput("r", [token]) for token in token_ids]
    outputs[-1].finish_reason = finish_reason
    return outputs


def outputs_of(
    processor: OutputProcessor, sequence_outputs: Sequence[SequenceOutput]
) -> list[RequestOutput]:
    return [out for each in sequence_outputs for out in processor.process([each]).outputs]


def text_of(outputs: Sequence[RequestOutput]) -> str:
    return "".join(output.outputs[0].text for output in outputs)


@given(
    token_ids=st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=40),
    stop=st.lists(st.sampled_from(["e", "the", " ", "\ufffd", "天", "zz"]), max_size=2),
    include=st.booleans(),
    reason=st.sampled_from(["stop", "length"]),
)
def test_deltas_join_to_the_final_output(
    token_ids: list[int], stop: list[str], include: bool, reason: str
) -> None:
    options: dict[str, Any] = {"stop": stop, "include_stop_str_in_output": include}
    work = steps(token_ids, reason)

    deltas = outputs_of(processor_with(output_kind=DELTA, **options), work)
    final = outputs_of(processor_with(output_kind=FINAL_ONLY, **options), work)
    cumulative = outputs_of(processor_with(**options), work)

    assert len(final) == 1
    assert final[0].outputs == cumulative[-1].outputs
    end = final[0].outputs[0]
    assert text_of(deltas) == end.text
    assert [t for delta in deltas for t in delta.outputs[0].token_ids] == list(end.token_ids)
    assert deltas[-1].outputs[0].finish_reason == end.finish_reason
    assert deltas[-1].outputs[0].stop_reason == end.stop_reason
    assert [output.finished for output in deltas] == [False] * (len(deltas) - 1) + [True]
    shown = [output.outputs[0].text for output in cumulative]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(shown))


def test_final_only_says_nothing_before_the_end() -> None:
    processor = processor_with(output_kind=FINAL_ONLY)

    assert processor.process([SequenceOutput("r", [70])]).outputs == []
    assert len(processor.process([SequenceOutput("r", [71], finish_reason="stop")]).outputs) == 1
    assert len(processor) == 0


def test_output_carries_prompt_and_times() -> None:
    output = outputs_of(processor_with(), steps([70, 71, 72]))[-1]

    assert (output.request_id, output.prompt, output.prompt_token_ids) == ("r", "the dog", PROMPT)
    assert output.metrics is not None
    assert output.metrics.arrival_time == 1.5
    assert output.metrics.num_generation_tokens == 3
    assert 0 < output.metrics.first_token_ts <= output.metrics.last_token_ts
    assert output.metrics.first_token_latency >= 0


def test_three_samples_are_one_request() -> None:
    processor, ids = added(OutputProcessor(TOKENIZER), n=3, output_kind=FINAL_ONLY)
    texts = ["the dog", " quick", "今天"]
    for child, text in zip(ids[:2], texts[:2], strict=True):
        done = SequenceOutput(child, TOKENIZER.encode(text), finish_reason="stop")
        assert processor.process([done]).outputs == []

    last = SequenceOutput(ids[2], TOKENIZER.encode(texts[2]), finish_reason="length")
    [output] = processor.process([last]).outputs

    assert [completion.index for completion in output.outputs] == [0, 1, 2]
    assert [completion.text for completion in output.outputs] == texts
    assert [completion.finish_reason for completion in output.outputs] == ["stop", "stop", "length"]
    assert output.finished
    assert len(processor) == 0


def test_deltas_of_three_samples_carry_only_those_that_moved() -> None:
    processor, ids = added(OutputProcessor(TOKENIZER), n=3, output_kind=DELTA)

    [first] = processor.process(
        [SequenceOutput(ids[2], [70]), SequenceOutput(ids[0], [71])]
    ).outputs
    assert [completion.index for completion in first.outputs] == [0, 2]
    ends = [SequenceOutput(child, [72], finish_reason="length") for child in ids]
    results = outputs_of(processor, ends)
    assert [[c.index for c in output.outputs] for output in results] == [[0], [1], [2]]
    assert [output.finished for output in results] == [False, False, True]


def test_stop_string_ends_the_sequence_in_the_engine_too() -> None:
    processor = processor_with(stop=["dog"], output_kind=FINAL_ONLY)

    step = processor.process([SequenceOutput("r", TOKENIZER.encode("the dog sleeps"))])

    assert step.aborts == ["r"]
    [completion] = step.outputs[0].outputs
    assert completion.text == "the "
    assert (completion.finish_reason, completion.stop_reason) == ("stop", "dog")
    assert step.outputs[0].finished
    late = processor.process([SequenceOutput("r", [70], finish_reason="length")])
    assert (late.outputs, late.aborts) == ([], [])


def test_stop_string_of_one_sample_aborts_only_that_sample() -> None:
    processor, ids = added(OutputProcessor(TOKENIZER), n=2, stop=["dog"], output_kind=FINAL_ONLY)

    step = processor.process(
        [
            SequenceOutput(child, TOKENIZER.encode(t))
            for child, t in zip(ids, ("dog", "fox"), strict=True)
        ]
    )

    assert step.aborts == [ids[0]]
    assert step.outputs == []
    assert processor.abort("r").aborts == [ids[1]]


def test_stop_string_in_the_last_tokens_aborts_nothing() -> None:
    processor = processor_with(stop=["dog"])

    last = SequenceOutput("r", TOKENIZER.encode("the dog"), finish_reason="length")
    step = processor.process([last])

    assert step.aborts == []
    assert step.outputs[0].outputs[0].finish_reason == "stop"
    assert step.outputs[0].outputs[0].stop_reason == "dog"


def test_stop_string_completed_by_a_flushed_character_counts() -> None:
    token_ids = [*TOKENIZER.encode("a"), TOKENIZER.encode("ÿ")[0]]
    assert TOKENIZER.decode(token_ids) == "a\ufffd"
    processor = processor_with(stop=["a\ufffd"])

    [output] = processor.process([SequenceOutput("r", token_ids, finish_reason="length")]).outputs

    assert (output.outputs[0].text, output.outputs[0].stop_reason) == ("", "a\ufffd")


def test_stop_token_is_reported_by_its_id() -> None:
    processor = processor_with(stop_token_ids=[70])

    last = SequenceOutput("r", [70], finish_reason="stop", stop_reason=70)
    [output] = processor.process([last]).outputs

    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("stop", 70)


def test_min_tokens_delays_stop_strings() -> None:
    processor = processor_with(stop=["a"], min_tokens=3)
    a, b = TOKENIZER.encode("a")[0], TOKENIZER.encode("b")[0]

    results = [processor.process([SequenceOutput("r", [token])]) for token in (a, b, b, a)]

    assert [step.aborts for step in results] == [[], [], [], ["r"]]
    assert results[-1].outputs[0].outputs[0].text == "abb"


def test_match_before_min_tokens_stays_forgotten_beside_a_longer_stop_string() -> None:
    processor = processor_with(stop=["a", "a long one"], min_tokens=2)
    a, b = TOKENIZER.encode("a")[0], TOKENIZER.encode("b")[0]

    results = [processor.process([SequenceOutput("r", [token])]) for token in (a, b, b)]

    assert [step.aborts for step in results] == [[], [], []]


def logprobs(token_ids: list[int], values: list[float], rank: int) -> TokenLogprobs:
    return TokenLogprobs(token_ids, values, rank)


def test_logprobs_name_the_sampled_token_and_the_best_ones() -> None:
    processor = processor_with(logprobs=2, output_kind=FINAL_ONLY)
    dog, fox, the = (TOKENIZER.encode(text)[0] for text in ("d", "f", "t"))
    work = [
        SequenceOutput("r", [dog], [logprobs([dog, fox, the], [-3.0, -0.5, -1.0], 7)]),
        SequenceOutput(
            "r", [fox], [logprobs([fox, fox, the], [-0.25, -0.25, -2.0], 1)], finish_reason="length"
        ),
    ]

    [output] = outputs_of(processor, work)

    [completion] = output.outputs
    assert completion.cumulative_logprob == pytest.approx(-3.25)
    assert completion.logprobs is not None
    first, second = completion.logprobs
    assert {token: (each.logprob, each.rank) for token, each in first.items()} == {
        dog: (-3.0, 7),
        fox: (-0.5, 1),
        the: (-1.0, 2),
    }
    assert {token: each.rank for token, each in second.items()} == {fox: 1, the: 2}
    assert first[dog].decoded_token == "d"


def test_logprobs_of_deltas_are_those_of_their_tokens() -> None:
    processor = processor_with(logprobs=0, output_kind=DELTA)
    values = [-0.5, -1.0, -1.5]
    work = steps([70, 71, 72])
    for output, value in zip(work, values, strict=True):
        output.new_logprobs = [logprobs(output.new_token_ids, [value], 1)]

    results = outputs_of(processor, work)

    entries = [result.outputs[0].logprobs or [] for result in results]
    assert [list(entry[0]) for entry in entries] == [[70], [71], [72]]
    cumulative = [result.outputs[0].cumulative_logprob for result in results]
    assert cumulative == [-0.5, -1.5, -3.0]


def test_without_logprobs_there_are_none() -> None:
    [output] = outputs_of(processor_with(output_kind=FINAL_ONLY), steps([70]))

    assert output.outputs[0].logprobs is None
    assert output.outputs[0].cumulative_logprob is None


def test_logprob_of_minus_infinity_survives() -> None:
    processor = processor_with(logprobs=0)
    work = [SequenceOutput("r", [70], [logprobs([70], [-math.inf], 1)], finish_reason="stop")]

    assert outputs_of(processor, work)[0].outputs[0].cumulative_logprob == -math.inf


def test_late_outputs_of_an_aborted_request_are_dropped() -> None:
    processor, ids = added(OutputProcessor(TOKENIZER), n=2)
    processor.process([SequenceOutput(ids[0], [70], finish_reason="stop")])

    assert processor.abort("r").aborts == [ids[1]]

    assert "r" not in processor
    assert processor.process([SequenceOutput(ids[1], [70])]).outputs == []
    assert processor.abort("r") == processor.abort("never there") == ProcessedStep([], [])


@pytest.mark.parametrize(("kind", "text"), [(DELTA, ""), (CUMULATIVE, "dog"), (FINAL_ONLY, "dog")])
def test_last_output_of_an_aborted_request_says_so(kind: RequestOutputKind, text: str) -> None:
    processor = processor_with(output_kind=kind)
    processor.process([SequenceOutput("r", TOKENIZER.encode("dog"))])

    [last] = processor.abort("r").outputs

    assert last.finished
    assert (last.outputs[0].text, last.outputs[0].finish_reason) == (text, "abort")


@pytest.mark.parametrize(("first", "second"), [("r", "r"), ("r", "r_1"), ("r_0", "r")])
def test_id_that_is_in_use_is_refused_and_the_request_that_has_it_goes_on(
    first: str, second: str
) -> None:
    processor, ids = added(OutputProcessor(TOKENIZER), first, n=1 if "_" in first else 2)

    with pytest.raises(ValidationError, match=f"request id '{second}' is in use"):
        added(processor, second, n=1 if "_" in second else 2)

    assert processor.abort(first).aborts == ids
    added(processor, second)


def test_requests_do_not_mix() -> None:
    processor, _ = added(OutputProcessor(TOKENIZER), "r", output_kind=DELTA)
    added(processor, "s", output_kind=DELTA)

    step = processor.process(
        [SequenceOutput("r", TOKENIZER.encode("dog")), SequenceOutput("s", TOKENIZER.encode("fox"))]
    )

    assert [(out.request_id, out.outputs[0].text) for out in step.outputs] == [
        ("r", "dog"),
        ("s", "fox"),
    ]


def test_cached_tokens_are_those_of_the_first_sample() -> None:
    processor, ids = added(OutputProcessor(TOKENIZER), n=2, output_kind=FINAL_ONLY)
    work = [
        SequenceOutput(ids[0], [70], finish_reason="stop", num_cached_tokens=0),
        SequenceOutput(ids[1], [70], finish_reason="stop", num_cached_tokens=16),
    ]

    assert outputs_of(processor, work)[0].num_cached_tokens == 0

    work = [SequenceOutput("r", [70], finish_reason="stop", num_cached_tokens=16)]
    assert outputs_of(processor_with(), work)[0].num_cached_tokens == 16


def test_without_tokenizer_or_detokenize_there_is_no_text() -> None:
    for processor in (added(OutputProcessor(None))[0], processor_with(detokenize=False)):
        [*_, last] = outputs_of(processor, steps([70, 71]))

        assert last.outputs[0].text == ""
        assert list(last.outputs[0].token_ids) == [70, 71]


def test_special_tokens_are_shown_only_when_asked_for() -> None:
    end = TOKENIZER.eos_token_id
    assert end is not None
    work = steps([*TOKENIZER.encode("dog"), end], "stop")

    assert text_of(outputs_of(processor_with(output_kind=DELTA), work)) == "dog"
    shown = processor_with(output_kind=DELTA, skip_special_tokens=False)
    assert text_of(outputs_of(shown, work)) == "dog<|end|>"


def test_ranks_come_from_the_engine_where_it_gives_them() -> None:
    processor = processor_with(logprob_token_ids=[80, 81], output_kind=FINAL_ONLY)
    position = TokenLogprobs([70, 80, 81], [-0.5, -4.0, -2.0], 1, [1, 30, 9])

    [output] = outputs_of(processor, [SequenceOutput("r", [70], [position], "length")])

    [entry] = output.outputs[0].logprobs or []
    assert {token: each.rank for token, each in entry.items()} == {70: 1, 80: 30, 81: 9}


def prompt_steps() -> list[SequenceOutput]:
    """A prompt of four tokens that is scored in two chunks; then two tokens."""
    scored = [logprobs([token], [-1.0], 2) for token in PROMPT[1:]]
    return [
        SequenceOutput("r", [], new_prompt_logprobs=scored[:1]),
        SequenceOutput("r", [70], new_prompt_logprobs=scored[1:]),
        SequenceOutput("r", [71], finish_reason="length"),
    ]


@pytest.mark.parametrize(
    ("kind", "num_outputs", "given"),
    [(DELTA, 2, [True, False]), (CUMULATIVE, 2, [True, True]), (FINAL_ONLY, 1, [True])],
    ids=["delta", "cumulative", "final"],
)
def test_prompt_logprobs_come_with_the_first_tokens(
    kind: RequestOutputKind, num_outputs: int, given: list[bool]
) -> None:
    results = outputs_of(processor_with(prompt_logprobs=0, output_kind=kind), prompt_steps())

    assert len(results) == num_outputs
    assert [result.prompt_logprobs is not None for result in results] == given
    first = results[0].prompt_logprobs
    assert first is not None
    assert first[0] is None
    entries = [each for entry in first[1:] for each in (entry or {}).items()]
    assert [(token, each.logprob, each.rank) for token, each in entries] == [
        (token, -1.0, 2) for token in PROMPT[1:]
    ]
    assert entries[0][1].decoded_token == TOKENIZER.token_text(PROMPT[1])


def test_outputs_wait_for_the_prompt_s_logprobs() -> None:
    """A sample that reads the first one's blocks can be ahead of it."""
    processor, ids = added(OutputProcessor(TOKENIZER), n=2, prompt_logprobs=0, output_kind=DELTA)
    scored = [logprobs([token], [-1.0], 1) for token in PROMPT[1:]]
    work = [
        SequenceOutput(ids[1], [70]),
        SequenceOutput(ids[1], [71]),
        SequenceOutput(ids[0], [72], new_prompt_logprobs=scored),
        SequenceOutput(ids[1], [73], finish_reason="stop"),
    ]

    shown = [processor.process([each]).outputs for each in work]

    assert shown[:2] == [[], []]
    tokens = [{o.index: list(o.token_ids) for o in out.outputs} for [out] in shown[2:]]
    assert tokens == [{0: [72], 1: [70, 71]}, {1: [73]}]


@pytest.mark.parametrize(("engine", "asked"), [(3, None), (1, 3), (3, 2), (2, 3)])
def test_first_and_last_outputs_are_immediate_and_those_between_wait(
    engine: int, asked: int | None
) -> None:
    processor, _ = added(
        OutputProcessor(TOKENIZER, stream_interval=engine), output_kind=DELTA, stream_interval=asked
    )
    interval = max(engine, asked or 1)

    sizes = [len(out.outputs[0].token_ids) for out in outputs_of(processor, steps([70] * 9))]

    assert sizes == [1, interval, interval, 9 - 1 - 2 * interval]


def test_cumulative_outputs_wait_alike() -> None:
    results = outputs_of(processor_with(stream_interval=4), steps([70] * 7))

    assert [len(result.outputs[0].token_ids) for result in results] == [1, 5, 7]


def test_repetition_is_reported_as_the_stop_reason() -> None:
    work = [SequenceOutput("r", [70], finish_reason="repetition")]

    [output] = outputs_of(processor_with(), work)

    completion = output.outputs[0]
    assert (completion.finish_reason, completion.stop_reason) == (
        "repetition",
        "repetition_detected",
    )


def test_chosen_special_tokens_stay_in_the_text() -> None:
    end = TOKENIZER.eos_token_id
    assert end is not None
    processor = OutputProcessor(TOKENIZER)
    sampling = SamplingParams(max_tokens=100, output_kind=DELTA)
    children = [EngineRequest("r", PROMPT, sampling, arrival_time=1.5)]
    processor.add("r", children, sampling, prompt=None, visible_special_ids=frozenset({end}))
    work = steps([*TOKENIZER.encode("dog"), end, *TOKENIZER.encode(" fox")])

    assert text_of(outputs_of(processor, work)) == "dog<|end|> fox"
