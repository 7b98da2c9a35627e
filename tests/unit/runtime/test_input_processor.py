"""Where a request meets the model's limits."""

from typing import Any

import pytest

from octavo_protocol.errors import ValidationError
from octavo_protocol.sampling_params import MAX_INT, SamplingParams
from octavo_runtime.engine.input_processor import InputProcessor
from octavo_runtime.engine.messages import EngineInfo

LIMIT, VOCAB_SIZE = 32, 100


def processor(eos_token_ids: list[int] | None = None) -> InputProcessor:
    return InputProcessor(
        EngineInfo(
            model="m",
            cache_model="m@1",
            dtype="float32",
            block_size=16,
            num_blocks=64,
            max_model_len=LIMIT,
            max_num_seqs=8,
            vocab_size=VOCAB_SIZE,
            eos_token_ids=[2, 7, 9] if eos_token_ids is None else eos_token_ids,
            stages={},
        )
    )


def sampling(prompt: list[int], **params: Any) -> list[SamplingParams]:
    return [each.sampling for each in processor().process("r", prompt, SamplingParams(**params))]


@pytest.mark.parametrize(
    ("prompt", "params", "message", "parameter", "code"),
    [
        ([], {}, "prompt cannot be empty", "prompt", None),
        (
            [1] * LIMIT,
            {},
            "the prompt has 32 tokens; this model's context is 32 tokens and at least one must be "
            "left for the output: shorten the prompt to 31",
            "prompt",
            "context_length_exceeded",
        ),
        (
            [1, 100],
            {},
            "prompt: token id 100 is outside the vocabulary of 100 tokens",
            "prompt",
            None,
        ),
        (
            [-1, 5],
            {},
            "prompt: token id -1 is outside the vocabulary of 100 tokens",
            "prompt",
            None,
        ),
        (
            [1],
            {"stop_token_ids": [3, 100]},
            "stop_token_ids: token id 100 is outside the vocabulary of 100 tokens",
            "stop_token_ids",
            None,
        ),
    ],
)
def test_what_the_model_cannot_take_is_refused(
    prompt: list[int], params: dict[str, Any], message: str, parameter: str, code: str | None
) -> None:
    with pytest.raises(ValidationError) as caught:
        processor().process("r", prompt, SamplingParams(**params))

    assert caught.value.message == message
    assert (caught.value.parameter, caught.value.code) == (parameter, code)


def test_longest_prompt_leaves_room_for_one_token() -> None:
    assert [p.max_tokens for p in sampling([1] * (LIMIT - 1), max_tokens=None)] == [1]


@pytest.mark.parametrize(
    ("asked", "given"), [(None, 28), (5, 5), (28, 28), (1000, 28), (MAX_INT, 28)]
)
def test_max_tokens_is_what_the_context_leaves_at_most(asked: int | None, given: int) -> None:
    assert [p.max_tokens for p in sampling([1, 2, 3, 4], max_tokens=asked)] == [given]


def test_min_tokens_is_cut_with_max_tokens() -> None:
    [params] = sampling([1] * 30, min_tokens=20, max_tokens=None)

    assert (params.min_tokens, params.max_tokens) == (2, 2)


def test_one_sample_keeps_the_request_s_id() -> None:
    [request] = processor().process("r", [1, 2], SamplingParams(), priority=3, cache_salt="tenant")

    assert request.request_id == "r"
    assert request.prompt_token_ids == [1, 2]
    assert (request.priority, request.cache_salt) == (3, "tenant")
    assert request.arrival_time > 0


def test_samples_are_requests_of_their_own() -> None:
    requests = processor().process("r", [1, 2], SamplingParams(n=3, seed=5))

    assert [each.request_id for each in requests] == ["r_0", "r_1", "r_2"]
    assert [each.sampling.seed for each in requests] == [5, 6, 7]
    assert [each.sampling.n for each in requests] == [1, 1, 1]


def test_samples_without_a_seed_get_none() -> None:
    assert [params.seed for params in sampling([1], n=2)] == [None, None]


@pytest.mark.parametrize("seed", [-3, -2, MAX_INT - 1, MAX_INT, -MAX_INT - 1])
def test_every_sample_of_a_seeded_request_has_a_seed_of_its_own(seed: int) -> None:
    """-1 means no seed, and past the largest integer there is none."""
    seeds = [params.seed for params in sampling([1], n=4, seed=seed)]

    assert seeds[0] == seed
    assert None not in seeds
    assert len(set(seeds)) == 4


def test_further_end_tokens_of_the_model_become_stop_tokens() -> None:
    [request] = processor().process("r", [1], SamplingParams(stop_token_ids=[7, 50]))

    assert request.eos_token_id == 2
    assert request.sampling.stop_token_ids == [7, 50, 9]


def test_ignore_eos_ignores_all_end_tokens_but_those_asked_for() -> None:
    [request] = processor().process("r", [1], SamplingParams(ignore_eos=True, stop_token_ids=[7]))

    assert request.sampling.stop_token_ids == [7]


def test_model_without_end_token_runs_to_the_limit() -> None:
    [request] = processor([]).process("r", [1], SamplingParams())

    assert request.eos_token_id is None
    assert request.sampling.stop_token_ids == []


def test_caller_s_parameters_and_prompt_stay_as_they_were() -> None:
    params = SamplingParams(n=2, seed=1, stop_token_ids=[5], max_tokens=1000)
    before, prompt = params.clone(), [1, 2]

    requests = processor().process("r", prompt, params)
    requests[0].prompt_token_ids.append(3)

    assert params == before
    assert prompt == [1, 2]
    assert requests[1].prompt_token_ids == [1, 2]
