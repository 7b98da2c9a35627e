"""What a text completion consists of: echo, scores of the prompt, token ids, beams."""

from typing import Any

import httpx
import pytest
from tests.unit.server.conftest import Replica


async def _whole(replica: Replica, **body: Any) -> Any:
    answer = await replica.http.post("/v1/completions", json={"prompt": "abc", **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_whole_answer_has_every_field(replica: Replica) -> None:
    replica.llm.script = "de"
    answer = await _whole(replica, max_tokens=2)

    assert answer.pop("created") > 0
    assert answer.pop("id").startswith("cmpl-")
    assert answer == {
        "model": "first",
        "object": "text_completion",
        "system_fingerprint": replica.state.fingerprint,
        "choices": [
            {
                "index": 0,
                "text": "de",
                "logprobs": None,
                "finish_reason": "length",
                "stop_reason": None,
                "token_ids": None,
                "prompt_token_ids": None,
                "prompt_logprobs": None,
            }
        ],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "total_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


async def test_output_logprobs_tell_rank_and_text_of_each_token(replica: Replica) -> None:
    replica.llm.script = "de"
    body = {"logprobs": 1, "max_tokens": 2, "return_output_logprobs": True}
    [choice] = (await _whole(replica, **body, return_prompt_text=True))["choices"]

    d, e = replica.llm.tokenizer.encode("de")
    for position, token, text in zip(choice["output_logprobs"], (d, e), "de", strict=True):
        assert position[str(token)] == {"logprob": -0.5, "rank": 1, "decoded_token": text}
    assert choice["prompt_text"] == "abc"
    answer = await replica.http.post(
        "/v1/completions", json={"prompt": "a", **body, "stream": True}
    )
    assert answer.status_code == 400
    assert "return_output_logprobs is not allowed with stream=true" in answer.text


@pytest.mark.parametrize("is_stream", [False, True])
async def test_echo_with_logprobs_scores_prompt_and_output(
    replica: Replica, is_stream: bool
) -> None:
    replica.llm.script = "de"
    arguments: dict[str, Any] = {"prompt": "abc", "echo": True, "logprobs": 1, "max_tokens": 2}
    if is_stream:
        stream = await replica.client.completions.create(model="first", stream=True, **arguments)
        choices = [chunk.choices[0] async for chunk in stream]
    else:
        whole = await replica.client.completions.create(model="first", **arguments)
        choices = list(whole.choices)

    assert "".join(choice.text for choice in choices) == "abcde"
    tokens: list[str] = []
    values: list[float | None] = []
    offsets: list[int] = []
    tops: list[Any] = []
    for choice in choices:
        assert choice.logprobs is not None
        tokens += choice.logprobs.tokens or []
        values += choice.logprobs.token_logprobs or []
        offsets += choice.logprobs.text_offset or []
        tops += choice.logprobs.top_logprobs or []
    assert tokens == list("abcde")
    assert values == [None, -0.5, -0.5, -0.5, -0.5]
    assert offsets == [0, 1, 2, 3, 4]
    assert tops[0] is None
    assert all(token in top for token, top in zip(tokens[1:], tops[1:], strict=True))


async def test_echo_without_output_only_scores_the_prompt(replica: Replica) -> None:
    answer = await _whole(replica, echo=True, max_tokens=0, logprobs=0, return_token_ids=True)

    [choice] = answer["choices"]
    assert choice["text"] == "abc"
    assert choice["token_ids"] == []
    assert choice["prompt_token_ids"] == replica.llm.tokenizer.encode("abc")
    assert choice["logprobs"]["token_logprobs"] == [None, -0.5, -0.5]
    assert choice["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 0


async def test_logprobs_give_the_sampled_token_first_and_at_most_one_more_than_asked(
    replica: Replica,
) -> None:
    replica.llm.script = "abcdef"
    answer = await _whole(replica, logprobs=3, max_tokens=6)

    logprobs = answer["choices"][0]["logprobs"]
    for token, top in zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True):
        assert next(iter(top)) == token
        assert len(top) <= 4


async def test_what_is_impossible_is_a_number_in_json(replica: Replica) -> None:
    info = replica.llm.info
    assert info is not None
    info.max_logprobs = -1
    answer = await _whole(
        replica, logprobs=-1, max_tokens=1, return_tokens_as_token_ids=True, prompt_logprobs=-1
    )

    top = answer["choices"][0]["logprobs"]["top_logprobs"][0]
    assert len(top) >= 200
    assert min(top.values()) == -9999.0
    scores = answer["choices"][0]["prompt_logprobs"][1]
    assert min(entry["logprob"] for entry in scores.values()) == -9999.0


async def test_prompt_logprobs_stand_beside_each_prompts_choices(replica: Replica) -> None:
    answer = await _whole(replica, prompt=["ab", "abc"], prompt_logprobs=0, max_tokens=1)

    scores = [choice["prompt_logprobs"] for choice in answer["choices"]]
    assert [len(each) for each in scores] == [2, 3]
    b = str(replica.llm.tokenizer.encode("b")[0])
    assert scores[0][1] == {b: {"logprob": -0.5, "rank": 1, "decoded_token": "b"}}


async def test_a_prompt_is_truncated_on_the_side_that_is_asked_for(replica: Replica) -> None:
    replica.llm.script = None
    left = await _whole(replica, truncate_prompt_tokens=2, max_tokens=2)
    right = await _whole(replica, truncate_prompt_tokens=2, truncation_side="right", max_tokens=2)
    fitted = await _whole(replica, prompt="a" * 100, truncate_prompt_tokens=-1, max_tokens=2)

    assert left["choices"][0]["text"] == "bc"
    assert right["choices"][0]["text"] == "ab"
    assert fitted["usage"]["prompt_tokens"] == 63


async def test_beam_search_gives_n_beams_best_first(replica: Replica) -> None:
    answer = await _whole(
        replica, use_beam_search=True, n=3, max_tokens=4, logprobs=1, temperature=0
    )

    choices = answer["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    sums = [sum(choice["logprobs"]["token_logprobs"]) for choice in choices]
    assert sums == sorted(sums, reverse=True)
    assert choices[0]["text"] == "aaaa"  # the fake's next token is always the prompt's first
    assert len({choice["text"] for choice in choices}) == 3
    assert {choice["finish_reason"] for choice in choices} == {"length"}
    assert answer["usage"]["completion_tokens"] == 12
    await replica.idle()


async def test_a_client_that_leaves_ends_its_beams(replica: Replica) -> None:
    replica.llm.gate.clear()
    request = replica.http.post(
        "/v1/chat/completions",
        json={
            "messages": [{"role": "user", "content": "Hi"}],
            "use_beam_search": True,
            "n": 2,
            "max_tokens": 4,
        },
        timeout=0.2,
    )
    with pytest.raises(httpx.ReadTimeout):
        await request

    await replica.idle()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"stream": True}, "not allowed with stream=true"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"prompt_logprobs": 1}, "does not score the prompt"),
        ({"n": 11, "logprobs": 1}, "at most 20"),
    ],
)
async def test_what_a_beam_search_cannot_do(
    replica: Replica, body: dict[str, Any], says: str
) -> None:
    answer = await replica.http.post(
        "/v1/completions",
        json={"prompt": "a", "use_beam_search": True, "max_tokens": 2, **body},
    )

    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]
