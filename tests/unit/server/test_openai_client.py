"""The official client is the judge of what the routes answer."""

from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from tests.unit.server.conftest import Replica

_HI: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]


async def test_chat_answers_whole(replica: Replica) -> None:
    replica.llm.script = "Hello."

    answer = await replica.client.chat.completions.create(model="first", messages=_HI)

    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "first"
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "Hello.")
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    prompt = len("user: Hi\nassistant:")
    assert answer.usage.prompt_tokens == prompt
    assert answer.usage.completion_tokens == len("Hello.") + 1
    assert answer.usage.total_tokens == prompt + len("Hello.") + 1
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


async def test_chat_stream_opens_with_the_role_and_ends_with_reason_and_usage(
    replica: Replica,
) -> None:
    replica.llm.script = "Grüß dich"

    stream = await replica.client.chat.completions.create(
        model="first", messages=_HI, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]

    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    first, *texts, last, usage = chunks
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == "Grüß dich"
    assert all(chunk.choices[0].finish_reason is None for chunk in [first, *texts])
    assert last.choices[0].finish_reason == "stop"
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.completion_tokens == len("Grüß dich".encode()) + 1
    assert all(chunk.usage is None for chunk in [first, *texts, last])


async def test_chat_stream_interleaves_n_choices_by_index(replica: Replica) -> None:
    replica.llm.script = "abc"

    stream = await replica.client.chat.completions.create(
        model="first", messages=_HI, n=3, stream=True
    )
    said, roles, reasons = ["", "", ""], [0, 0, 0], ["", "", ""]
    async for chunk in stream:
        [choice] = chunk.choices
        said[choice.index] += choice.delta.content or ""
        roles[choice.index] += choice.delta.role == "assistant"
        reasons[choice.index] = choice.finish_reason or reasons[choice.index]

    assert said == ["abc"] * 3
    assert roles == [1, 1, 1]
    assert reasons == ["stop"] * 3


async def test_continuous_usage_counts_on_every_chunk(replica: Replica) -> None:
    replica.llm.script = "abc"

    stream = await replica.client.chat.completions.create(
        model="first",
        messages=_HI,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    )
    counts = [chunk.usage.completion_tokens async for chunk in stream if chunk.usage]

    assert counts == [1, 1, 2, 3, 4, 4]


@pytest.mark.parametrize("is_stream", [False, True])
async def test_chat_logprobs_cover_every_token(replica: Replica, is_stream: bool) -> None:
    replica.llm.script = "abcd"
    answer = await replica.client.chat.completions.create(
        model="first",
        messages=_HI,
        logprobs=True,
        top_logprobs=2,
        stream=is_stream,
        max_tokens=3,
    )
    if isinstance(answer, openai.AsyncStream):
        choices = [chunk.choices[0] async for chunk in answer]
        content = [entry for c in choices if c.logprobs for entry in c.logprobs.content or []]
    else:
        assert answer.choices[0].logprobs is not None
        content = answer.choices[0].logprobs.content or []

    assert [entry.token for entry in content] == ["a", "b", "c"]
    assert all(entry.logprob == -0.5 and len(entry.top_logprobs) == 2 for entry in content)
    assert content[0].bytes == [ord("a")]


async def test_completion_takes_a_list_of_prompts_times_n(replica: Replica) -> None:
    answer = await replica.client.completions.create(
        model="first", prompt=["ab", "x"], n=2, max_tokens=4
    )

    assert answer.object == "text_completion"
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in answer.choices] == ["abab", "abab", "xxxx", "xxxx"]
    assert {choice.finish_reason for choice in answer.choices} == {"length"}
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 16)


async def test_completion_takes_token_ids(replica: Replica) -> None:
    ids = replica.llm.tokenizer.encode("abc")
    one = await replica.client.completions.create(model="first", prompt=ids, max_tokens=3)
    two = await replica.client.completions.create(model="first", prompt=[ids, ids], max_tokens=3)

    assert [choice.text for choice in one.choices + two.choices] == ["abc"] * 3


async def test_max_tokens_defaults_to_16_for_text_and_to_the_context_for_chat(
    replica: Replica,
) -> None:
    text = await replica.client.completions.create(model="first", prompt="ab")
    chat = await replica.client.chat.completions.create(model="first", messages=_HI)

    assert text.usage is not None
    assert chat.usage is not None
    assert text.usage.completion_tokens == 16
    assert chat.usage.total_tokens == 64


async def test_completion_stream_equals_the_whole_answer(replica: Replica) -> None:
    arguments: dict[str, Any] = {
        "model": "first",
        "prompt": ["ab", "ü"],
        "n": 2,
        "max_tokens": 6,
        "echo": True,
    }
    whole = await replica.client.completions.create(**arguments)
    said = [""] * 4
    async for chunk in await replica.client.completions.create(**arguments, stream=True):
        said[chunk.choices[0].index] += chunk.choices[0].text

    assert said == [choice.text for choice in whole.choices] == ["abababab"] * 2 + ["üüüü"] * 2


async def test_completion_logprobs_are_parallel_lists_with_offsets(replica: Replica) -> None:
    answer = await replica.client.completions.create(
        model="first", prompt="abc", max_tokens=3, logprobs=1
    )

    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["a", "b", "c"]
    assert logprobs.text_offset == [0, 1, 2]
    assert logprobs.token_logprobs == [-0.5, -0.5, -0.5]
    assert logprobs.top_logprobs is not None
    assert all("abc"[i] in top for i, top in enumerate(logprobs.top_logprobs))


async def test_a_stop_string_ends_the_answer_and_is_named(replica: Replica) -> None:
    replica.llm.script = "one two three"
    answer = await replica.client.chat.completions.create(
        model="first", messages=_HI, stop=[" two"]
    )

    assert answer.choices[0].message.content == "one"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].model_extra == {"stop_reason": " two", "token_ids": None}


@pytest.mark.parametrize("is_stream", [False, True])
async def test_return_token_ids_gives_every_token_also_of_half_characters(
    replica: Replica, is_stream: bool
) -> None:
    replica.llm.script = "ü"
    said = replica.llm.tokenizer.encode("ü")
    answer = await replica.client.chat.completions.create(
        model="first",
        messages=_HI,
        stream=is_stream,
        max_tokens=2,
        extra_body={"return_token_ids": True},
    )
    if isinstance(answer, openai.AsyncStream):
        choices = [chunk.choices[0].model_dump() async for chunk in answer]
    else:
        choices = [answer.choices[0].model_dump()]

    assert [token for choice in choices for token in choice.get("token_ids") or []] == said


async def test_models_are_listed_and_found_by_name(replica: Replica) -> None:
    listed = [model async for model in replica.client.models.list()]
    found = await replica.client.models.retrieve("second/alias")

    assert [model.id for model in listed] == ["first", "second/alias"]
    assert found.id == "second/alias"
    assert (found.object, found.owned_by) == ("model", "octavo")
    assert found.model_extra == {"max_model_len": 64, "root": "first", "parent": None}
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        await replica.client.models.retrieve("third")


async def test_the_clients_own_errors_are_raised(replica: Replica) -> None:
    with pytest.raises(openai.NotFoundError, match="'third' does not exist"):
        await replica.client.chat.completions.create(model="third", messages=_HI)
    with pytest.raises(openai.BadRequestError, match="temperature must be in") as caught:
        await replica.client.chat.completions.create(model="first", messages=_HI, temperature=9)

    assert caught.value.param == "temperature"
    assert caught.value.type == "invalid_request_error"
