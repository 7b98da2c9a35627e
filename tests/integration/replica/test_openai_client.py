"""The official client on every endpoint, whole and streamed.

It is `Any` here: its own types know neither chosen-at-run-time streams nor vLLM's fields.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from tests.fakes.tiny_model import END, tiny_tokenizer
from tests.integration.replica.harness import MAX_MODEL_LEN, MODEL, Replica

pytestmark = [pytest.mark.integration]

PROMPT = "the quick brown fox jumps over the lazy dog"
PROMPT_IDS = tiny_tokenizer().encode(PROMPT)
MESSAGES = [{"role": "user", "content": "hello world"}]
CHAT_PROMPT = f"<|start|>user\nhello world{END}\n<|start|>assistant\n"


@pytest.fixture
def client(replica: Replica) -> Iterator[Any]:
    with OpenAI(base_url=f"{replica.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(replica: Replica) -> AsyncIterator[Any]:
    async with AsyncOpenAI(base_url=f"{replica.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def echo(num_tokens: int, token_ids: list[int] = PROMPT_IDS) -> str:
    return tiny_tokenizer().decode([token_ids[i % len(token_ids)] for i in range(num_tokens)])


# -- text completion ------------------------------------------------------------------------------


def test_completion(client: Any) -> None:
    answer = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=8)

    [choice] = answer.choices
    assert choice.text == echo(8)
    assert choice.finish_reason == "length"
    assert choice.logprobs is None
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert answer.model == MODEL
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(PROMPT_IDS)
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == len(PROMPT_IDS) + 8


def test_completion_without_max_tokens_has_sixteen(client: Any) -> None:
    answer = client.completions.create(model=MODEL, prompt=PROMPT)

    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


def test_streamed_completion_joins_to_the_whole_one(client: Any) -> None:
    chunks = list(
        client.completions.create(
            model=MODEL,
            prompt=PROMPT,
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
        )
    )

    *pieces, last = chunks
    assert "".join(piece.choices[0].text for piece in pieces) == echo(12)
    assert [piece.choices[0].finish_reason for piece in pieces[-2:]] == [None, "length"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert last.choices == []
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (len(PROMPT_IDS), 12)


def test_stream_without_options_has_no_usage(client: Any) -> None:
    chunks = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=3, stream=True)

    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def test_usage_can_come_with_every_chunk(client: Any) -> None:
    chunks = client.completions.create(
        model=MODEL,
        prompt=PROMPT,
        max_tokens=3,
        stream=True,
        stream_options={"include_usage": True, "continuous_usage_stats": True},
    )

    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage]
    # Tokens that come faster than they are read share a chunk.
    assert counts == sorted(counts)
    assert counts[-2:] == [3, 3]


def test_list_of_prompts_gives_choices_in_their_order(client: Any) -> None:
    prompts = ["the dog", "hello world", "今天天气"]

    answer = client.completions.create(model=MODEL, prompt=prompts, max_tokens=4, n=2)

    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3, 4, 5]
    wanted = [echo(4, tiny_tokenizer().encode(prompt)) for prompt in prompts for _ in range(2)]
    assert [choice.text for choice in answer.choices] == wanted
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(len(tiny_tokenizer().encode(p)) for p in prompts)
    assert answer.usage.completion_tokens == 24


def test_streamed_list_of_prompts_keeps_choices_apart(client: Any) -> None:
    prompts = ["the dog", "hello world"]
    texts = ["", "", "", ""]
    ends: list[str | None] = [None] * 4

    for chunk in client.completions.create(
        model=MODEL, prompt=prompts, max_tokens=5, n=2, echo=True, stream=True
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            ends[choice.index] = choice.finish_reason

    wanted = [p + echo(5, tiny_tokenizer().encode(p)) for p in prompts for _ in range(2)]
    assert texts == wanted
    assert ends == ["length"] * 4


def test_token_ids_are_prompts_too(client: Any) -> None:
    one = client.completions.create(model=MODEL, prompt=PROMPT_IDS, max_tokens=4)
    many = client.completions.create(model=MODEL, prompt=[PROMPT_IDS, PROMPT_IDS], max_tokens=4)

    assert [choice.text for choice in one.choices] == [echo(4)]
    assert [choice.text for choice in many.choices] == [echo(4)] * 2


def test_echo_puts_the_prompt_before_the_answer(client: Any) -> None:
    for prompt in (PROMPT, PROMPT_IDS):
        answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=4, echo=True)
        assert answer.choices[0].text == PROMPT + echo(4)


def test_completion_logprobs(client: Any) -> None:
    answer = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=4, logprobs=2)

    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert "".join(logprobs.tokens) == echo(4)
    assert logprobs.token_logprobs == [-0.5] * 4
    assert logprobs.top_logprobs is not None
    assert [len(top) for top in logprobs.top_logprobs] == [2] * 4
    starts = [sum(map(len, logprobs.tokens[:i])) for i in range(4)]
    assert logprobs.text_offset == starts


@pytest.mark.parametrize("stop", [None, ["a string that never comes"]])
def test_streamed_logprobs_equal_the_whole_ones(client: Any, stop: list[str] | None) -> None:
    options: dict[str, Any] = {
        "model": MODEL,
        "prompt": PROMPT,
        "max_tokens": 6,
        "logprobs": 1,
        "stop": stop,
    }

    wanted = client.completions.create(**options).choices[0].logprobs
    chunks = client.completions.create(**options, stream=True)
    parts = [chunk.choices[0].logprobs for chunk in chunks]

    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [each for part in parts for each in getattr(part, name)] == getattr(wanted, name)


@pytest.mark.parametrize("stream", [False, True])
def test_stop_string_ends_the_answer(client: Any, stream: bool) -> None:
    text, reasons = "", []
    answer = client.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=50, stop=["lazy"], stream=stream
    )
    for chunk in answer if stream else [answer]:
        text += chunk.choices[0].text
        reasons.append((chunk.choices[0].finish_reason, chunk.choices[0].stop_reason))

    assert text == "the quick brown fox jumps over the "
    assert reasons[-1] == ("stop", "lazy")


def test_end_token_ends_the_answer(client: Any) -> None:
    prompt = tiny_tokenizer().encode(f"the dog{END}")

    answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=50)

    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("the dog", "stop")


def test_repeated_prompt_reports_cached_tokens(client: Any) -> None:
    prompt = "cached " * 20
    num_prompt = len(tiny_tokenizer().encode(prompt))
    counts = []
    for _ in range(2):
        answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=1)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        counts.append(answer.usage.prompt_tokens_details.cached_tokens)

    assert counts == [0, (num_prompt - 1) // 16 * 16]


def test_caches_with_different_salts_are_apart(client: Any) -> None:
    counts = []
    for salt in ("a", "b", "a"):
        answer = client.completions.create(
            model=MODEL, prompt="salted " * 20, max_tokens=1, extra_body={"cache_salt": salt}
        )
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        counts.append(answer.usage.prompt_tokens_details.cached_tokens)

    assert counts[:2] == [0, 0]
    assert counts[2]


@pytest.mark.parametrize("stop", [None, ["a string that never comes"]])
def test_streamed_token_ids_are_complete(client: Any, stop: list[str] | None) -> None:
    """Also those whose text is held back for a character or for a stop string."""
    prompt = "émigré 🙂 ꙮ 今天"
    token_ids: list[int] = []
    for chunk in client.completions.create(
        model=MODEL,
        prompt=prompt,
        max_tokens=20,
        stop=stop,
        stream=True,
        extra_body={"return_token_ids": True},
    ):
        token_ids += chunk.choices[0].token_ids

    prompt_ids = tiny_tokenizer().encode(prompt)
    assert token_ids == [prompt_ids[i % len(prompt_ids)] for i in range(20)]


def test_completion_fills_the_context_at_most(client: Any) -> None:
    answer = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=100_000)

    assert answer.usage is not None
    assert answer.usage.total_tokens == MAX_MODEL_LEN
    assert answer.choices[0].finish_reason == "length"


# -- chat -----------------------------------------------------------------------------------------


def test_chat(client: Any) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=4)

    [choice] = answer.choices
    prompt_ids = tiny_tokenizer().encode(CHAT_PROMPT)
    assert choice.message.role == "assistant"
    assert choice.message.content == echo(4, prompt_ids)
    assert choice.finish_reason == "length"
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(prompt_ids), 4)


def test_chat_without_max_tokens_runs_to_the_end_token(client: Any) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES)

    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == "user\nhello world"


def test_streamed_chat_joins_to_the_whole_one(client: Any) -> None:
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,
            max_completion_tokens=50,
            stream=True,
            stream_options={"include_usage": True},
        )
    )

    first, *pieces, last = chunks
    assert first.choices[0].delta.role == "assistant"
    assert "".join(p.choices[0].delta.content or "" for p in pieces) == "user\nhello world"
    assert pieces[-1].choices[0].finish_reason == "stop"
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens


def test_chat_samples_and_logprobs(client: Any) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=5,
        n=3,
        logprobs=True,
        top_logprobs=2,
    )

    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        assert len(choice.logprobs.content) == 5
        for entry in choice.logprobs.content:
            assert entry.logprob == -0.5
            assert entry.bytes == list(entry.token.encode())
            assert [each.logprob for each in entry.top_logprobs] == [-0.5, -1.0]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 15


def test_streamed_chat_samples_are_apart(client: Any) -> None:
    texts, roles = ["", "", ""], [0, 0, 0]
    for chunk in client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        n=3,
        logprobs=True,
        stream=True,
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            roles[choice.index] += choice.delta.role is not None

    assert texts == ["user\nhello world"] * 3
    assert roles == [1, 1, 1]


def test_content_parts_are_joined(client: Any) -> None:
    parts = [{"type": "text", "text": "hello"}, {"type": "text", "text": "world"}]

    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": parts}],
    )

    assert answer.choices[0].message.content == "user\nhello\nworld"


# -- asynchronously, many at once ------------------------------------------------------------------


async def test_async_client_whole_and_streamed(async_client: Any) -> None:
    whole = await async_client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=9)
    stream = await async_client.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=9, stream=True
    )
    text = "".join([chunk.choices[0].text async for chunk in stream])
    chat = await async_client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        stream=True,
    )
    pieces = [chunk.choices[0].delta.content or "" async for chunk in chat]

    assert whole.choices[0].text == text == echo(9)
    assert "".join(pieces) == "user\nhello world"


async def test_many_requests_at_once_do_not_mix(async_client: Any) -> None:
    async def ask(number: int) -> str:
        prompt = f"request {number} of many: {number * 7919}"
        answer = await async_client.completions.create(
            model=MODEL, prompt=prompt, max_tokens=len(tiny_tokenizer().encode(prompt))
        )
        text: str = answer.choices[0].text
        return text.removeprefix(prompt)

    assert set(await asyncio.gather(*map(ask, range(100)))) == {""}


# -- the rest -------------------------------------------------------------------------------------


def test_models(client: Any) -> None:
    models = list(client.models.list())

    assert [model.id for model in models] == [MODEL, "tiny-alias"]
    assert all(model.object == "model" for model in models)


def test_alias_is_answered_under_its_own_name(client: Any) -> None:
    answer = client.completions.create(model="tiny-alias", prompt=PROMPT, max_tokens=1)

    assert answer.model == "tiny-alias"


def test_unknown_model_is_the_client_s_not_found_error(client: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="'gpt' does not exist") as caught:
        client.completions.create(model="gpt", prompt=PROMPT)

    assert caught.value.code == "model_not_found"


def test_tokenize_and_detokenize_are_inverse(replica: Replica) -> None:
    tokens = replica.http.post(
        "/tokenize", json={"prompt": PROMPT, "return_token_strs": True}
    ).json()

    assert tokens["tokens"] == PROMPT_IDS
    assert tokens["count"] == len(PROMPT_IDS)
    assert tokens["max_model_len"] == MAX_MODEL_LEN
    assert "".join(tokens["token_strs"]) == PROMPT
    text = replica.http.post("/detokenize", json={"tokens": tokens["tokens"]}).json()
    assert text == {"prompt": PROMPT}


def test_tokenize_renders_messages(replica: Replica) -> None:
    tokens = replica.http.post("/tokenize", json={"messages": MESSAGES}).json()["tokens"]

    assert tokens == tiny_tokenizer().encode(CHAT_PROMPT)


def test_probes_version_metrics_and_tokenizer(replica: Replica) -> None:
    assert replica.http.get("/health").status_code == 200
    assert replica.http.get("/ready").json() == {"status": "ready", "stage": "ready"}
    assert replica.http.get("/version").json()["version"]
    assert "octavo_runtime_requests_running" in replica.http.get("/metrics").text
    bundle = replica.http.get("/octavo/tokenizer").json()
    assert bundle["tokenizer_json"] == tiny_tokenizer().bundle.tokenizer_json


def test_metrics_count_what_was_served(replica: Replica, client: Any) -> None:
    names = ("prompt_tokens_total", "generation_tokens_total", "requests_total")
    before = {name: replica.metric(name) for name in names}

    client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=5, n=2)

    grown = {name: replica.metric(name) - before[name] for name in names}
    assert grown == {
        "prompt_tokens_total": len(PROMPT_IDS),
        "generation_tokens_total": 10,
        "requests_total": 2,
    }


def test_request_id_is_kept_where_it_is_safe(replica: Replica) -> None:
    kept = replica.http.get("/version", headers={"x-request-id": "abc-1"})
    replaced = replica.http.get("/version", headers={"x-request-id": "a b<>"})

    assert kept.headers["x-request-id"] == "abc-1"
    assert len(replaced.headers["x-request-id"]) == 32
