"""Every range of `SamplingParams`, by the message that a user gets."""

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_protocol.errors import ValidationError
from octavo_protocol.sampling_params import MAX_INT, RequestOutputKind, SamplingParams

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
        ("logprobs", -1, "logprobs must be between 0 and 20, got -1"),
        ("logprobs", 21, "logprobs must be between 0 and 20, got 21"),
        ("logprobs", False, "logprobs must be an integer, got bool"),
        ("stop", "", STOP),
        ("stop", ["a", ""], STOP),
        ("stop", ["a", 3], STOP),
        ("stop", 3, STOP),
        ("stop_token_ids", [-1], "stop_token_ids must be at least 0, got -1"),
        ("stop_token_ids", ["a"], "stop_token_ids must be an integer, got str"),
        ("stop_token_ids", 3, "stop_token_ids must be a list of integers"),
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
        {"logprobs": 20},
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


def test_tiny_temperature_is_raised_to_a_safe_one() -> None:
    params = SamplingParams(temperature=0.001)

    assert not params.is_greedy
    assert params.temperature == 0.01


def test_short_forms_become_the_long_ones() -> None:
    params = SamplingParams(stop="END", seed=-1, logprobs=True)

    assert params.stop == params.stop_strings == ["END"]
    assert params.seed is None
    assert params.logprobs == 1
    assert SamplingParams().stop == []
    assert SamplingParams().stop_token_ids == []


def test_defaults_are_vllm_s() -> None:
    params = SamplingParams()

    assert (params.n, params.temperature, params.top_p, params.top_k) == (1, 1.0, 1.0, 0)
    assert (params.max_tokens, params.min_tokens, params.logprobs) == (16, 0, None)
    assert params.output_kind is RequestOutputKind.CUMULATIVE


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
