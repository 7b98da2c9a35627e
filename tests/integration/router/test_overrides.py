"""The router's changes reach replicas; what only a router may say does not pass from clients."""

from typing import Any

import pytest
from tests.fakes.fake_replica import FakeReplica, Received
from tests.fakes.router_cluster import RouterCluster
from tests.fakes.tiny_model import tiny_tokenizer

from octavo_protocol.continuation import CONTINUE
from octavo_protocol.openai import ChatCompletionRequest
from octavo_protocol.overrides import PromptTokens, RequestOverrides, split_overrides

pytestmark = pytest.mark.integration

HI = [{"role": "user", "content": "hello"}]


def overrides_of(received: Received) -> RequestOverrides:
    return split_overrides(received.headers, received.body)[1]


def tokens_of(received: Received) -> list[list[int]] | None:
    tokens = overrides_of(received).prompt_tokens
    return None if tokens is None else tokens.prompts(1)


async def newer_replica(cluster: RouterCluster, name: str = "a") -> FakeReplica:
    return await cluster.replica(name, takes_prompt_tokens=True)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_replicas_get_the_tokens_with_the_unchanged_body(
    cluster: RouterCluster, path: str
) -> None:
    replica = await newer_replica(cluster)
    router = await cluster.router(1)
    prompt: dict[str, Any] = {"prompt": "hello"} if "chat" not in path else {"messages": HI}
    raw = b'{"model":  "fake",' + str(prompt).replace("'", '"').encode()[1:]
    async with router.client.post(path, data=raw) as response:
        assert response.status == 200
    text = "hello" if "chat" not in path else "<|start|>user\nhello<|end|>\n<|start|>assistant\n"
    [received] = replica.seen.requests
    expected = PromptTokens.of(tiny_tokenizer().id, [tiny_tokenizer().encode(text)])
    assert split_overrides(received.headers, received.body) == (
        raw,
        RequestOverrides(prompt_tokens=expected),
    )


@pytest.mark.parametrize(
    ("record", "prompt"),
    [
        ({}, "hello"),
        ({"takes_prompt_tokens": True}, [1, 2, 3]),
        ({"takes_prompt_tokens": True, "tokenizer_id": ""}, "hello"),
    ],
)
async def test_tokens_are_left_out_where_they_are_of_no_use(
    cluster: RouterCluster, record: dict[str, Any], prompt: Any
) -> None:
    replica = await cluster.replica("a", **record)
    router = await cluster.router(1)
    status, _, _ = await router.completion(prompt)
    assert status == 200
    assert overrides_of(replica.seen.requests[0]) == RequestOverrides()


async def test_tokens_go_with_the_request_to_the_next_replica(cluster: RouterCluster) -> None:
    bad, good = await newer_replica(cluster, "bad"), await newer_replica(cluster, "good")
    bad.behaviour.drop_after_chunks = 0
    router = await cluster.router(2, policy="round-robin")
    status, _, _ = await router.completion("hello")
    assert status == 200
    expected = [tiny_tokenizer().encode("hello")]
    assert [tokens_of(each.seen.requests[0]) for each in (bad, good)] == [expected, expected]


async def test_tokens_go_with_a_stream_that_goes_on(cluster: RouterCluster) -> None:
    bad, good = await newer_replica(cluster, "bad"), await newer_replica(cluster, "good")
    bad.behaviour.drop_after_chunks = 2
    router = await cluster.router(2, policy="round-robin")
    body = {"model": "fake", "prompt": "hello", "stream": True}
    async with router.client.post("/v1/completions", json=body) as response:
        assert response.status == 200
        assert (await response.read()).endswith(b"data: [DONE]\n\n")
    [received] = good.seen.requests
    assert received.path == CONTINUE + "/v1/completions"
    assert tokens_of(received) == [tiny_tokenizer().encode("hello")]


async def test_a_conversation_that_grows_is_tokenized_once(cluster: RouterCluster) -> None:
    replica = await newer_replica(cluster)
    router = await cluster.router(1)
    turns = [{"role": "user", "content": f"question {number} " * 40} for number in range(6)]
    counts = []
    for number in (5, 6):
        body = {"model": "fake", "messages": turns[:number]}
        async with router.client.post("/v1/chat/completions", json=body) as response:
            assert response.status == 200
        name = 'octavo_router_prompt_characters_total{how="new"}'
        counts.append(await router.metric(name))
    assert counts[1] - counts[0] < counts[0] / 4
    text = tiny_tokenizer().chat_prompt(ChatCompletionRequest.model_validate({"messages": turns}))
    assert tokens_of(replica.seen.requests[1]) == [tiny_tokenizer().encode(text)]


async def test_a_response_that_continues_another_is_tokenized_by_its_replica(
    cluster: RouterCluster,
) -> None:
    replica = await newer_replica(cluster)
    replica.behaviour.is_instant = True
    router = await cluster.router(1)
    for more in ({}, {"previous_response_id": "resp_1"}):
        body = {"model": "fake", "input": "hello", **more}
        async with router.client.post("/v1/responses", json=body) as response:
            assert response.status == 200
    fresh, continued = replica.seen.requests
    assert tokens_of(fresh) is not None
    assert tokens_of(continued) is None


async def test_a_clients_own_such_headers_do_not_pass(cluster: RouterCluster) -> None:
    replica = await newer_replica(cluster)
    router = await cluster.router(1)
    own = RequestOverrides("other", "salt", 3, PromptTokens.of("ab", [[1]])).headers
    headers = {**own, "content-type": "application/json"}
    body = {"model": "fake", "prompt": [1, 2, 3]}
    async with router.client.post("/v1/completions", json=body, headers=headers) as response:
        assert response.status == 200
    assert not [name for name in replica.seen.requests[0].headers if name.startswith("x-octavo-s")]
    assert overrides_of(replica.seen.requests[0]) == RequestOverrides()
