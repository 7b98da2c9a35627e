"""The encoders of /v1/responses and /v1/messages: whatever is said, in whatever pieces, their
streams are well-formed and add up to what was said.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_protocol.openai.answers import TokenLogprob
from octavo_protocol.openai.response_answers import Response
from octavo_runtime.server.chat_delta import ChatDelta, ToolCallDelta
from octavo_runtime.server.message_encoder import MessageEncoder
from octavo_runtime.server.response_encoder import ResponseEncoder

NUM_INPUT = 11
ENDS = [
    ("stop", None),
    ("stop", "END"),
    ("stop", 7),
    ("length", None),
    ("tool_calls", None),
    ("repetition", None),
]


@dataclass
class Said:
    """One stretch of one kind. text: of reasoning, message or a call's arguments."""

    kind: str
    text: str


@dataclass
class Script:
    """deltas, and the stretches that they are pieces of."""

    said: list[Said] = field(default_factory=list)
    deltas: list[ChatDelta] = field(default_factory=list)


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    script = Script()
    num_calls = num_tokens = num_reasoning = 0
    for kind in draw(st.lists(st.sampled_from(["reasoning", "message", "call"]), max_size=5)):
        pieces = draw(st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=3))
        if kind == "call":
            pieces = ['{"a": ', str(draw(st.integers(0, 99))), "}"]
        if kind == "call" or not script.said or script.said[-1].kind != kind:
            script.said.append(Said(kind, ""))
        script.said[-1].text += "".join(pieces)
        for position, piece in enumerate(pieces):
            num_tokens += 1
            delta = ChatDelta(0, num_tokens=num_tokens, num_cached_tokens=4)
            if kind == "reasoning":
                num_reasoning += 1
                delta.reasoning = piece
            elif kind == "message":
                delta.content = piece
            else:
                call = ToolCallDelta(num_calls, arguments=piece)
                if position == 0:
                    call.id, call.name = f"call-{num_calls}", f"f{num_calls}"
                delta.tool_calls = [call]
            delta.num_reasoning_tokens = num_reasoning
            script.deltas.append(delta)
            if draw(st.booleans()):  # a token whose text is held back
                script.deltas.append(held_back(delta))
        num_calls += kind == "call"
    reason, stop_reason = draw(st.sampled_from(ENDS))
    script.deltas.append(
        ChatDelta(
            0,
            finish_reason=reason,
            stop_reason=stop_reason,
            num_tokens=num_tokens,
            num_reasoning_tokens=num_reasoning,
            num_cached_tokens=4,
        )
    )
    return script


def held_back(delta: ChatDelta) -> ChatDelta:
    """`delta` without anything said."""
    return ChatDelta(
        0,
        num_tokens=delta.num_tokens,
        num_reasoning_tokens=delta.num_reasoning_tokens,
        num_cached_tokens=delta.num_cached_tokens,
    )


def response_encoder(**options: Any) -> ResponseEncoder:
    counter = itertools.count()
    response = Response(id="resp_1", model="m", created_at=1, output=[])
    return ResponseEncoder(
        response,
        num_input_tokens=NUM_INPUT,
        new_id=lambda prefix: f"{prefix}{next(counter)}",
        **options,
    )


def as_json(events: Any) -> Any:
    return msgspec.to_builtins(events)


# -- responses -------------------------------------------------------------------------------------


def rebuilt(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The output that a client adds up from the events of a stream, which it checks on the way."""
    output: list[dict[str, Any]] = []
    is_open = False
    for event in events:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert not is_open
            assert event["output_index"] == len(output)
            assert event["item"]["status"] == "in_progress"
            assert event["item"].get("content", []) == []
            is_open = True
            output.append(event["item"])
        elif "item_id" in event:
            assert is_open
            assert event["output_index"] == len(output) - 1
            item = output[-1]
            assert event["item_id"] == item["id"]
            add(item, kind, event)
        elif kind == "output_item.done":
            assert event["item"]["status"] in ("completed", "incomplete")
            assert event["item"] == output[-1] | {"status": event["item"]["status"]}
            output[-1] = event["item"]
            is_open = False
    assert not is_open
    return output


def add(item: dict[str, Any], kind: str, event: dict[str, Any]) -> None:
    match kind:
        case "content_part.added":
            assert event["part"]["text"] == ""
            item["content"] = [event["part"]]
        case "output_text.delta" | "reasoning_text.delta":
            item["content"][0]["text"] += event["delta"]
            if "logprobs" in event:
                item["content"][0]["logprobs"] += event["logprobs"]
        case "output_text.done" | "reasoning_text.done":
            assert event["text"] == item["content"][0]["text"]
            if "logprobs" in event:
                item["content"][0]["logprobs"] = event["logprobs"]
        case "content_part.done":
            assert event["part"] == item["content"][0]
        case "function_call_arguments.delta":
            item["arguments"] += event["delta"]
        case _:
            assert kind == "function_call_arguments.done"
            assert event["arguments"] == item["arguments"]


@given(scripts())
def test_response_stream_adds_up_to_the_response(script: Script) -> None:
    encoder = response_encoder()
    events = as_json([event for delta in script.deltas for event in encoder.feed(delta)])
    events += as_json(encoder.finish(completed_at=9))
    whole = as_json(encoder.response)

    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[0]["response"]["output"] == []
    assert events[-1]["type"] == f"response.{whole['status']}"
    assert events[-1]["response"] == whole
    assert rebuilt(events) == whole["output"]
    assert [said_by(item) for item in whole["output"]] == [(s.kind, s.text) for s in script.said]
    is_cut = script.deltas[-1].finish_reason == "length"
    assert whole["status"] == ("incomplete" if is_cut else "completed")
    assert whole["incomplete_details"] == ({"reason": "max_output_tokens"} if is_cut else None)
    statuses = ["completed"] * len(script.said)
    if is_cut and statuses:
        statuses[-1] = "incomplete"
    assert [item["status"] for item in whole["output"]] == statuses
    last = script.deltas[-1]
    assert whole["usage"] == {
        "input_tokens": NUM_INPUT,
        "output_tokens": last.num_tokens,
        "total_tokens": NUM_INPUT + last.num_tokens,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": last.num_reasoning_tokens},
    }


def said_by(item: dict[str, Any]) -> tuple[str, str]:
    kind = {"function_call": "call"}.get(item["type"], item["type"])
    return kind, item["arguments"] if kind == "call" else item["content"][0]["text"]


@given(scripts(), st.integers(0, 20))
def test_response_that_fails_anywhere_is_closed_properly(script: Script, position: int) -> None:
    encoder = response_encoder()
    events = [event for delta in script.deltas[:position] for event in encoder.feed(delta)]
    shown = as_json(events + encoder.fail("engine gone"))

    rebuilt(shown)
    assert [event["sequence_number"] for event in shown] == list(range(len(shown)))
    assert shown[0]["type"] == "response.created"
    assert shown[-1]["type"] == "response.failed"
    assert shown[-1]["response"]["error"] == {"code": "server_error", "message": "engine gone"}
    assert shown[-1]["response"]["status"] == "failed"


def test_aborted_response_has_failed() -> None:
    encoder = response_encoder()
    encoder.feed(ChatDelta(0, content="a", finish_reason="abort"))

    assert as_json(encoder.finish(1))[-1]["type"] == "response.failed"


def test_earlier_events_do_not_change_with_later_deltas() -> None:
    encoder = response_encoder()
    first = encoder.feed(ChatDelta(0, content="a"))
    before = msgspec.json.encode(first)

    encoder.feed(ChatDelta(0, content="b", finish_reason="stop"))
    encoder.finish(1)

    assert msgspec.json.encode(first) == before


def test_logprobs_go_with_the_text_of_the_message_only() -> None:
    """Held-back tokens wait for their text; those of reasoning and calls are left out."""

    def entry(token: str) -> TokenLogprob:
        return TokenLogprob(token, -1.0, [], [])

    tokens = {1: "r", 2: "h", 3: "e", 4: "y", 5: "c"}
    encoder = response_encoder(logprobs_of=lambda d: [entry(tokens[t]) for t in d.token_ids])
    deltas = [
        ChatDelta(0, reasoning="r", token_ids=[1], num_reasoning_tokens=1),
        ChatDelta(0, token_ids=[2], num_reasoning_tokens=1),
        ChatDelta(0, content="he", token_ids=[3], num_reasoning_tokens=1),
        ChatDelta(0, token_ids=[4], num_reasoning_tokens=1),
        ChatDelta(
            0,
            token_ids=[5],
            num_reasoning_tokens=1,
            tool_calls=[ToolCallDelta(0, "i", "f", "{}")],
            finish_reason="tool_calls",
        ),
    ]
    events = as_json([event for delta in deltas for event in encoder.feed(delta)])
    encoder.finish(1)

    message = as_json(encoder.response)["output"][1]
    assert [each["token"] for each in message["content"][0]["logprobs"]] == ["h", "e", "y"]
    (delta,) = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [each["token"] for each in delta["logprobs"]] == ["h", "e"]


# -- messages --------------------------------------------------------------------------------------


def blocks_of(events: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The content that a client adds up from the events of a stream, which it checks on the way."""
    block: dict[str, Any] | None = None
    pieces = ""
    index = -1
    for event in events:
        match event["type"]:
            case "content_block_start":
                assert block is None
                index += 1
                block, pieces = event["content_block"], ""
            case "content_block_delta":
                assert block is not None
                key = {"text": "text", "thinking": "thinking", "tool_use": "partial_json"}
                pieces += event["delta"][key[block["type"]]]
            case "content_block_stop":
                assert block is not None
                if block["type"] == "tool_use":
                    block["input"] = json.loads(pieces)
                else:
                    block[block["type"]] = pieces
                yield block
                block = None
            case _:
                continue
        assert event["index"] == index
    assert block is None


@given(scripts())
def test_message_stream_adds_up_to_the_message(script: Script) -> None:
    encoder = MessageEncoder("msg_1", "m", NUM_INPUT)
    events = as_json([event for delta in script.deltas for event in encoder.feed(delta)])
    events += as_json(encoder.finish())
    whole = as_json(encoder.message)

    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["message_start", "ping"]
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert events[0]["message"]["content"] == []
    assert events[0]["message"]["stop_reason"] is None
    assert list(blocks_of(events)) == whole["content"]
    said = [(each.kind, each.text) for each in script.said]
    assert [said_in(block) for block in whole["content"]] == [
        (kind, json.loads(text) if kind == "call" else text) for kind, text in said
    ]
    stop = {"stop_reason": whole["stop_reason"], "stop_sequence": whole["stop_sequence"]}
    assert events[-2]["delta"] == stop
    assert events[-2]["usage"] == whole["usage"]
    assert whole["usage"] == {
        "input_tokens": NUM_INPUT - 4,
        "output_tokens": script.deltas[-1].num_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 4,
    }
    assert stop == expected_stop(script)


def said_in(block: dict[str, Any]) -> tuple[str, Any]:
    match block["type"]:
        case "thinking":
            return "reasoning", block["thinking"]
        case "text":
            return "message", block["text"]
    return "call", block["input"]


def expected_stop(script: Script) -> dict[str, Any]:
    last = script.deltas[-1]
    if last.finish_reason == "length":
        return {"stop_reason": "max_tokens", "stop_sequence": None}
    if any(said.kind == "call" for said in script.said):
        return {"stop_reason": "tool_use", "stop_sequence": None}
    if last.stop_reason == "END":
        return {"stop_reason": "stop_sequence", "stop_sequence": "END"}
    return {"stop_reason": "end_turn", "stop_sequence": None}


@pytest.mark.parametrize("arguments", ['{"a": ', "[1]", "", "[" * 10**5])
def test_arguments_that_are_no_object_are_none(arguments: str) -> None:
    """An answer may be cut in the middle of a call."""
    encoder = MessageEncoder("msg_1", "m", NUM_INPUT)
    call = ToolCallDelta(0, "i", "f", arguments)
    encoder.feed(ChatDelta(0, tool_calls=[call], finish_reason="length"))
    encoder.finish()

    assert as_json(encoder.message)["content"] == [
        {"type": "tool_use", "id": "i", "name": "f", "input": {}}
    ]
