"""`LLM` with the real model: vLLM's calls, and the tokens of the kept reference."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import pytest
from tests.e2e.make_reference import REFERENCE

from octavo import LLM, PoolingParams, SamplingParams
from octavo.lora.request import LoRARequest
from octavo.prompts import PromptType
from octavo_protocol.errors import ValidationError
from octavo_protocol.sampling_params import RequestOutputKind
from octavo_protocol.structured_outputs import StructuredOutputsParams

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
        engine = request.getfixturevalue("llm").llm_engine.engine
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
        {"prompt": TEXT, "multi_modal_data": {}, "multi_modal_uuids": None},
    ]

    alone = [outputs_of(llm, form)[0] for form in forms]
    together = outputs_of(llm, forms)

    assert alone == together == [alone[0]] * len(forms)


def test_prompts_may_come_in_any_ordered_collection(llm: LLM) -> None:
    prompts = [TEXT, "Hello"]

    for given in (tuple(prompts), numpy.array(prompts), (each for each in prompts)):
        assert outputs_of(llm, given) == outputs_of(llm, prompts)


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
    "prompts",
    [
        *(3, None, [3.5], [None], [["a"]], b"abc", {"a", "b"}, [True]),
        *({"text": "a"}, {"prompt": "a", "image": 1}, [{}]),
        *({"prompt": None}, {"prompt": 3}, {"prompt": 3, "prompt_token_ids": [1]}),
    ],
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


@pytest.mark.parametrize("messages", [[], "hi", 3, [[]], [3], ["hi"], [QUESTION, []]])
def test_what_are_no_messages_is_a_type_error(llm: LLM, messages: Any) -> None:
    with pytest.raises(TypeError, match="messages must be a list"):
        llm.chat(messages, GREEDY, use_tqdm=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"continue_final_message": True}, "needs add_generation_prompt=False"),
        ({"chat_template_content_format": "xml"}, "one of auto, string, openai, got 'xml'"),
        ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs may not set 'tools'"),
        ({"chat_template_kwargs": "x"}, "must be a dict of template variables, not str"),
        ({"tools": [3]}, "tools must be a list of dicts"),
        ({"tools": {"type": "function"}}, "tools must be a list of dicts"),
        ({"lora_request": LoRARequest("a", 1, "/a")}, "takes no LoRA adapters"),
        ({"tokenization_kwargs": {"truncate": 3}}, "did you mean 'truncation'"),
        ({"mm_processor_kwargs": {"num_crops": 4}}, "mm_processor_kwargs: models here take text"),
        ({"chat_template": "no-such-file"}, "neither a file nor a template"),
    ],
)
def test_chat_option_that_cannot_be_honoured_is_refused(
    llm: LLM, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        llm.chat(QUESTION, GREEDY, use_tqdm=False, **options)


def test_message_without_a_role_is_refused_by_its_path(llm: LLM) -> None:
    with pytest.raises(ValidationError, match="role: "):
        llm.chat([{"content": "x"}], GREEDY, use_tqdm=False)


def test_chat_hands_tools_documents_and_parts_to_the_template(llm: LLM) -> None:
    template = (
        "{{ tools[0].function.name }} {{ documents[0].title }} "
        "{% for part in messages[0].content %}[{{ part.text }}]{% endfor %}"
    )
    parts = [{"type": "text", "text": "a"}]
    tool = {"type": "function", "function": {"name": "weather", "parameters": {}}}
    options: dict[str, Any] = {
        "chat_template": template,
        "tools": [tool],
        "chat_template_kwargs": {"documents": [{"title": "Atlas"}]},
    }

    [result] = llm.chat([{"role": "user", "content": parts}], GREEDY, use_tqdm=False, **options)
    [as_text] = llm.chat(
        [{"role": "user", "content": parts}],
        GREEDY,
        use_tqdm=False,
        chat_template="{{ messages[0].content }}!",
        chat_template_content_format="string",
    )

    assert result.prompt == "weather Atlas [a]"
    assert as_text.prompt == "a!"


# -- tokenization ---------------------------------------------------------------------------------


def test_prompts_are_cut_to_the_length_that_is_asked_for(llm: LLM) -> None:
    ids = token_ids_of(llm, TEXT)

    def cut(prompt: Any, **options: Any) -> list[int] | None:
        [result] = llm.generate(prompt, GREEDY, use_tqdm=False, tokenization_kwargs=options)
        return result.prompt_token_ids

    assert cut(TEXT, truncate_prompt_tokens=2) == ids[-2:]
    assert cut(ids, truncate_prompt_tokens=2, truncation_side="right") == ids[:2]
    assert cut(TEXT, truncation=True, max_length=3) == ids[-3:]
    assert cut([7] * 600, truncate_prompt_tokens=-1) == [7] * (LIMIT - 1)
    assert cut(TEXT, truncate_prompt_tokens=99, needs_detokenization=True) == ids
    assert cut("PARIS", do_lower_case=True) == token_ids_of(llm, "paris")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens must be at least 1"),
        ({"truncation": True, "max_length": 1.5}, "max_length must be at least 1"),
        ({"truncation_side": "middle"}, "truncation_side must be 'left' or 'right'"),
        ({"padding": "max_length"}, "padding='max_length' is not supported"),
        ({"stride": 4}, "there is no option 'stride'; known are"),
    ],
)
def test_wrong_tokenization_is_refused(llm: LLM, options: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        llm.generate(TEXT, GREEDY, use_tqdm=False, tokenization_kwargs=options)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"prompt_embeds": [[0.1]]}, "'prompt_embeds': prompts as vectors are not supported"),
        ({"encoder_prompt": "a", "decoder_prompt": None}, "encoder-decoder models are not"),
        ({"prompt": "a", "multi_modal_data": {"image": 1}}, "models here take text only"),
        ({"data": 1, "data_format": "x"}, "there are no input plugins here"),
    ],
)
def test_prompt_form_that_is_not_there_is_refused_by_name(
    llm: LLM, prompt: Any, message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        llm.generate(prompt, GREEDY, use_tqdm=False)


# -- queueing -------------------------------------------------------------------------------------


def test_queued_requests_wait_until_they_are_asked_for(llm: LLM) -> None:
    queued = llm.enqueue([TEXT, "Hello"], GREEDY, False)
    queued += llm.enqueue_chat(QUESTION, GREEDY, use_tqdm=False)
    [beside] = llm.generate("Hello", GREEDY, use_tqdm=False)

    results = llm.wait_for_completion(use_tqdm=False)

    assert [result.request_id for result in results] == queued
    assert results[1].outputs[0].text == beside.outputs[0].text
    assert llm.wait_for_completion(use_tqdm=False) == []
    assert next(llm.request_counter) == int(beside.request_id) + 1
    assert llm.request_counter.counter == int(beside.request_id) + 2


def test_metrics_count_what_was_done(llm: LLM) -> None:
    def read() -> dict[str, Any]:
        return {
            metric.name + metric.labels.get("finished_reason", ""): metric
            for metric in llm.get_metrics()
        }

    before = read()
    llm.generate([TEXT, TEXT], GREEDY, use_tqdm=False)
    after = read()

    def grew(name: str) -> Any:
        return after[name].value - before[name].value

    assert grew("vllm:request_successlength") == 2
    assert grew("vllm:generation_tokens") == 16
    assert grew("vllm:prompt_tokens") == 2 * len(token_ids_of(llm, TEXT))
    assert after["vllm:num_requests_running"].value == 0
    first_token = after["vllm:time_to_first_token_seconds"]
    assert first_token.count - before["vllm:time_to_first_token_seconds"].count == 2
    assert first_token.buckets["+Inf"] == first_token.count
    assert first_token.labels["engine"] == "0"


# -- former spellings -----------------------------------------------------------------------------


def test_former_keywords_are_translated(llm: LLM) -> None:
    ids = token_ids_of(llm, TEXT)
    with pytest.warns(DeprecationWarning, match="is now generate"):
        [result] = llm.generate(prompt_token_ids=ids, sampling_params=GREEDY, use_tqdm=False)
    assert result.prompt_token_ids == ids

    choice = StructuredOutputsParams(choice=["yes", "no"])
    with pytest.warns(DeprecationWarning, match="structured_outputs"):
        [result] = llm.generate(TEXT, GREEDY, guided_options_request=choice, use_tqdm=False)
    assert result.outputs[0].text in ("yes", "no")

    for options in ({"guided_choice": ["yes", "no"]}, {"choice": ["yes", "no"]}):
        with pytest.warns(DeprecationWarning, match="structured_outputs"):
            [result] = llm.generate(TEXT, [GREEDY], guided_options_request=options, use_tqdm=False)
        assert result.outputs[0].text in ("yes", "no")
    assert GREEDY.structured_outputs is None

    with pytest.raises(TypeError, match="needs prompts"):
        llm.generate(use_tqdm=False)


@pytest.mark.parametrize("method", ["encode", "embed", "classify", "score"])
def test_pooling_is_refused_in_plain_words(llm: LLM, method: str) -> None:
    texts = [["a"], ["b"]] if method == "score" else [["a"]]

    with pytest.raises(ValidationError, match=f"LLM.{method} needs a pooling model; this one gen"):
        getattr(llm, method)(*texts)


def test_what_are_no_sampling_params_is_refused(llm: LLM) -> None:
    with pytest.raises(TypeError, match="expected SamplingParams, got dict"):
        outputs_of(llm, TEXT, {"temperature": 0})
    with pytest.raises(ValidationError, match="takes SamplingParams, not PoolingParams"):
        outputs_of(llm, TEXT, PoolingParams())


# -- the engine behind it -------------------------------------------------------------------------


def test_worker_and_model_can_be_asked(llm: LLM) -> None:
    assert llm.apply_model(lambda model: type(model).__name__) == ["LlamaForCausalLM"]
    assert llm.collective_rpc(lambda worker, n: worker.block_size * n, args=(2,)) == [32]
    with pytest.raises(ValidationError, match="the worker has no method 'fly'"):
        llm.collective_rpc("fly")
    assert repr(llm).startswith("LlamaForCausalLM(")
    assert llm.get_world_size() == 1


def test_public_attributes_say_what_runs(llm: LLM, smollm2: Path) -> None:
    config = llm.model_config

    assert (config.model, config.max_model_len, config.dtype) == (str(smollm2), LIMIT, "float32")
    assert config.get_vocab_size() == config.hf_config.vocab_size == 49152
    assert (llm.runner_type, llm.supported_tasks, llm.pooling_task) == (
        "generate",
        ("generate",),
        None,
    )
    assert llm.default_sampling_params == llm.get_default_sampling_params()
    assert isinstance(llm.llm_engine, llm.engine_class)
    assert llm.renderer is llm.input_processor
    assert llm.get_tokenizer() is llm.get_tokenizer()
    assert config.hf_text_config.hidden_size == 576
    assert llm.chat_template is None


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

    rendering, bar = Bar.made
    assert rendering.options["desc"] == "Rendering prompts"
    assert bar.options["desc"] == "Processed prompts"
    assert {each.options["total"] for each in Bar.made} == {3}
    assert [each.count for each in Bar.made] == [3, 3]
    assert all(each.closed for each in Bar.made)
    assert "toks/s" in bar.postfix


def test_nothing_for_a_progress_bar_means_none(
    llm: LLM, capsys: pytest.CaptureFixture[str]
) -> None:
    [result] = llm.generate("a", GREEDY, use_tqdm=None)

    assert result.finished
    assert capsys.readouterr().err == ""


def test_threads_share_a_model(llm: LLM) -> None:
    prompts = [f"{number} and then" for number in range(8)]
    expected = outputs_of(llm, prompts)

    with ThreadPoolExecutor(4) as threads:
        outputs = list(threads.map(lambda prompt: outputs_of(llm, [prompt, TEXT])[0], prompts))

    assert outputs == expected


def test_interruption_leaves_nothing_queued(llm: LLM) -> None:
    """Ctrl-C in a notebook: the next call must not find the rest of the last one."""

    class Interrupting(Bar):
        def update(self, count: int) -> None:
            if self.options["desc"] == "Processed prompts":
                raise KeyboardInterrupt

    params = [SamplingParams(temperature=0.0, max_tokens=n) for n in (1, 50, 50)]
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["a", "b", "c"], params, use_tqdm=Interrupting)

    assert llm.llm_engine.get_num_unfinished_requests() == 0
    assert not llm.llm_engine.engine.core.has_work()
    assert outputs_of(llm, TEXT) == outputs_of(llm, TEXT)


# -- the reference --------------------------------------------------------------------------------


def test_greedy_outputs_equal_the_kept_reference(llm: LLM) -> None:
    rows = json.loads(REFERENCE.read_text())
    chosen = [row for row in rows if len(row["prompt"]) + len(row["output"]) < LIMIT][::7]
    assert len(chosen) >= 6
    params = [SamplingParams(temperature=0.0, max_tokens=len(row["output"])) for row in chosen]

    assert outputs_of(llm, [row["prompt"] for row in chosen], params) == [
        row["output"] for row in chosen
    ]
