"""What a chat answer consists of: tools, reasoning, order of a stream, token ids, echo."""

import json
import re
from typing import Any

import openai
import pytest
from tests.unit.server.conftest import Replica, running_replica

from octavo_runtime.server.options import ApiOptions

_HI: list[Any] = [{"role": "user", "content": "Hi"}]
_TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
        },
    }
]
_CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "sky"}}\n</tool_call>'
_AUTO = ApiOptions(enable_auto_tool_choice=True, tool_call_parser="hermes")
_THINKING = ApiOptions(reasoning_parser="qwen3", reasoning_content_field=True)
_ID = re.compile(r"chatcmpl-tool-[0-9a-f]{32}")


async def _events(replica: Replica, **body: Any) -> list[Any]:
    """The data of every event of a streamed chat; `[DONE]` as text."""
    body = {"messages": _HI, "stream": True, **body}
    answer = await replica.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    data = [event.removeprefix("data: ") for event in answer.text.split("\n\n") if event]
    return [each if each == "[DONE]" else json.loads(each) for each in data]


async def _whole(replica: Replica, **body: Any) -> Any:
    answer = await replica.http.post("/v1/chat/completions", json={"messages": _HI, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_whole_stream_in_its_order(replica: Replica) -> None:
    replica.llm.script = "ab"
    events = await _events(
        replica,
        max_tokens=2,
        return_token_ids=True,
        return_prompt_text=True,
        stream_options={"include_usage": True},
    )

    prompt = "user: Hi\nassistant:"
    tokenizer = replica.llm.tokenizer
    shared = {
        "id": events[0]["id"],
        "model": "first",
        "created": events[0]["created"],
        "object": "chat.completion.chunk",
    }

    def choice(delta: dict[str, str], reason: str | None, **more: Any) -> dict[str, Any]:
        return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason, **more}

    a, b = tokenizer.encode("ab")
    assert events == [
        {
            **shared,
            "choices": [choice({"role": "assistant", "content": ""}, None)],
            "prompt_token_ids": tokenizer.encode(prompt),
            "prompt_text": prompt,
        },
        {**shared, "choices": [choice({"content": "a"}, None, token_ids=[a])]},
        {
            **shared,
            "choices": [choice({"content": "b"}, "length", token_ids=[b])],
            "system_fingerprint": replica.state.fingerprint,
        },
        {
            **shared,
            "choices": [],
            "usage": {
                "prompt_tokens": len(prompt),
                "completion_tokens": 2,
                "total_tokens": len(prompt) + 2,
                "prompt_tokens_details": {"cached_tokens": 0},
            },
        },
        "[DONE]",
    ]


async def test_a_whole_answer_has_every_field(replica: Replica) -> None:
    replica.llm.script = "ab"
    answer = await _whole(replica, max_tokens=5)

    created = answer.pop("created")
    assert created > 0
    assert answer.pop("id").startswith("chatcmpl-")
    prompt = len("user: Hi\nassistant:")
    assert answer == {
        "model": "first",
        "object": "chat.completion",
        "system_fingerprint": replica.state.fingerprint,
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "ab",
                    "refusal": None,
                    "annotations": None,
                    "audio": None,
                    "function_call": None,
                    "reasoning": None,
                },
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": None,
                "token_ids": None,
            }
        ],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": 3,
            "total_tokens": prompt + 3,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
        "prompt_logprobs": None,
        "prompt_token_ids": None,
        "prompt_text": None,
    }


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_tool_call_is_found_beside_content(is_stream: bool) -> None:
    async with running_replica(_AUTO) as replica:
        replica.llm.load(max_model_len=512)
        replica.llm.script = f"I look. {_CALL}"
        answer = await replica.client.chat.completions.create(
            model="first", messages=_HI, tools=_TOOLS, stream=is_stream, max_tokens=200
        )
        if isinstance(answer, openai.AsyncStream):
            chunks = [chunk.choices[0] async for chunk in answer]
            content = "".join(chunk.delta.content or "" for chunk in chunks)
            pieces = [piece for chunk in chunks for piece in chunk.delta.tool_calls or []]
            assert {piece.index for piece in pieces} == {0}
            identifiers = [piece.id for piece in pieces if piece.id]
            names = [p.function.name for p in pieces if p.function and p.function.name]
            arguments = "".join(p.function.arguments or "" for p in pieces if p.function)
            reason = chunks[-1].finish_reason
        else:
            message = answer.choices[0].message
            content = message.content or ""
            calls: list[Any] = message.tool_calls or []
            identifiers = [call.id for call in calls]
            names = [call.function.name for call in calls]
            arguments = "".join(call.function.arguments for call in calls)
            reason = answer.choices[0].finish_reason

    assert content.strip() == "I look."
    assert names == ["look"]
    assert len(identifiers) == 1
    assert _ID.fullmatch(str(identifiers[0]))
    assert json.loads(arguments) == {"at": "sky"}
    assert reason == "tool_calls"


async def test_without_parallel_calls_only_the_first_is_kept() -> None:
    async with running_replica(_AUTO) as replica:
        replica.llm.load(max_model_len=512)
        replica.llm.script = _CALL + _CALL
        both = await _whole(replica, tools=_TOOLS)
        first = await _whole(replica, tools=_TOOLS, parallel_tool_calls=False)

    assert len(both["choices"][0]["message"]["tool_calls"]) == 2
    assert len(first["choices"][0]["message"]["tool_calls"]) == 1
    assert first["choices"][0]["finish_reason"] == "tool_calls"


async def test_an_answer_cut_in_a_call_says_length() -> None:
    async with running_replica(_AUTO) as replica:
        replica.llm.load(max_model_len=512)
        replica.llm.script = _CALL
        answer = await _whole(replica, tools=_TOOLS, max_tokens=len(_CALL) - 20)

    assert answer["choices"][0]["finish_reason"] == "length"


async def test_tool_choice_none_leaves_text_alone() -> None:
    async with running_replica(_AUTO) as replica:
        replica.llm.load(max_model_len=512)
        replica.llm.script = _CALL
        answer = await _whole(replica, tools=_TOOLS, tool_choice="none")

    assert answer["choices"][0]["message"]["content"] == _CALL
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert "tool_calls" not in answer["choices"][0]["message"]


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ("required", "tool_calls"),
        ({"type": "function", "function": {"name": "look"}}, "stop"),
    ],
)
async def test_a_forced_call_needs_no_parser_and_constrains_the_output(
    replica: Replica, choice: Any, reason: str
) -> None:
    replica.llm.load(max_model_len=512)
    replica.llm.script = '[{"name": "look", "parameters": {"at": "sky"}}]'
    answer = await _whole(replica, tools=_TOOLS, tool_choice=choice)

    message = answer["choices"][0]["message"]
    assert message["content"] is None
    [call] = message["tool_calls"]
    assert call["type"] == "function"
    assert call["function"]["name"] == "look"
    assert json.loads(call["function"]["arguments"]) == {"at": "sky"}
    assert answer["choices"][0]["finish_reason"] == reason
    constraint = replica.llm.requests[-1].sampling.structured_outputs
    assert constraint is not None
    assert json.loads(constraint.structural_tag or "")["type"] == "structural_tag"


async def test_reasoning_is_split_counted_and_repeated_under_its_old_name() -> None:
    async with running_replica(_THINKING) as replica:
        replica.llm.script = "<think>hmm</think>yes"
        whole = await _whole(replica)
        events = await _events(replica, stream_options={"include_usage": True})

    message = whole["choices"][0]["message"]
    assert (message["reasoning"], message["reasoning_content"]) == ("hmm", "hmm")
    assert message["content"] == "yes"
    counted = whole["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert len("<think>hmm") <= counted <= len("<think>hmm</think>")
    deltas = [event["choices"][0]["delta"] for event in events[:-2]]
    for name in ("reasoning", "reasoning_content"):
        assert "".join(delta.get(name) or "" for delta in deltas) == "hmm"
    assert "".join(delta.get("content") or "" for delta in deltas) == "yes"
    assert events[-2]["usage"] == whole["usage"]


async def test_hidden_reasoning_hides_its_tokens_too_but_they_are_counted() -> None:
    async with running_replica(_THINKING) as replica:
        replica.llm.script = "<think>hmm</think>yes"
        answer = await _whole(
            replica, include_reasoning=False, return_token_ids=True, logprobs=True
        )
        said = replica.llm.tokenizer.decode(answer["choices"][0]["token_ids"])

    message = answer["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == (None, "yes")
    assert "hmm" not in said
    assert said.endswith("yes")
    shown = [entry["token"] for entry in answer["choices"][0]["logprobs"]["content"]]
    assert "".join(shown) == said + "<eos>"
    assert answer["usage"]["completion_tokens"] == len("<think>hmm</think>yes") + 1


async def test_echo_begins_with_the_last_message_of_the_same_role(replica: Replica) -> None:
    replica.llm.script = "cd"
    messages = [*_HI, {"role": "assistant", "content": "ab"}]
    body = {"messages": messages, "echo": True, "max_tokens": 2}
    whole = await _whole(replica, **body)
    events = await _events(replica, **body)

    assert whole["choices"][0]["message"]["content"] == "abcd"
    texts = [event["choices"][0]["delta"]["content"] for event in events[:-1]]
    assert texts == ["", "ab", "c", "d"]
    assert (await _whole(replica, echo=True, max_tokens=2))["choices"][0]["message"][
        "content"
    ] == "cd"


async def test_tokens_can_be_written_as_ids_by_request_and_by_option(replica: Replica) -> None:
    a = replica.llm.tokenizer.encode("a")[0]
    replica.llm.script = "a"
    body: dict[str, Any] = {"logprobs": True, "top_logprobs": 1, "max_tokens": 1}
    asked = await _whole(replica, **body, return_tokens_as_token_ids=True)
    async with running_replica(ApiOptions(return_tokens_as_token_ids=True)) as other:
        other.llm.script = "a"
        always = await _whole(other, **body)

    for answer in (asked, always):
        [entry] = answer["choices"][0]["logprobs"]["content"]
        assert entry["token"] == f"token_id:{a}"
        assert entry["top_logprobs"][0]["token"] == f"token_id:{a}"


async def test_prompt_logprobs_come_by_token_id_and_the_first_is_null(replica: Replica) -> None:
    answer = await _whole(replica, prompt_logprobs=1, max_tokens=1)

    ids = replica.llm.tokenizer.encode("user: Hi\nassistant:")
    first, *rest = answer["prompt_logprobs"]
    assert first is None
    assert len(rest) == len(ids) - 1
    for token_id, entry in zip(ids[1:], rest, strict=True):
        assert entry[str(token_id)]["logprob"] == -0.5
        assert entry[str(token_id)]["rank"] == 1


async def test_the_servers_role_usage_and_fingerprint_options_are_kept() -> None:
    options = ApiOptions(
        response_role="narrator",
        enable_force_include_usage=True,
        fingerprint_mode="custom",
        fingerprint_value="blue",
    )
    async with running_replica(options) as replica:
        replica.llm.script = "a"
        whole = await _whole(replica)
        events = await _events(replica)

    assert whole["choices"][0]["message"]["role"] == "narrator"
    assert whole["system_fingerprint"] == "blue"
    assert events[0]["choices"][0]["delta"]["role"] == "narrator"
    assert all(event["usage"]["prompt_tokens"] > 0 for event in events[:-1])


async def test_the_servers_cap_and_the_models_default_limit_answers() -> None:
    async with running_replica(ApiOptions(override_max_tokens=4)) as replica:
        replica.state.default_max_tokens = 3
        default = await _whole(replica)
        capped = await _whole(replica, max_tokens=9, min_tokens=7)

    assert default["usage"]["completion_tokens"] == 3
    assert capped["usage"]["completion_tokens"] == 4


async def test_the_servers_settings_of_constraints_hold_for_every_request() -> None:
    config = {"disable_any_whitespace": True, "disable_additional_properties": False}
    async with running_replica(ApiOptions(structured_outputs_config=config)) as replica:
        await _whole(replica, max_tokens=4, response_format={"type": "json_object"})
        await _whole(
            replica, max_tokens=4, tools=_TOOLS, tool_choice="required", parallel_tool_calls=False
        )
        await _whole(replica, max_tokens=4)

    by_format, by_tool, free = (each.sampling.structured_outputs for each in replica.llm.requests)
    assert by_format is not None
    assert by_tool is not None
    assert free is None
    assert by_format.disable_any_whitespace
    assert by_tool.disable_any_whitespace
    assert not by_format.disable_additional_properties


async def test_a_trusted_template_is_used_and_a_prompt_can_be_truncated() -> None:
    async with running_replica(ApiOptions(trust_request_chat_template=True)) as replica:
        answer = await _whole(
            replica,
            chat_template="abcdef",
            truncate_prompt_tokens=2,
            max_tokens=1,
            return_token_ids=True,
        )
        other = await _whole(
            replica,
            chat_template="abcdef",
            truncate_prompt_tokens=2,
            truncation_side="right",
            max_tokens=1,
            return_token_ids=True,
        )
        decode = replica.llm.tokenizer.decode

    assert decode(answer["prompt_token_ids"]) == "ef"
    assert decode(other["prompt_token_ids"]) == "ab"


async def test_the_priority_header_wins_over_the_bodys(replica: Replica) -> None:
    good = await replica.http.post(
        "/v1/chat/completions",
        json={"messages": _HI, "priority": 3, "max_tokens": 1},
        headers={"x-vllm-priority": "-2"},
    )
    bad = await replica.http.post(
        "/v1/chat/completions", json={"messages": _HI}, headers={"x-vllm-priority": "high"}
    )

    assert good.status_code == 200
    assert replica.llm.requests[0].priority == -2
    assert bad.status_code == 400
