"""Every range of `SamplingParams`, by the message that a user gets."""

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_protocol.errors import ValidationError
from octavo_protocol.sampling_params import (
    MAX_INT,
    RepetitionDetectionParams,
    RequestOutputKind,
    SamplingParams,
    SamplingType,
)
from octavo_protocol.structured_outputs import StructuredOutputsParams

MATRIX = "prompt_logprob_token_ids must be a list of lists of token ids"
STOP = "stop must be a non-empty string or a list of non-empty strings"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("n", 0, "n must be between 1 and 16384, got 0"),
        ("n", -1, "n must be between 1 and 16384, got -1"),
        ("n", 16385, "n must be between 1 and 16384, got 16385"),
        ("n", 1.0, "n must be an integer, got float"),
        ("n", True, "n must be an integer, got bool"),
        ("presence_penalty", -2.1, "presence_penalty must be in [-2, 2], got -2.1"),
        ("presence_penalty", 2.1, "presence_penalty must be in [-2, 2], got 2.1"),
        ("frequency_penalty", -2.1, "frequency_penalty must be in [-2, 2], got -2.1"),
        ("frequency_penalty", 2.1, "frequency_penalty must be in [-2, 2], got 2.1"),
        ("repetition_penalty", 0.0, "repetition_penalty must be in (0, inf], got 0.0"),
        ("repetition_penalty", -1.0, "repetition_penalty must be in (0, inf], got -1.0"),
        ("repetition_penalty", math.inf, "repetition_penalty must be in (0, inf], got inf"),
        ("temperature", -0.1, "temperature must be in [0, 2], got -0.1"),
        ("temperature", 2.1, "temperature must be in [0, 2], got 2.1"),
        ("temperature", math.nan, "temperature must be in [0, 2], got nan"),
        ("temperature", "hot", "temperature must be a number, got str"),
        ("temperature", True, "temperature must be a number, got bool"),
        ("top_p", 0.0, "top_p must be in (0, 1], got 0.0"),
        ("top_p", 1.01, "top_p must be in (0, 1], got 1.01"),
        ("top_k", -2, "top_k must be at least -1, got -2"),
        ("top_k", 2**63, f"top_k must be between -1 and {MAX_INT}, got {2**63}"),
        ("min_p", -0.1, "min_p must be in [0, 1], got -0.1"),
        ("min_p", 1.1, "min_p must be in [0, 1], got 1.1"),
        ("seed", 2**63, f"seed must be between {-(2**63)} and {MAX_INT}, got {2**63}"),
        ("seed", "x", "seed must be an integer, got str"),
        ("max_tokens", 0, "max_tokens must be at least 1, got 0"),
        ("max_tokens", -5, "max_tokens must be at least 1, got -5"),
        ("max_tokens", 2**63, f"max_tokens must be between 1 and {MAX_INT}, got {2**63}"),
        ("min_tokens", -1, "min_tokens must be at least 0, got -1"),
        ("min_tokens", 17, "min_tokens (17) must be at most max_tokens (16)"),
        ("logprobs", -2, "logprobs must be at least -1, got -2"),
        ("prompt_logprobs", -2, "prompt_logprobs must be at least -1, got -2"),
        ("logprobs", False, "logprobs must be an integer, got bool"),
        ("stop", "", STOP),
        ("stop", ["a", ""], STOP),
        ("stop", ["a", 3], STOP),
        ("stop", 3, STOP),
        ("stop_token_ids", [-1], "stop_token_ids must be at least 0, got -1"),
        ("stop_token_ids", ["a"], "stop_token_ids must be an integer, got str"),
        ("stop_token_ids", 3, "stop_token_ids must be a list of integers"),
        ("logprob_token_ids", [-1], "logprob_token_ids must be at least 0, got -1"),
        ("logprob_token_ids", 3, "logprob_token_ids must be a list of token ids"),
        (
            "logprob_token_ids",
            list(range(129)),
            "logprob_token_ids takes at most 128 ids, got 129",
        ),
        ("prompt_logprob_token_ids", 3, MATRIX),
        ("prompt_logprob_token_ids", [3], "prompt_logprob_token_ids must be a list of token ids"),
        (
            "prompt_logprob_token_ids",
            [[-2]],
            "prompt_logprob_token_ids must be at least -1, got -2",
        ),
        ("prompt_logprob_start", -1, "prompt_logprob_start must be at least 0, got -1"),
        ("prompt_logprob_start", 1, "prompt_logprob_start needs prompt_logprob_token_ids"),
        ("allowed_token_ids", [], "allowed_token_ids must not be empty: no token could be chosen"),
        ("allowed_token_ids", ["a"], "allowed_token_ids must be an integer, got str"),
        ("logit_bias", [1], "logit_bias must map token ids to numbers"),
        ("logit_bias", {"1": 1.0}, "logit_bias must be an integer, got str"),
        ("logit_bias", {1: math.inf}, "logit_bias must be in [-inf, inf], got inf"),
        ("logit_bias", {1: "a"}, "logit_bias must be a number, got str"),
        ("bad_words", [""], "bad_words must be a list of non-empty strings"),
        ("bad_words", "a", "bad_words must be a list of non-empty strings"),
        ("stream_interval", 0, "stream_interval must be at least 1, got 0"),
        ("thinking_token_budget", -2, "thinking_token_budget must be at least 0, got -2"),
        ("thinking_token_budget", True, "thinking_token_budget must be an integer, got bool"),
        ("thinking_token_budget", -1.0, "thinking_token_budget must be an integer, got float"),
        ("ignore_eos", "yes", "ignore_eos must be True or False, got 'yes'"),
        ("flat_logprobs", 1, "flat_logprobs must be True or False, got 1"),
        ("detokenize", None, "detokenize must be True or False, got None"),
        ("skip_special_tokens", 0, "skip_special_tokens must be True or False, got 0"),
        (
            "spaces_between_special_tokens",
            "",
            "spaces_between_special_tokens must be True or False, got ''",
        ),
        (
            "include_stop_str_in_output",
            [],
            "include_stop_str_in_output must be True or False, got []",
        ),
        ("skip_clone", 1, "skip_clone must be True or False, got 1"),
        (
            "skip_reading_prefix_cache",
            "no",
            "skip_reading_prefix_cache must be True, False or None, got 'no'",
        ),
        ("output_kind", 3, "output_kind must be a RequestOutputKind, got 3"),
        ("output_kind", "delta", "output_kind must be a RequestOutputKind, got 'delta'"),
        ("extra_args", {"a": [2**63]}, "extra_args: an integer does not fit 64 bits"),
        ("extra_args", {"a": [0] * 10_000}, "extra_args has more than 10000 values"),
        ("extra_args", [], "extra_args must be a dict, got list"),
        (
            "structured_outputs",
            {"regex": "a"},
            "structured_outputs must be a StructuredOutputsParams, got dict",
        ),
        (
            "repetition_detection",
            {},
            "repetition_detection must be a RepetitionDetectionParams, got dict",
        ),
        ("watermarking", True, "watermarking is not supported by Octavo; leave it out"),
        (
            "routed_experts_prompt_start",
            1,
            "routed_experts_prompt_start is not supported by Octavo; leave it out",
        ),
        (
            "trace_decode_token_ids",
            [1],
            "trace_decode_token_ids is not supported by Octavo; leave it out",
        ),
    ],
)
def test_value_out_of_range_is_refused_by_name(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        SamplingParams(**{name: value})

    assert str(caught.value) == message
    assert caught.value.parameter == name


@pytest.mark.parametrize(
    ("params", "parameter", "message"),
    [
        (
            {"n": 2, "temperature": 0.0},
            "n",
            "n must be 1 with temperature 0 (got n=2): all samples would be equal",
        ),
        (
            {"stop": "x", "detokenize": False},
            "stop",
            "stop strings are matched on text: set detokenize=True or use stop_token_ids",
        ),
        (
            {"logprobs": 2, "logprob_token_ids": [1]},
            "logprobs",
            "logprobs (2) must be the number of logprob_token_ids (1), or be left out",
        ),
    ],
)
def test_values_in_conflict_are_refused(
    params: dict[str, Any], parameter: str, message: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        SamplingParams(**params)

    assert (str(caught.value), caught.value.parameter) == (message, parameter)


@pytest.mark.parametrize(
    "params",
    [
        {"n": 16384},
        {"presence_penalty": -2, "frequency_penalty": 2},
        {"temperature": 2, "top_p": 1, "top_k": -1, "min_p": 1.0},
        {"seed": -(2**63)},
        {"seed": MAX_INT},
        {"max_tokens": None, "min_tokens": 10**6},
        {"logprobs": -1, "prompt_logprobs": 10**6},
        {"logprobs": 2, "logprob_token_ids": [4, 5]},
        {"logprob_token_ids": list(range(128))},
        {"prompt_logprob_token_ids": [[1, -1], [2, 3]], "prompt_logprob_start": 0},
        {"logit_bias": {0: -200.0, 5: 3}, "allowed_token_ids": [0]},
        {"thinking_token_budget": 0, "stream_interval": 1},
        {"extra_args": {"a": [MAX_INT, {"b": "c"}, 1.5, None]}},
        {"watermarking": False, "routed_experts_prompt_start": 0},
        {"repetition_detection": RepetitionDetectionParams(4, 1, 2)},
        {"structured_outputs": StructuredOutputsParams(regex="a+")},
    ],
)
def test_values_at_the_limits_are_taken(params: dict[str, Any]) -> None:
    made = SamplingParams(**params)

    assert {name: getattr(made, name) for name in params} == params


def test_error_is_a_value_error() -> None:
    with pytest.raises(ValueError):
        SamplingParams(n=0)


def test_unknown_parameter_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="temprature"):
        SamplingParams(temprature=1.0)  # type: ignore[call-arg]


def test_temperature_zero_is_greedy_and_resets_the_filters() -> None:
    params = SamplingParams(temperature=0.0, top_p=0.5, top_k=3, min_p=0.2)

    assert params.is_greedy
    assert (params.top_p, params.top_k, params.min_p) == (1.0, 0, 0.0)


def test_tiny_temperature_is_raised_to_a_safe_one(caplog: pytest.LogCaptureFixture) -> None:
    params = SamplingParams(temperature=0.001)

    assert not params.is_greedy
    assert params.temperature == 0.01
    assert caplog.messages == ["temperature 0.001 is raised to 0.01: smaller ones overflow"]


def test_short_forms_become_the_long_ones() -> None:
    params = SamplingParams(stop="END", seed=-1, logprobs=True)

    assert params.stop == params.stop_strings == ["END"]
    assert params.seed is None
    assert params.logprobs == 1
    assert SamplingParams(output_kind=1).output_kind is RequestOutputKind.DELTA  # type: ignore[arg-type]
    assert SamplingParams().stop == []
    assert SamplingParams().stop_token_ids == []


def test_other_collections_become_lists() -> None:
    given: dict[str, Any] = {
        "stop": ("a", "b"),
        "stop_token_ids": {7},
        "allowed_token_ids": range(3),
        "logprob_token_ids": frozenset({5}),
        "bad_words": ("c",),
    }

    params = SamplingParams(**given)

    assert {name: getattr(params, name) for name in given} == {
        "stop": ["a", "b"],
        "stop_token_ids": [7],
        "allowed_token_ids": [0, 1, 2],
        "logprob_token_ids": [5],
        "bad_words": ["c"],
    }


def test_defaults_are_vllm_s() -> None:
    params = SamplingParams()

    assert (params.n, params.temperature, params.top_p, params.top_k) == (1, 1.0, 1.0, 0)
    assert (params.max_tokens, params.min_tokens, params.logprobs) == (16, 0, None)
    assert params.output_kind is RequestOutputKind.CUMULATIVE


def test_fields_are_vllm_s_in_vllm_s_order() -> None:
    """Positional construction works as there."""
    assert SamplingParams.__struct_fields__ == (
        *("n", "presence_penalty", "frequency_penalty", "repetition_penalty", "temperature"),
        *("watermarking", "top_p", "top_k", "min_p", "seed", "stop", "stop_token_ids"),
        *("ignore_eos", "max_tokens", "min_tokens", "logprobs", "prompt_logprobs"),
        *("prompt_logprob_token_ids", "prompt_logprob_start", "logprob_token_ids"),
        *("flat_logprobs", "detokenize", "skip_special_tokens", "spaces_between_special_tokens"),
        *("include_stop_str_in_output", "output_kind", "stream_interval", "skip_clone"),
        *("structured_outputs", "logit_bias", "allowed_token_ids", "extra_args", "bad_words"),
        *("skip_reading_prefix_cache", "thinking_token_budget", "repetition_detection"),
        *("routed_experts_prompt_start", "trace_decode_token_ids"),
    )


@pytest.mark.parametrize(
    ("params", "is_skipped"),
    [
        ({}, False),
        ({"prompt_logprobs": 0}, True),
        ({"prompt_logprob_token_ids": [[1]]}, True),
        ({"prompt_logprobs": 1, "skip_reading_prefix_cache": False}, False),
        ({"skip_reading_prefix_cache": True}, True),
    ],
)
def test_prefix_cache_is_not_read_where_the_prompt_is_scored(
    params: dict[str, Any], is_skipped: bool
) -> None:
    assert SamplingParams(**params).skip_reading_prefix_cache is is_skipped


@pytest.mark.parametrize(
    ("params", "kind"),
    [
        ({"temperature": 0}, SamplingType.GREEDY),
        ({}, SamplingType.RANDOM),
        ({"seed": 1}, SamplingType.RANDOM_SEED),
    ],
)
def test_sampling_type(params: dict[str, Any], kind: SamplingType) -> None:
    assert SamplingParams(**params).sampling_type is kind


def test_minus_one_is_no_thinking_budget() -> None:
    assert SamplingParams(thinking_token_budget=-1).thinking_token_budget is None


def test_from_optional_takes_none_for_the_default() -> None:
    params = SamplingParams.from_optional(
        n=None, temperature=None, top_p=0.5, max_tokens=None, seed=None, stop=None, logit_bias=None
    )

    assert params == SamplingParams(top_p=0.5, max_tokens=None)


def test_from_optional_cuts_biases_and_reads_their_keys() -> None:
    params = SamplingParams.from_optional(logit_bias={"5": 1000, 6: -1000.0, "7": 1.5})

    assert params.logit_bias == {5: 100.0, 6: -100.0, 7: 1.5}


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        ({"a": 1.0}, "logit_bias: 'a' is not a token id"),
        ({None: 1.0}, "logit_bias: 'None' is not a token id"),
        ({"9" * 5000: 1.0}, "logit_bias: '99999999999999999999' is not a token id"),
        ({"1": "x"}, "logit_bias must be a number, got str"),
        ({"1": math.nan}, "logit_bias must be in [-inf, inf], got nan"),
        ({"-1": 1.0}, "logit_bias must be at least 0, got -1"),
    ],
)
def test_from_optional_refuses_biases_of_nothing(bias: Any, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        SamplingParams.from_optional(logit_bias=bias)

    assert (caught.value.message, caught.value.parameter) == (message, "logit_bias")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((-1, 0, 0), "repetition_detection.max_pattern_size must be at least 0, got -1"),
        ((2, 3, 2), "repetition_detection.min_pattern_size must be between 0 and 2, got 3"),
        ((2, 1, 1), "repetition_detection.min_count must be at least 2, got 1"),
    ],
)
def test_repetition_detection_has_ranges(values: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        RepetitionDetectionParams(*values)

    assert caught.value.message == message


def test_repetition_detection_is_off_by_default() -> None:
    assert RepetitionDetectionParams().max_pattern_size == 0


def test_clone_is_itself_where_nothing_will_change_it() -> None:
    params = SamplingParams(skip_clone=True)

    assert params.clone() is params


def test_clone_shares_nothing_mutable() -> None:
    params = SamplingParams(stop=["a"], stop_token_ids=[1])
    copy = params.clone()
    assert copy == params

    copy.stop_strings.append("b")
    assert copy.stop_token_ids is not None
    copy.stop_token_ids.append(2)

    assert (params.stop, params.stop_token_ids) == (["a"], [1])


@given(
    temperature=st.floats(0, 2),
    seed=st.none() | st.integers(-(2**63), MAX_INT),
    max_tokens=st.none() | st.integers(1, MAX_INT),
    top_k=st.integers(-1, MAX_INT),
    stop=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=3),
    stop_token_ids=st.lists(st.integers(0, MAX_INT), max_size=3),
)
def test_what_is_valid_crosses_to_the_engine_unchanged(**params: Any) -> None:
    made = SamplingParams(**params)

    assert msgspec.msgpack.decode(msgspec.msgpack.encode(made), type=SamplingParams) == made
