"""Parameters of an offline call as the fields of a request that means the same."""

from collections.abc import Iterator

import hypothesis.strategies as st
import pytest
from hypothesis import given

from octavo.cluster.bodies import beam_body, chat_body, completion_body
from octavo.cluster.llm import ClusterLLM
from octavo.cluster.pooling import pooling_body, score_body
from octavo.lora.request import LoRARequest
from octavo.tokenization import TokenizationOptions
from octavo_protocol.beam_search import BeamSearchParams
from octavo_protocol.errors import ValidationError
from octavo_protocol.openai import ChatCompletionRequest, CompletionRequest
from octavo_protocol.pooling import PoolingParams
from octavo_protocol.sampling_params import RepetitionDetectionParams, SamplingParams
from octavo_protocol.structured_outputs import StructuredOutputsParams

# A model's own defaults, which explicit parameters must override.
MODEL = SamplingParams(temperature=0.3, top_p=0.5, top_k=7, repetition_penalty=1.3)
PLAIN = TokenizationOptions()
PARAMS = st.builds(
    SamplingParams,
    n=st.integers(1, 4),
    temperature=st.floats(0.1, 2),
    top_p=st.floats(0.1, 1),
    top_k=st.integers(0, 50),
    min_p=st.floats(0, 1),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    repetition_penalty=st.floats(0.5, 2),
    seed=st.none() | st.integers(0, 2**40),
    stop=st.lists(st.text(min_size=1, max_size=4), max_size=4),
    stop_token_ids=st.lists(st.integers(0, 100), max_size=3),
    ignore_eos=st.booleans(),
    max_tokens=st.integers(5, 50),
    min_tokens=st.integers(0, 5),
    logprobs=st.none() | st.integers(1, 5),
    prompt_logprobs=st.none() | st.integers(0, 5),
    skip_special_tokens=st.booleans(),
    include_stop_str_in_output=st.booleans(),
    logit_bias=st.none() | st.dictionaries(st.integers(0, 9), st.floats(-9, 9), min_size=1),
    allowed_token_ids=st.none() | st.lists(st.integers(0, 100), min_size=1, max_size=3),
    bad_words=st.lists(st.sampled_from(["a", "bad word"]), max_size=2),
    structured_outputs=st.none() | st.just(StructuredOutputsParams(regex="a+")),
    repetition_detection=st.none()
    | st.just(RepetitionDetectionParams(max_pattern_size=3, min_pattern_size=1, min_count=2)),
)


@given(PARAMS)
def test_a_completion_asks_for_what_the_parameters_say(params: SamplingParams) -> None:
    body = completion_body("m", "text", params, max_model_len=100)
    read = CompletionRequest.model_validate(body)
    assert read.sampling_params(MODEL, max_tokens=None) == params
    assert (read.model, read.prompt, read.return_token_ids) == ("m", "text", True)


@given(PARAMS)
def test_a_chat_asks_for_what_the_parameters_say(params: SamplingParams) -> None:
    messages = [{"role": "user", "content": "hello"}]
    body = chat_body("m", messages, params, {"tools": None}, max_model_len=100)
    read = ChatCompletionRequest.model_validate(body)
    assert read.sampling_params(MODEL, max_tokens=None) == params


def test_without_parameters_the_models_defaults_count() -> None:
    body = completion_body("m", [1, 2], None, max_model_len=100)
    read = CompletionRequest.model_validate(body)
    assert read.sampling_params(MODEL, max_tokens=16) == MODEL
    assert body["prompt"] == [1, 2]


def test_no_limit_is_the_whole_context() -> None:
    params = SamplingParams(max_tokens=None)
    assert completion_body("m", "x", params, max_model_len=512)["max_tokens"] == 512


def test_prompts_may_be_dicts_with_a_salt() -> None:
    prompt = {"prompt_token_ids": [1], "prompt": "a", "cache_salt": "s"}
    body = completion_body("m", prompt, None, max_model_len=None)
    assert (body["prompt"], body["cache_salt"]) == ([1], "s")
    params = PoolingParams(dimensions=8, use_activation=False)
    assert pooling_body("m", {"prompt": "a"}, params, PLAIN) == {
        "model": "m",
        "input": "a",
        "dimensions": 8,
        "use_activation": False,
    }


def test_texts_are_cut_and_lowered_as_the_options_say() -> None:
    options = TokenizationOptions.parse(
        {"truncate_prompt_tokens": 5, "truncation_side": "left", "do_lower_case": True}
    )
    cut = {"truncate_prompt_tokens": 5, "truncation_side": "left"}
    body = completion_body("m", "ABC", None, max_model_len=None, options=options)
    assert body == {"model": "m", "prompt": "abc", "return_token_ids": True, **cut}
    assert score_body("m", ("A", {"prompt": "B"}), None, options, "{{ x }}") == {
        "model": "m",
        "queries": "a",
        "documents": ["b"],
        "chat_template": "{{ x }}",
        **cut,
    }


def test_pooling_parameters_that_no_request_can_say_are_refused() -> None:
    with pytest.raises(ValidationError, match="step_tag_id works in process only"):
        pooling_body("m", "a", PoolingParams(step_tag_id=3), PLAIN)


def test_beam_search_is_a_completion_of_as_many_choices() -> None:
    params = BeamSearchParams(beam_width=3, max_tokens=7, length_penalty=0.5, ignore_eos=True)
    read = CompletionRequest.model_validate(beam_body("m", [1, 2], params))
    assert (read.use_beam_search, read.n, read.max_tokens) == (True, 3, 7)
    assert (read.length_penalty, read.ignore_eos, read.temperature) == (0.5, True, 0.0)
    assert read.return_output_logprobs


def test_an_adapter_is_the_model_of_its_request() -> None:
    llm = ClusterLLM.__new__(ClusterLLM)
    llm._model, llm._max_model_len = "base", 100
    adapter = LoRARequest("sql", 1, "anywhere")
    bodies = llm._completions(["a", "b"], SamplingParams(), [adapter, None], None)
    assert [body["model"] for body in bodies] == ["sql", "base"]
    bodies = llm._completions(iter(["a", "b"]), SamplingParams(), adapter, None)
    assert [body["model"] for body in bodies] == ["sql", "sql"]


def test_prompts_of_an_iterator_are_read_one_by_one() -> None:
    read = []

    def prompts() -> Iterator[str]:
        for i in range(3):
            read.append(i)
            yield str(i)

    llm = ClusterLLM.__new__(ClusterLLM)
    llm._model, llm._max_model_len = "base", 100
    bodies = llm._completions(prompts(), SamplingParams(), None, None)
    assert next(bodies)["prompt"] == "0"
    assert read == [0]


@pytest.mark.parametrize("prompt", [1.5, None, {"prompt": None}, ["a", 1], {"image": "x"}])
def test_what_is_no_prompt_is_refused(prompt: object) -> None:
    with pytest.raises((TypeError, ValueError), match="prompt"):
        completion_body("m", prompt, None, max_model_len=None)
