"""`LLM(cluster=…)` gives what an `LLM` in process gives: a real model, greedy or seeded, fp32."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from octavo import LLM, SamplingParams
from octavo_protocol.errors import (
    ClientError,
    ConfigError,
    GenerationError,
    NotFoundError,
    ValidationError,
)
from octavo_protocol.outputs import RequestOutput
from tests.e2e.platform import Platform

pytestmark = [pytest.mark.integration, pytest.mark.model, pytest.mark.timeout(300)]

PROMPTS = ["The capital of France is", "Once upon a time", "1, 2, 3, 4,"]
CHATS = [[{"role": "user", "content": text}] for text in ("Hi!", "Name a colour.")]


@pytest.fixture(scope="module")
def platform(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with Platform(smollm2, tmp_path_factory.mktemp("cluster")) as started:
        yield started


@pytest.fixture(scope="module")
def here(smollm2: Path) -> Iterator[LLM]:
    with LLM(str(smollm2), dtype="float32", max_model_len=4096) as llm:
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


def test_generation_and_chat_equal_those_in_process(here: LLM, there: Any) -> None:
    params = [
        SamplingParams(temperature=0, max_tokens=12, logprobs=2),
        SamplingParams(n=2, seed=7, max_tokens=8, temperature=0.9, top_p=0.8),
        SamplingParams(temperature=0, max_tokens=20, stop=["7"], prompt_logprobs=1),
    ]
    ours = here.generate(PROMPTS, params, use_tqdm=False)
    theirs = there.generate(PROMPTS, params, use_tqdm=False)
    assert compared(theirs) == compared(ours)
    mine, told = ours[0].outputs[0].logprobs, theirs[0].outputs[0].logprobs
    assert [list(each) for each in told] == [list(each) for each in mine or ()]
    for one, other in zip(told, mine or (), strict=True):
        assert [each.rank for each in one.values()] == [each.rank for each in other.values()]
        for token in one:
            assert one[token].logprob == pytest.approx(other[token].logprob, abs=1e-4)
    assert theirs[2].prompt_logprobs[0] is None
    assert len(theirs[2].prompt_logprobs) == len(theirs[2].prompt_token_ids)

    greedy = SamplingParams(temperature=0, max_tokens=10)
    assert [each.outputs[0].text for each in there.chat(CHATS, greedy, use_tqdm=False)] == [
        each.outputs[0].text for each in here.chat(CHATS, greedy, use_tqdm=False)
    ]
    ids = [here.get_tokenizer().encode(text) for text in PROMPTS]
    by_ids = there.generate([{"prompt_token_ids": each} for each in ids], greedy, use_tqdm=False)
    assert [each.outputs[0].text for each in by_ids] == [
        each.outputs[0].text for each in here.generate(PROMPTS, greedy, use_tqdm=False)
    ]
    assert there.generate([], greedy) == []


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
    with pytest.raises(ValidationError, match="beam search"):
        there.beam_search(["a"], None)
    with pytest.raises(NotFoundError, match="does not serve 'other'; it serves smollm2"):
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
