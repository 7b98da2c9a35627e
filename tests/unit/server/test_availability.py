"""Loading, draining, a dead engine, clients that leave."""

import asyncio
import json

import httpx
import openai
import pytest
from tests.unit.server.conftest import Replica

_TEXT = {"prompt": "ab", "max_tokens": 20}
_CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 20}
_REQUESTS = [("/v1/completions", _TEXT), ("/v1/chat/completions", _CHAT)]


async def test_ready_says_the_stage_until_it_is_ready(replica: Replica) -> None:
    info = replica.llm.info
    replica.llm.info, replica.state.is_registered = None, False
    seen = [await replica.http.get("/ready")]
    replica.llm.info = info
    seen.append(await replica.http.get("/ready"))
    replica.state.set_registered()
    seen.append(await replica.http.get("/ready"))
    replica.state.is_draining = True
    seen.append(await replica.http.get("/ready"))
    replica.llm.is_healthy = False
    seen.append(await replica.http.get("/ready"))

    assert [(answer.status_code, answer.json()["stage"]) for answer in seen] == [
        (503, "loading"),
        (503, "registering"),
        (200, "ready"),
        (503, "draining"),
        (503, "engine stopped"),
    ]


@pytest.mark.parametrize(("path", "body"), [*_REQUESTS, ("/tokenize", {"prompt": "a"})])
async def test_while_the_model_loads_requests_are_told_to_come_back(
    replica: Replica, path: str, body: dict[str, object]
) -> None:
    replica.llm.info = None
    answer = await replica.http.post(path, json=body)

    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["error"]["type"] == "service_unavailable"
    assert "loading" in answer.json()["error"]["message"]
    assert (await replica.http.get("/health")).status_code == 200


async def test_draining_refuses_new_requests_and_finishes_those_that_run(replica: Replica) -> None:
    replica.llm.gate.clear()
    running = asyncio.create_task(replica.http.post("/v1/completions", json=_TEXT))
    await replica.until(lambda: replica.llm.num_unfinished == 1)
    replica.state.is_draining = True

    refused = await replica.http.post("/v1/completions", json=_TEXT)
    replica.llm.gate.set()
    answer = await running

    assert refused.status_code == 503
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["text"] == "ab" * 10


@pytest.mark.parametrize(("path", "body"), _REQUESTS)
async def test_an_engine_that_dies_fails_a_whole_answer_with_an_error(
    replica: Replica, path: str, body: dict[str, object]
) -> None:
    replica.llm.gate.clear()
    running = asyncio.create_task(replica.http.post(path, json=body))
    await replica.until(lambda: replica.llm.num_unfinished == 1)
    replica.llm.die()
    answer = await running

    assert answer.status_code == 500
    assert "engine process ended" in answer.json()["error"]["message"]
    assert (await replica.http.get("/health")).status_code == 503
    assert (await replica.http.post(path, json=body)).status_code == 503


async def test_an_engine_that_dies_before_the_first_event_is_an_ordinary_error(
    replica: Replica,
) -> None:
    replica.llm.gate.clear()
    running = asyncio.create_task(
        replica.http.post("/v1/chat/completions", json=_CHAT | {"stream": True})
    )
    await replica.until(lambda: replica.llm.num_unfinished == 1)
    replica.llm.die()

    assert (await running).status_code == 500


@pytest.mark.parametrize(("path", "body"), _REQUESTS)
async def test_an_engine_that_dies_ends_a_stream_with_an_error_event(
    replica: Replica, path: str, body: dict[str, object]
) -> None:
    async with replica.http.stream("POST", path, json=body | {"stream": True}) as answer:
        lines = answer.aiter_lines()
        await anext(lines)
        replica.llm.gate.clear()
        replica.llm.die()
        rest = [line async for line in lines if line]

    assert answer.status_code == 200
    assert rest[-1] == "data: [DONE]"
    error = json.loads(rest[-2].removeprefix("data: "))["error"]
    assert error["type"] == "internal_error"
    assert "engine process ended" in error["message"]


async def test_the_official_client_raises_the_error_event(replica: Replica) -> None:
    stream = await replica.client.chat.completions.create(
        model="first", messages=[{"role": "user", "content": "Hi"}], stream=True
    )

    async def read_on() -> None:
        async for _ in stream:
            replica.llm.die()

    with pytest.raises(openai.APIError, match="engine process ended"):
        await read_on()


@pytest.mark.parametrize(("path", "body"), _REQUESTS)
@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_client_that_leaves_aborts_its_requests(
    replica: Replica, path: str, body: dict[str, object], is_stream: bool
) -> None:
    replica.llm.gate.clear()
    body = body | {"stream": is_stream}
    if path == "/v1/completions":
        body["prompt"] = ["ab", "cd"]
    num = 2 if path == "/v1/completions" else 1
    running = asyncio.create_task(replica.http.post(path, json=body))
    await replica.until(lambda: replica.llm.num_unfinished == num)
    running.cancel()

    await replica.idle()

    assert sorted(replica.llm.aborted) == sorted(replica.llm.request_ids)
    assert len(replica.llm.aborted) == num


async def test_a_client_that_leaves_in_the_middle_of_a_stream_aborts_it(replica: Replica) -> None:
    body = _CHAT | {"stream": True}
    async with replica.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        async for _ in answer.aiter_lines():
            replica.llm.gate.clear()
            break

    await replica.idle()

    assert len(replica.llm.aborted) == 1


async def test_one_bad_prompt_of_many_leaves_nothing_running(replica: Replica) -> None:
    replica.llm.gate.clear()
    too_long = "a" * 100
    answer = await replica.http.post("/v1/completions", json={"prompt": ["a", too_long, "b"]})

    assert answer.status_code == 400
    await replica.idle()


async def test_a_client_that_leaves_while_it_sends_costs_nothing(replica: Replica) -> None:
    port = httpx.URL(replica.url).port
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{")
    await writer.drain()
    await replica.until(lambda: replica.state.num_open == 1)
    writer.close()
    await writer.wait_closed()

    await replica.idle()
