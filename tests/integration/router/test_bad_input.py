"""What clients get wrong: the right status, OpenAI's envelope, and a router that goes on."""

import io
from collections.abc import AsyncIterator

import pytest
from tests.fakes.router_cluster import RouterCluster, running_router, until

pytestmark = pytest.mark.integration

_CHAT = b'{"model": "fake", "messages": [{"role": "user", "content": "hi"}]'


async def test_each_bad_request_gets_its_status_and_none_reaches_a_replica(
    cluster: RouterCluster,
) -> None:
    replica = await cluster.replica("a")
    router = await cluster.router(1)
    completions, chat = "/v1/completions", "/v1/chat/completions"
    cases: list[tuple[str, str, bytes, int, str]] = [
        ("POST", completions, b'{"model": "nope", "prompt": "x"}', 404, "'fake'"),
        ("POST", completions, b'{"prompt": ""}', 400, "prompt"),
        ("POST", completions, b'{"prompt": []}', 400, "prompt"),
        ("POST", completions, b"{broken", 400, "JSON"),
        ("POST", completions, b'{"prompt": "\xff\xfe"}', 400, ""),
        ("POST", completions, b'{"prompt": "\\ud800"}', 400, ""),
        ("POST", completions, b"[1, 2]", 400, "object"),
        ("POST", completions, b"", 400, "JSON"),
        ("POST", completions, b"[" * 100_000, 400, ""),
        ("POST", completions, b'{"prompt": "x", "temprature": 1}', 400, "temperature"),
        ("POST", completions, b'{"prompt": "x", "max_tokens": -1}', 400, "max_tokens"),
        ("POST", chat, _CHAT + b', "temperature": -1}', 400, "temperature"),
        ("POST", chat, _CHAT + b', "top_p": 2}', 400, "top_p"),
        ("POST", chat, _CHAT + b', "n": -3}', 400, "n"),
        ("POST", chat, b'{"messages": []}', 400, "messages"),
        ("POST", chat, b'{"messages": [{"role": 7, "content": "x"}]}', 400, "role"),
        ("POST", chat, _CHAT + b', "tools": []}', 400, "tools"),
        ("POST", "/tokenize", b"{}", 400, "prompt"),
        ("POST", "/v1/nothing", b"{}", 404, "/v1/nothing"),
        ("GET", completions, b"", 405, "GET"),
        ("POST", "/debug/route", b"{}", 400, "prompt"),
        ("POST", "/debug/route", b"{broken", 400, "JSON"),
    ]
    for method, path, body, status, part in cases:
        async with router.client.request(method, path, data=body) as response:
            answer = await response.json()
        assert (response.status, body[:60]) == (status, body[:60])
        assert set(answer) == {"error"}
        assert set(answer["error"]) == {"message", "type", "param", "code"}
        assert part in answer["error"]["message"]
        assert response.headers["x-request-id"]
        assert response.headers["x-octavo-route"]
    assert replica.seen.requests == []
    assert (await router.completion("hello"))[0] == 200


@pytest.mark.parametrize("is_chunked", [True, False])
async def test_a_50_mb_body_is_refused_while_it_is_read(
    cluster: RouterCluster, is_chunked: bool
) -> None:
    replica = await cluster.replica("a")
    router = await cluster.router(1)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b"x" * 2**20

    body = chunks() if is_chunked else io.BytesIO(b"x" * (50 * 2**20))
    try:
        async with router.client.post("/v1/completions", data=body) as response:
            assert response.status == 413
            assert "16777216 bytes" in (await response.json())["error"]["message"]
    except (ConnectionError, OSError):
        pass  # the router closed while the client was still writing
    assert replica.seen.requests == []
    assert (await router.completion("hello"))[0] == 200


async def test_without_replicas_the_router_says_so_and_lives(cluster: RouterCluster) -> None:
    router = await cluster.router(0)
    status, body, _ = await router.completion("hello")
    assert (status, body["error"]["type"]) == (503, "service_unavailable")
    async with router.client.get("/ready") as response:
        assert response.status == 503
    async with router.client.get("/health") as response:
        assert response.status == 200


async def test_redis_that_never_answers_leaves_the_router_alive() -> None:
    async with running_router(redis_url="unix:///nowhere/redis.sock") as router:
        status, _, _ = await router.completion("hello")
        assert status == 503
        assert await router.metric("octavo_router_degraded") == 1


async def test_a_defect_in_a_background_task_shows_in_health(
    cluster: RouterCluster, caplog: pytest.LogCaptureFixture
) -> None:
    router = await cluster.router(0)

    def broken(raw: dict[str, bytes]) -> None:
        raise RuntimeError("a defect")

    router.deployment.take = broken  # type: ignore[method-assign]
    await until(lambda: not router.state.is_healthy)
    async with router.client.get("/health") as response:
        assert response.status == 503
    assert "a background task ended" in caplog.text
