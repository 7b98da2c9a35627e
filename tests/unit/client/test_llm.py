"""`LLM` with the real model: vLLM's calls, and the tokens of the kept reference."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.make_reference import REFERENCE

from octavo import LLM, SamplingParams
from octavo.prompts import PromptType
from octavo_protocol.errors import ConfigError, ValidationError
from octavo_protocol.sampling_params import RequestOutputKind

pytestmark = pytest.mark.model

LIMIT = 512
GREEDY = SamplingParams(temperature=0.0, max_tokens=8)
TEXT = "The capital of France is"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def llm(smollm2: Path) -> Iterator[LLM]:
    with LLM(str(smollm2), dtype="float32", max_model_len=LIMIT) as llm:
        yield llm


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "llm" in request.fixturenames:
        engine = request.getfixturevalue("llm").llm_engine
        assert not engine.has_unfinished_requests()
        assert not engine.core.has_work()
        engine.core.scheduler.check()


def token_ids_of(llm: LLM, text: str) -> list[int]:
    assert llm.llm_engine.tokenizer is not None
    return llm.llm_engine.tokenizer.encode(text)


def outputs_of(llm: LLM, prompts: Any, params: Any = GREEDY) -> list[list[int]]:
    results = llm.generate(prompts, params, use_tqdm=False)
    assert all(result.finished for result in results)
    return [list(result.outputs[0].token_ids) for result in results]


# -- prompts --------------------------------------------------------------------------------------


def test_every_prompt_form_means_the_same(llm: LLM) -> None:
    ids = token_ids_of(llm, TEXT)
    forms: list[Any] = [
        TEXT,
        ids,
        {"prompt": TEXT},
        {"prompt_token_ids": ids},
        {"prompt_token_ids": ids, "prompt": TEXT},
        {"prompt": TEXT, "cache_salt": "tenant"},
    ]

    alone = [outputs_of(llm, form)[0] for form in forms]
    together = outputs_of(llm, forms)

    assert alone == together == [alone[0]] * len(forms)


def test_results_carry_prompt_tokens_and_text(llm: LLM) -> None:
    ids = token_ids_of(llm, TEXT)
    prompts: list[PromptType] = [TEXT, ids, {"prompt_token_ids": ids, "prompt": "label"}]
    text, tokens, both = llm.generate(prompts, GREEDY, use_tqdm=False)

    assert [each.prompt for each in (text, tokens, both)] == [TEXT, None, "label"]
    assert text.prompt_token_ids == tokens.prompt_token_ids == both.prompt_token_ids == ids
    [completion] = text.outputs
    assert completion.text == llm.get_tokenizer().decode(completion.token_ids)
    assert completion.finish_reason == "length"
    assert text.metrics is not None
    assert text.metrics.num_generation_tokens == 8


def test_results_are_in_the_order_of_the_prompts(llm: LLM) -> None:
    """The short ones finish first."""
    prompts = ["One two three four", TEXT, "Hello"]
    params = [SamplingParams(temperature=0.0, max_tokens=n) for n in (20, 3, 1)]

    results = llm.generate(prompts, params, use_tqdm=False)

    assert [result.prompt for result in results] == prompts
    assert [len(result.outputs[0].token_ids) for result in results] == [20, 3, 1]
    assert [int(result.request_id) for result in results] == sorted(
        int(result.request_id) for result in results
    )


def test_no_prompts_give_no_results(llm: LLM) -> None:
    assert llm.generate([], use_tqdm=False) == []
    assert llm.generate([], [], use_tqdm=False) == []


@pytest.mark.parametrize(
    "prompts", [3, None, [3.5], [None], [["a"]], {"text": "a"}, {"prompt": "a", "image": 1}, [{}]]
)
def test_what_is_no_prompt_is_a_type_error(llm: LLM, prompts: Any) -> None:
    with pytest.raises(TypeError, match="prompt"):
        llm.generate(prompts, GREEDY, use_tqdm=False)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("", "prompt cannot be empty"),
        (["a", ""], "prompt cannot be empty"),
        ([[]], "prompt cannot be empty"),
        ([[1] * LIMIT], "the prompt has 512 tokens"),
        ([[49152]], "token id 49152 is outside the vocabulary"),
        ([[-1]], "token id -1 is outside the vocabulary"),
    ],
)
def test_bad_prompt_is_refused_and_nothing_stays_queued(
    llm: LLM, prompts: Any, message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        llm.generate(prompts, GREEDY, use_tqdm=False)


def test_one_bad_prompt_among_good_ones_leaves_none_queued(llm: LLM) -> None:
    prompts: list[PromptType] = [TEXT, [1] * 600, TEXT]

    with pytest.raises(ValidationError, match="the prompt has 600 tokens"):
        llm.generate(prompts, GREEDY, use_tqdm=False)

    assert llm.llm_engine.get_num_unfinished_requests() == 0


# -- parameters -----------------------------------------------------------------------------------


def test_number_of_parameters_must_fit(llm: LLM) -> None:
    with pytest.raises(ValueError, match="2 sampling_params for 3 prompts: give one, or one per"):
        llm.generate(["a", "b", "c"], [GREEDY, GREEDY], use_tqdm=False)
    with pytest.raises(ValueError, match="1 priority for 2 prompts"):
        llm.generate(["a", "b"], GREEDY, priority=[1], use_tqdm=False)


def test_caller_s_parameters_stay_as_they_were(llm: LLM) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=2, output_kind=RequestOutputKind.DELTA)
    before = params.clone()

    [result] = llm.generate(TEXT, params, use_tqdm=False)

    assert params == before
    assert len(result.outputs[0].token_ids) == 2


def test_without_parameters_the_model_s_own_hold(llm: LLM) -> None:
    [result] = llm.generate(TEXT, use_tqdm=False)

    assert len(result.outputs[0].token_ids) <= 16
    defaults = llm.get_default_sampling_params()
    defaults.max_tokens = 3
    assert llm.get_default_sampling_params().max_tokens == 16


def test_seeded_samples_repeat_whatever_runs_beside_them(llm: LLM) -> None:
    params = SamplingParams(n=3, seed=7, temperature=1.0, max_tokens=6)
    [alone] = llm.generate(TEXT, params, use_tqdm=False)
    beside, _ = llm.generate([TEXT, "Hello"], params, use_tqdm=False)

    texts = [completion.text for completion in alone.outputs]
    assert texts == [completion.text for completion in beside.outputs]
    assert len(set(texts)) > 1
    assert [completion.index for completion in alone.outputs] == [0, 1, 2]


def test_stop_string_and_logprobs(llm: LLM) -> None:
    [whole] = llm.generate(TEXT, GREEDY, use_tqdm=False)
    stop = whole.outputs[0].text[3:5]
    params = SamplingParams(temperature=0.0, max_tokens=8, stop=stop, logprobs=2)

    [result] = llm.generate(TEXT, params, use_tqdm=False)

    [completion] = result.outputs
    assert completion.text == whole.outputs[0].text[: whole.outputs[0].text.index(stop)]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", stop)
    assert completion.logprobs is not None
    assert len(completion.logprobs) == len(completion.token_ids)
    for token_id, entry in zip(completion.token_ids, completion.logprobs, strict=True):
        assert entry[token_id].rank == 1
        assert len(entry) == 2
    total = sum(
        e[t].logprob for t, e in zip(completion.token_ids, completion.logprobs, strict=True)
    )
    assert completion.cumulative_logprob == pytest.approx(total)


def test_prefix_cache_is_reported_and_can_be_reset(llm: LLM) -> None:
    prompt = token_ids_of(llm, "A sentence that is said again and again. " * 6)
    assert llm.reset_prefix_cache()
    counts = [llm.generate([prompt], GREEDY, use_tqdm=False)[0].num_cached_tokens for _ in range(2)]
    assert llm.reset_prefix_cache()
    counts.append(llm.generate([prompt], GREEDY, use_tqdm=False)[0].num_cached_tokens)

    assert counts == [0, (len(prompt) - 1) // 16 * 16, 0]


# -- chat -----------------------------------------------------------------------------------------


def test_chat_renders_the_model_s_template(llm: LLM) -> None:
    [result] = llm.chat(QUESTION, GREEDY, use_tqdm=False)

    text = llm.get_tokenizer().apply_chat_template(
        QUESTION, tokenize=False, add_generation_prompt=True
    )
    assert result.prompt == text
    assert result.prompt_token_ids == llm.get_tokenizer().encode(text, add_special_tokens=False)
    assert outputs_of(llm, [result.prompt_token_ids]) == [list(result.outputs[0].token_ids)]


def test_chat_with_many_conversations(llm: LLM) -> None:
    other = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]

    both = llm.chat([QUESTION, other], [GREEDY, GREEDY], use_tqdm=False)

    single = [llm.chat(each, GREEDY, use_tqdm=False)[0] for each in (QUESTION, other)]
    assert [r.outputs[0].text for r in both] == [r.outputs[0].text for r in single]


def test_chat_continues_a_message_and_takes_a_template(llm: LLM) -> None:
    begun = [*QUESTION, {"role": "assistant", "content": "The capital is"}]
    [continued] = llm.chat(
        begun, GREEDY, use_tqdm=False, add_generation_prompt=False, continue_final_message=True
    )
    [own] = llm.chat(
        QUESTION,
        GREEDY,
        use_tqdm=False,
        chat_template="{{ mood }}: {{ messages[0].content }}",
        chat_template_kwargs={"mood": "calm"},
    )

    assert continued.prompt is not None
    assert continued.prompt.endswith("The capital is")
    assert own.prompt == "calm: What is the capital of France?"


@pytest.mark.parametrize("messages", [[], "hi", 3])
def test_what_are_no_messages_is_a_type_error(llm: LLM, messages: Any) -> None:
    with pytest.raises(TypeError, match="messages must be a list"):
        llm.chat(messages, GREEDY, use_tqdm=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"continue_final_message": True}, "needs add_generation_prompt=False"),
        ({"chat_template_content_format": "openai"}, "must be 'auto' or 'string', got 'openai'"),
        ({"lora_request": object()}, "LoRA adapters are not supported yet"),
        ({"tokenization_kwargs": {"truncation": True}}, "tokenization_kwargs is not supported yet"),
        ({"mm_processor_kwargs": {"num_crops": 4}}, "mm_processor_kwargs is not supported yet"),
        ({"chat_template": "no-such-file"}, "neither a file nor a template"),
    ],
)
def test_chat_option_that_cannot_be_honoured_is_refused(
    llm: LLM, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        llm.chat(QUESTION, GREEDY, use_tqdm=False, **options)


def test_unknown_role_is_refused_by_its_path(llm: LLM) -> None:
    with pytest.raises(ValidationError, match="role: "):
        llm.chat([{"role": "boss", "content": "x"}], GREEDY, use_tqdm=False)


# -- progress and interruption --------------------------------------------------------------------


class Bar:
    """Stands in for tqdm's class; remembers what it was told."""

    made: "list[Bar]" = []  # noqa: RUF012  # of all bars, on purpose

    def __init__(self, **options: Any) -> None:
        self.options, self.count, self.closed = options, 0, False
        self.format_dict = {"elapsed": 1.0}
        self.postfix = ""
        Bar.made.append(self)

    def update(self, count: int) -> None:
        self.count += count

    def close(self) -> None:
        self.closed = True


def test_progress_bar_is_made_by_the_given_factory(llm: LLM) -> None:
    Bar.made = []

    llm.generate(["a", "b", "c"], GREEDY, use_tqdm=Bar)

    [bar] = Bar.made
    assert bar.options["total"] == bar.count == 3
    assert bar.closed
    assert "toks/s" in bar.postfix


def test_interruption_leaves_nothing_queued(llm: LLM) -> None:
    """Ctrl-C in a notebook: the next call must not find the rest of the last one."""

    class Interrupting(Bar):
        def update(self, count: int) -> None:
            raise KeyboardInterrupt

    params = [SamplingParams(temperature=0.0, max_tokens=n) for n in (1, 50, 50)]
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["a", "b", "c"], params, use_tqdm=Interrupting)

    assert llm.llm_engine.get_num_unfinished_requests() == 0
    assert not llm.llm_engine.core.has_work()
    assert outputs_of(llm, TEXT) == outputs_of(llm, TEXT)


# -- the constructor ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "near"),
    [("max_model_length", "max_model_len"), ("tensor_parallel", "tensor_parallel_size")],
)
def test_unknown_argument_is_a_type_error_with_a_suggestion(name: str, near: str) -> None:
    others: dict[str, Any] = {name: 1}

    with pytest.raises(TypeError, match=rf"'{name}'; did you mean '{near}'\?"):
        LLM("smollm2", **others)


@pytest.mark.parametrize(
    "options",
    [
        {"tensor_parallel_size": 2},
        {"quantization": "awq"},
        {"enable_lora": True},
        {"trust_remote_code": True},
    ],
)
def test_known_argument_that_cannot_be_honoured_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="is not supported yet"):
        LLM("smollm2", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"scheduling_policy": "lifo"}, "scheduling_policy must be one of fcfs, priority"),
        ({"load_format": "gguf"}, "load_format must be one of"),
    ],
)
def test_value_that_is_no_choice_is_refused(
    smollm2: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        LLM(str(smollm2), **options)


def test_context_beyond_the_model_s_is_refused(smollm2: Path) -> None:
    with pytest.raises(ConfigError, match="max_model_len is 1000000"):
        LLM(str(smollm2), max_model_len=1_000_000)


def test_model_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        LLM(str(tmp_path / "nothing"))


# -- the reference --------------------------------------------------------------------------------


def test_greedy_outputs_equal_the_kept_reference(llm: LLM) -> None:
    rows = json.loads(REFERENCE.read_text())
    chosen = [row for row in rows if len(row["prompt"]) + len(row["output"]) < LIMIT][::7]
    assert len(chosen) >= 6
    params = [SamplingParams(temperature=0.0, max_tokens=len(row["output"])) for row in chosen]

    assert outputs_of(llm, [row["prompt"] for row in chosen], params) == [
        row["output"] for row in chosen
    ]
