"""Where a request meets the model's limits."""

from collections.abc import Sequence
from typing import Any

import pytest
from tests.fakes.tiny_model import VOCAB_SIZE as TINY_VOCAB
from tests.fakes.tiny_model import tiny_tokenizer

from octavo_protocol.errors import ValidationError
from octavo_protocol.sampling_params import MAX_INT, SamplingParams
from octavo_protocol.tokenizer import Tokenizer
from octavo_runtime.engine.input_processor import InputProcessor
from octavo_runtime.engine.messages import EngineInfo

LIMIT, VOCAB_SIZE = 32, 100
PROCESSOR = "tests.unit.runtime.sampling.processors:OnlyToken"


def processor(
    eos_token_ids: list[int] | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    max_logprobs: int = 20,
    vocab_size: int = VOCAB_SIZE,
    logits_processors: Sequence[str] = (),
) -> InputProcessor:
    return InputProcessor(
        EngineInfo(
            model="m",
            cache_model="m@1",
            dtype="float32",
            block_size=16,
            num_blocks=64,
            max_model_len=LIMIT,
            max_num_seqs=8,
            vocab_size=vocab_size,
            eos_token_ids=[2, 7, 9] if eos_token_ids is None else eos_token_ids,
            max_logprobs=max_logprobs,
            stages={},
        ),
        tokenizer,
        logits_processors=logits_processors,
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
        (
            [1],
            {"logit_bias": {3: 1.0, 100: 1.0}},
            "logit_bias: token id 100 is outside the vocabulary of 100 tokens",
            "logit_bias",
            None,
        ),
        (
            [1],
            {"allowed_token_ids": [100]},
            "allowed_token_ids: token id 100 is outside the vocabulary of 100 tokens",
            "allowed_token_ids",
            None,
        ),
        (
            [1],
            {"logprob_token_ids": [4, 100]},
            "logprob_token_ids: token id 100 is outside the vocabulary of 100 tokens",
            "logprob_token_ids",
            None,
        ),
        (
            [1],
            {"allowed_token_ids": [3] * 101},
            "allowed_token_ids has 101 token ids, more than the vocabulary (100)",
            "allowed_token_ids",
            None,
        ),
        (
            [1],
            {"logprobs": 21},
            "logprobs asks for 21 log-probabilities per token; at most 20 are given "
            "(--max-logprobs; -1 for no limit)",
            "logprobs",
            None,
        ),
        (
            [1],
            {"logprobs": -1},
            "logprobs asks for 100 log-probabilities per token; at most 20 are given "
            "(--max-logprobs; -1 for no limit)",
            "logprobs",
            None,
        ),
        (
            [1],
            {"prompt_logprobs": 21},
            "prompt_logprobs asks for 21 log-probabilities per token; at most 20 are given "
            "(--max-logprobs; -1 for no limit)",
            "prompt_logprobs",
            None,
        ),
        (
            [1, 2],
            {"prompt_logprob_token_ids": [[3]]},
            "prompt_logprob_token_ids is not supported by Octavo: use prompt_logprobs",
            "prompt_logprob_token_ids",
            None,
        ),
        (
            [1],
            {"thinking_token_budget": 5},
            "thinking_token_budget needs a model that reasons and a reasoning parser that knows "
            "how reasoning ends (--reasoning-parser): leave it out",
            "thinking_token_budget",
            None,
        ),
        (
            [1],
            {"bad_words": ["x"]},
            "bad_words needs a tokenizer, and the engine runs without one: use logit_bias",
            "bad_words",
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


@pytest.mark.parametrize("priority", ["high", None, 1.5, True, 2**63])
def test_priority_is_an_integer(priority: Any) -> None:
    with pytest.raises(ValidationError, match="priority must be an integer of 64 bits, got"):
        processor().process("r", [1, 2], SamplingParams(), priority=priority)


def test_request_id_is_a_string() -> None:
    number: Any = 3

    with pytest.raises(TypeError, match="request_id must be a string, not int"):
        processor().process(number, [1, 2], SamplingParams())


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


def test_max_logprobs_of_minus_1_lifts_the_limit() -> None:
    free = processor(max_logprobs=-1)

    [request] = free.process("r", [1], SamplingParams(logprobs=-1, prompt_logprobs=500))

    assert (request.sampling.logprobs, request.sampling.prompt_logprobs) == (-1, 500)


def test_a_limit_of_the_vocabulary_s_size_allows_all_of_it() -> None:
    [request] = processor(max_logprobs=VOCAB_SIZE).process("r", [1], SamplingParams(logprobs=-1))

    assert request.sampling.logprobs == -1


def test_named_tokens_have_their_own_limit() -> None:
    named = list(range(50))

    [params] = sampling([1], logprobs=50, logprob_token_ids=named)

    assert params.logprob_token_ids == named


def test_only_the_first_sample_scores_the_prompt() -> None:
    first, second = sampling([1, 2, 3], n=2, prompt_logprobs=2)

    assert (first.prompt_logprobs, first.skip_reading_prefix_cache) == (2, True)
    assert (second.prompt_logprobs, second.skip_reading_prefix_cache) == (None, False)


def test_samples_keep_an_explicit_wish_to_skip_the_prefix_cache() -> None:
    skips = [
        p.skip_reading_prefix_cache for p in sampling([1], n=2, skip_reading_prefix_cache=True)
    ]

    assert skips == [True, True]


def bad_words(*words: str, **options: Any) -> list[list[int]]:
    inputs = processor(tokenizer=tiny_tokenizer(), vocab_size=TINY_VOCAB, **options)
    [request] = inputs.process("r", [1], SamplingParams(bad_words=list(words)))
    return request.bad_words_token_ids


def test_bad_words_are_banned_with_and_without_a_space_before_them() -> None:
    encode = tiny_tokenizer().encode

    assert bad_words("the") == [encode("the"), encode(" the")]
    assert bad_words(" the") == bad_words("the") == bad_words("the", " the")
    assert bad_words("dog", "zq") == [encode(w) for w in ("dog", " dog", "zq", " zq")]
    assert bad_words() == []


def test_a_bad_word_of_spaces_alone_is_taken_as_it_is() -> None:
    assert tiny_tokenizer().encode(" ") in bad_words(" ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ab"] * 10**6 + [chr(0x4E00 + i) for i in range(128)], "bad_words has 129 words of 130"),
        (["q" * 10**7], "bad_words has 1 words of 10000000 characters"),
        ([chr(0x4E00 + i) for i in range(65)], "bad_words gives 130 token sequences"),
        (["q" * 600], "bad_words gives 2 token sequences of 1201 tokens in all"),
    ],
)
def test_too_many_bad_words_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        bad_words(*words)

    assert caught.value.parameter == "bad_words"
    assert "at most 128 " in caught.value.message
    assert caught.value.message.endswith("are taken: ban fewer words")


def test_bad_words_outside_the_model_s_vocabulary_are_refused() -> None:
    small = processor(tokenizer=tiny_tokenizer(), vocab_size=3)

    with pytest.raises(ValidationError, match=r"bad_words: token id .* is outside"):
        small.process("r", [1], SamplingParams(bad_words=["the"]))


def test_grammar_and_reasoning_reach_the_engine() -> None:
    [request] = processor().process(
        "r",
        [1],
        SamplingParams(thinking_token_budget=5),
        grammar="g",
        reasoning_end_token_ids=[8, 9],
        is_reasoning=True,
    )

    assert (request.grammar, request.is_reasoning) == ("g", True)
    assert request.reasoning_end_token_ids == [8, 9]
    assert request.sampling.thinking_token_budget == 5


def test_a_logits_processor_may_refuse_a_request() -> None:
    inputs = processor(logits_processors=[PROCESSOR])
    inputs.process("r", [1], SamplingParams(extra_args={"only": 5}))

    with pytest.raises(ValidationError, match="only must be a token id, got 'x'") as caught:
        inputs.process("r", [1], SamplingParams(extra_args={"only": "x"}))

    assert caught.value.parameter == "extra_args"
