"""`LLM(cluster=…)` gives what an `LLM` in process gives: a real model, greedy or seeded, fp32; and
with trained adapters both give what PEFT's merged models give.
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from peft import PeftModel

from octavo import LLM, SamplingParams
from octavo.lora.request import LoRARequest
from octavo.sampling_params import BeamSearchParams
from octavo_protocol.errors import (
    ClientError,
    ConfigError,
    GenerationError,
    NotFoundError,
    ValidationError,
)
from octavo_protocol.outputs import RequestOutput
from tests.e2e.make_reference import load_hugging_face
from tests.e2e.platform import MANIFEST, Platform
from tests.fakes.trained_adapters import QUESTIONS, RECIPES, trained_adapters

pytestmark = [pytest.mark.integration, pytest.mark.model, pytest.mark.timeout(300)]

PROMPTS = ["The capital of France is", "Once upon a time", "1, 2, 3, 4,"]
CHATS = [[{"role": "user", "content": text}] for text in ("Hi!", "Name a colour.")]


@pytest.fixture(scope="module")
def adapters(smollm2: Path) -> list[LoRARequest]:
    folders = trained_adapters(smollm2).items()
    return [LoRARequest(name, number, str(path)) for number, (name, path) in enumerate(folders, 1)]


@pytest.fixture(scope="module")
def platform(
    smollm2: Path, adapters: list[LoRARequest], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Platform]:
    listed = [
        f"  - name: {adapter.name}\n    model:\n      source: file://{adapter.path}\n"
        for adapter in adapters
    ]
    manifest = "".join([MANIFEST, "  lora:\n    maxLoras: 2\n  adapters:\n", *listed])
    with Platform(smollm2, tmp_path_factory.mktemp("cluster"), manifest) as started:
        yield started


@pytest.fixture(scope="module")
def here(smollm2: Path) -> Iterator[LLM]:
    with LLM(
        str(smollm2), dtype="float32", max_model_len=4096, enable_lora=True, max_loras=2
    ) as llm:
        yield llm


@pytest.fixture
def there(platform: Platform) -> Iterator[Any]:
    with LLM("smollm2", cluster=platform.url) as llm:
        yield llm


def compared(outputs: list[RequestOutput]) -> list[Any]:
    return [
        (
            output.prompt,
            output.prompt_token_ids,
            [
                (each.index, each.text, list(each.token_ids), each.finish_reason, each.stop_reason)
                for each in output.outputs
            ],
        )
        for output in outputs
    ]


def assert_same_logprobs(told: Any, known: Any) -> None:
    """The same tokens in the same order, with their ranks and texts."""
    assert len(told) == len(known) > 0
    for one, other in zip(told, known, strict=True):
        if other is None:
            assert one is None
            continue
        assert [(token, each.rank, each.decoded_token) for token, each in one.items()] == [
            (token, each.rank, each.decoded_token) for token, each in other.items()
        ]
        assert [each.logprob for each in one.values()] == pytest.approx(
            [each.logprob for each in other.values()], abs=1e-4
        )


def test_generation_and_chat_equal_those_in_process(here: LLM, there: Any) -> None:
    params = [
        SamplingParams(temperature=0, max_tokens=12, logprobs=2),
        SamplingParams(n=2, seed=7, max_tokens=8, temperature=0.9, top_p=0.8),
        SamplingParams(temperature=0, max_tokens=20, stop=["7"], prompt_logprobs=1),
    ]
    ours = here.generate(PROMPTS, params, use_tqdm=False)
    theirs = there.generate(PROMPTS, params, use_tqdm=False)
    assert compared(theirs) == compared(ours)
    assert_same_logprobs(theirs[0].outputs[0].logprobs, ours[0].outputs[0].logprobs)
    assert_same_logprobs(theirs[2].prompt_logprobs, ours[2].prompt_logprobs)
    assert theirs[0].outputs[0].cumulative_logprob == pytest.approx(
        ours[0].outputs[0].cumulative_logprob, abs=1e-3
    )

    greedy = SamplingParams(temperature=0, max_tokens=10, logprobs=1)
    ours = here.chat(CHATS, greedy, use_tqdm=False)
    theirs = there.chat(CHATS, greedy, use_tqdm=False)
    assert compared(theirs) == compared(ours)
    assert_same_logprobs(theirs[1].outputs[0].logprobs, ours[1].outputs[0].logprobs)
    ids = [here.get_tokenizer().encode(text) for text in PROMPTS]
    by_ids = there.generate([{"prompt_token_ids": each} for each in ids], greedy, use_tqdm=False)
    assert [each.outputs[0].text for each in by_ids] == [
        each.outputs[0].text for each in here.generate(PROMPTS, greedy, use_tqdm=False)
    ]
    assert there.generate([], greedy) == []


def test_beams_equal_those_in_process(here: LLM, there: Any) -> None:
    params = BeamSearchParams(beam_width=2, max_tokens=6, length_penalty=0.8)
    prompts = [PROMPTS[0], {"prompt_token_ids": here.get_tokenizer().encode(PROMPTS[1])}]
    ours, theirs = here.beam_search(prompts, params), there.beam_search(prompts, params)
    for mine, told in zip(ours, theirs, strict=True):
        assert len(mine.sequences) == 2
        for one, other in zip(mine.sequences, told.sequences, strict=True):
            assert (one.tokens, one.text, one.orig_prompt, one.finish_reason, one.stop_reason) == (
                *(other.tokens, other.text, other.orig_prompt),
                *(other.finish_reason, other.stop_reason),
            )
            assert other.cum_logprob == pytest.approx(one.cum_logprob, abs=1e-3)
            assert [list(each) for each in other.logprobs] == [list(each) for each in one.logprobs]
    with pytest.warns(DeprecationWarning, match="beam_search"):
        former = there.generate(PROMPTS[:1], params, use_tqdm=False)
    with pytest.warns(DeprecationWarning, match="beam_search"):
        ours_former: Any = here.generate(PROMPTS[:1], params, use_tqdm=False)  # type: ignore[arg-type]
    assert compared(former) == compared(ours_former)


def test_a_script_says_the_same_here_and_there(
    here: LLM, there: Any, adapters: list[LoRARequest], tmp_path: Path
) -> None:
    """What offline scripts do, with nothing but the constructor changed."""
    (tmp_path / "prompts.txt").write_text("".join(f"Number {i} is\n" for i in range(70)))

    def script(llm: Any) -> list[Any]:
        said: list[Any] = []
        greedy = SamplingParams(temperature=0, max_tokens=4)
        for output in llm.generate(PROMPTS, greedy):
            said.append((output.prompt, output.outputs[0].text))
        each_its_own = [SamplingParams(temperature=0, max_tokens=i + 1) for i in range(3)]
        said += [o.outputs[0].token_ids for o in llm.generate(PROMPTS, each_its_own)]
        with (tmp_path / "prompts.txt").open() as file:
            prompts = [line.strip() for line in file]
        one = SamplingParams(temperature=0, max_tokens=1)
        said += [o.outputs[0].text for o in llm.generate(prompts, one, use_tqdm=False)]
        [answer] = llm.chat(CHATS[0], sampling_params=greedy, use_tqdm=False)
        said.append(answer.outputs[0].text)
        for output in llm.generate(PROMPTS, greedy, lora_request=[*adapters, None]):
            said.append((output.lora_request, output.outputs[0].text))
        [search] = llm.beam_search(PROMPTS[:1], BeamSearchParams(beam_width=2, max_tokens=3))
        return [*said, *(beam.text for beam in search.sequences)]

    assert script(there) == script(here)


def test_trained_adapters_say_what_their_merged_models_say_beside_each_other(
    smollm2: Path, platform: Platform, here: LLM, adapters: list[LoRARequest]
) -> None:
    """In one batch with the model itself, offline and over HTTP by name."""
    wanted = [None, *adapters]
    asked = [(adapter, question) for question in QUESTIONS for adapter in wanted]
    outputs = here.chat(
        [[{"role": "user", "content": question}] for _, question in asked],
        SamplingParams(temperature=0, max_tokens=24),
        use_tqdm=False,
        lora_request=[adapter for adapter, _ in asked],
    )
    told = answers_over_http(
        platform.url,
        [(adapter.name if adapter else "smollm2", question) for adapter, question in asked],
    )

    assert told == [output.outputs[0].text for output in outputs]
    for index, adapter in enumerate(wanted):
        own = outputs[index :: len(wanted)]
        model = load_hugging_face(smollm2)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapter.path).merge_and_unload()
        assert [list(output.outputs[0].token_ids) for output in own] == [
            greedy_tokens(model.eval(), output) for output in own
        ]
        name = adapter.name if adapter else None
        texts = [output.outputs[0].text for output in own]
        for form, recipe in RECIPES.items():
            assert [recipe.is_in_form(text) for text in texts] == [form == name] * len(texts)


def answers_over_http(url: str, asked: Sequence[tuple[str, str]]) -> list[str | None]:
    """To (model, question), all at once."""
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
        ThreadPoolExecutor(len(asked)) as threads,
    ):

        def answer(model: str, question: str) -> str | None:
            made = client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": question}],
                temperature=0,
                max_tokens=24,
            )
            return made.choices[0].message.content

        return list(threads.map(answer, *zip(*asked, strict=True)))


@torch.inference_mode()
def greedy_tokens(model: Any, output: RequestOutput) -> list[int]:
    """What the model chooses after the prompt and after each token of the output but the last: the
    same tokens, if those are its greedy answer.
    """
    prompt, tokens = list(output.prompt_token_ids or ()), list(output.outputs[0].token_ids)
    logits = model(torch.tensor([prompt + tokens[:-1]])).logits[0, len(prompt) - 1 :]
    chosen: list[int] = logits.argmax(-1).tolist()
    return chosen


def test_prompts_of_an_iterator_come_back_one_by_one(here: LLM, there: Any) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=4)
    outputs = there.results(there.submit(iter(PROMPTS), greedy), use_tqdm=False)
    assert [next(outputs).prompt for _ in PROMPTS] == PROMPTS
    with pytest.raises(ValidationError, match="prompts must not be empty"):
        there.submit(iter(()), greedy)


def test_a_job_is_attached_to_after_its_client_was_killed(platform: Platform, here: LLM) -> None:
    script = (
        "import sys; from octavo import LLM, SamplingParams\n"
        f"llm = LLM('smollm2', cluster={platform.url!r})\n"
        "params = SamplingParams(temperature=0, max_tokens=16)\n"
        f"print(llm.submit({PROMPTS!r}, params), flush=True)\n"
        "sys.stdin.read()"
    )
    client = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert client.stdout is not None
    job_id = client.stdout.readline().strip()
    client.kill()
    client.communicate()
    outputs = LLM.attach(job_id, cluster=platform.url, use_tqdm=False)
    params = SamplingParams(temperature=0, max_tokens=16)
    assert compared(outputs) == compared(here.generate(PROMPTS, params, use_tqdm=False))


def test_what_goes_wrong_says_what(
    platform: Platform, there: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = [SamplingParams(max_tokens=1), SamplingParams(allowed_token_ids=[10**9])]
    with pytest.raises(GenerationError, match=r"1 of 2 requests.*request 1: .*allowed_token_ids"):
        there.generate(["a", "b"], params, use_tqdm=False)
    with pytest.raises(ValidationError, match="2 sampling_params for 1 prompts"):
        there.generate(["a"], [SamplingParams()] * 2)
    with pytest.raises(GenerationError, match="request 0"):
        there.embed(["a"], use_tqdm=False)
    with pytest.raises(TypeError, match="expected BeamSearchParams"):
        there.beam_search(["a"], None)
    with pytest.raises(NotFoundError, match=r"does not serve 'other'; it serves json, .*smollm2"):
        LLM("other", cluster=platform.url)
    with pytest.raises(TypeError, match="dtype is set where the model is served"):
        LLM("smollm2", cluster=platform.url, dtype="float32")
    with pytest.raises(ClientError, match="there is no batch"):
        LLM.attach("batch_none", cluster=platform.url)
    monkeypatch.delenv("OCTAVO_URL", raising=False)
    with pytest.raises(ConfigError, match="OCTAVO_URL"):
        LLM("smollm2", cluster=True)
    monkeypatch.setenv("OCTAVO_URL", f"{platform.url}/v1")
    with LLM("smollm2", cluster=True) as llm:
        assert repr(llm) == f"LLM('smollm2', cluster='{platform.url}')"
    assert httpx.get(f"{platform.url}/ready").status_code == 200
