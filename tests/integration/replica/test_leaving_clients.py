"""A client that leaves frees what its request held in the engine."""

import asyncio
import socket
from typing import Any

import httpx
import pytest
from tests.integration.replica.harness import Replica, eventually

pytestmark = [pytest.mark.integration]

COMPLETIONS = "/v1/completions"
LONG: dict[str, Any] = {"prompt": "the dog", "max_tokens": 200}  # ten seconds on the slow replica


def request_bytes(body: str) -> bytes:
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    return (head + body).encode()


def wait_running(replica: Replica, count: int) -> None:
    def is_so() -> bool:
        return replica.metric("requests_running") + replica.metric("requests_waiting") == count

    # Far less than a request takes that runs to its end.
    eventually(is_so, f"{count} requests run", deadline_s=5.0)


@pytest.mark.parametrize("n", [1, 3])
def test_leaving_a_stream_frees_its_request(slow_replica: Replica, n: int) -> None:
    aborted = slow_replica.metric("requests_aborted_total")
    body = LONG | {"stream": True, "n": n}
    with slow_replica.http.stream("POST", COMPLETIONS, json=body) as answer:
        lines = answer.iter_lines()  # dropping it would close the answer
        next(lines)
        wait_running(slow_replica, n)

    wait_running(slow_replica, 0)
    assert slow_replica.metric("requests_aborted_total") == aborted + 1


def test_leaving_before_the_answer_frees_its_request(slow_replica: Replica) -> None:
    with socket.create_connection(("127.0.0.1", slow_replica.port)) as client:
        client.sendall(request_bytes('{"prompt": "the dog", "max_tokens": 200}'))
        wait_running(slow_replica, 1)

    wait_running(slow_replica, 0)


def test_leaving_with_many_prompts_frees_all_of_them(slow_replica: Replica) -> None:
    for stream in ("false", "true"):
        body = f'{{"prompt": ["a", "b", "c", "d"], "max_tokens": 200, "stream": {stream}}}'
        with socket.create_connection(("127.0.0.1", slow_replica.port)) as client:
            client.sendall(request_bytes(body))
            wait_running(slow_replica, 4)

        wait_running(slow_replica, 0)


def test_leaving_in_the_middle_of_the_body_harms_nobody(slow_replica: Replica) -> None:
    with socket.create_connection(("127.0.0.1", slow_replica.port)) as client:
        client.sendall(request_bytes('{"prompt": "the dog"}')[:-5])

    assert slow_replica.http.get("/health").status_code == 200
    wait_running(slow_replica, 0)


async def test_cancelled_client_task_frees_its_request(slow_replica: Replica) -> None:
    async with httpx.AsyncClient(base_url=slow_replica.url, timeout=120) as client:
        task = asyncio.create_task(client.post(COMPLETIONS, json=LONG))
        await asyncio.to_thread(wait_running, slow_replica, 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

        await asyncio.to_thread(wait_running, slow_replica, 0)


def test_error_in_one_prompt_frees_the_others(slow_replica: Replica) -> None:
    body = LONG | {"prompt": [[70, 71], [70] * 1000, [72, 73]]}

    answer = slow_replica.http.post(COMPLETIONS, json=body)

    assert answer.json()["error"]["code"] == "context_length_exceeded"
    wait_running(slow_replica, 0)


def test_stop_string_frees_the_request_at_once(slow_replica: Replica) -> None:
    body = LONG | {"prompt": "the quick brown fox", "stop": "quick"}

    answer = slow_replica.http.post(COMPLETIONS, json=body).json()

    assert answer["choices"][0]["stop_reason"] == "quick"
    wait_running(slow_replica, 0)


def test_client_that_stays_gets_its_answer_though_others_leave(slow_replica: Replica) -> None:
    body = LONG | {"max_tokens": 20, "stream": True}
    with slow_replica.http.stream("POST", COMPLETIONS, json=body) as staying:
        with slow_replica.http.stream("POST", COMPLETIONS, json=LONG | {"stream": True}) as leaving:
            next(leaving.iter_lines())
        lines = [line for line in staying.iter_lines() if line]

    assert lines[-1] == "data: [DONE]"
    assert '"finish_reason":"length"' in lines[-2]
    wait_running(slow_replica, 0)
