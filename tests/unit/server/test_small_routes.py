"""Tokenizing, metrics, version, the tokenizer for routers, request ids."""

import asyncio
import logging
from importlib import metadata

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.unit.server.conftest import Replica

from octavo_protocol.tokenizer import TokenizerBundle

_TEXT = {"prompt": "ab", "max_tokens": 4}


async def test_tokenize_and_detokenize_are_inverse(replica: Replica) -> None:
    tokenized = await replica.http.post(
        "/tokenize", json={"model": "first", "prompt": "aü", "return_token_strs": True}
    )
    body = tokenized.json()
    back = await replica.http.post("/detokenize", json={"tokens": body["tokens"]})

    assert body["count"] == len(body["tokens"]) == 3
    assert body["max_model_len"] == 64
    assert body["token_strs"] == ["a", "�", "�"]
    assert back.json() == {"prompt": "aü"}


async def test_tokenize_applies_the_chat_template(replica: Replica) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    body = (await replica.http.post("/tokenize", json={"messages": messages})).json()

    assert replica.llm.tokenizer.decode(body["tokens"]) == "user: Hi\nassistant:"
    assert body["token_strs"] is None


async def test_a_long_text_is_tokenized_like_a_short_one(replica: Replica) -> None:
    body = (await replica.http.post("/tokenize", json={"prompt": "ab" * 20_000})).json()

    assert body["count"] == 40_000


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/tokenize", {"prompt": "a", "model": "third"}, 404),
        ("/tokenize", {"prompt": "a", "messages": []}, 400),
        ("/tokenize", {}, 400),
        ("/detokenize", {"tokens": [-1]}, 400),
        ("/detokenize", {"tokens": [257]}, 400),
        ("/detokenize", {"tokens": "a"}, 400),
        ("/detokenize", {"tokens": [2**70]}, 400),
    ],
)
async def test_bad_tokenize_requests(
    replica: Replica, path: str, body: dict[str, object], status: int
) -> None:
    answer = await replica.http.post(path, json=body)

    assert answer.status_code == status
    assert answer.json()["error"]["code"] in (status, "model_not_found")


async def test_routers_get_the_tokenizer_whose_id_is_in_the_record(replica: Replica) -> None:
    answer = await replica.http.get("/octavo/tokenizer")

    bundle = msgspec.json.decode(answer.content, type=TokenizerBundle)
    assert bundle == replica.llm.tokenizer.bundle
    assert bundle.id == replica.llm.tokenizer.bundle.id


async def test_version_is_the_packages(replica: Replica) -> None:
    assert (await replica.http.get("/version")).json() == {"version": metadata.version("octavo")}


async def test_metrics_count_requests_tokens_and_times(replica: Replica) -> None:
    await replica.http.post("/v1/completions", json=_TEXT | {"n": 2})
    await replica.http.post("/v1/completions", json=_TEXT | {"temperature": -1})
    answer = await replica.http.get("/metrics")

    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert samples["octavo_runtime_requests_total", "length"] == 2
    assert samples["octavo_runtime_prompt_tokens_total",] == 2
    assert samples["octavo_runtime_generation_tokens_total",] == 8
    assert samples["octavo_runtime_time_to_first_token_seconds_count",] == 2  # of two samples
    assert samples["octavo_runtime_inter_token_latency_seconds_count",] == 2 * 3
    assert samples["octavo_runtime_request_seconds_count",] == 1
    assert samples["octavo_runtime_http_responses_total", "200"] == 1
    assert samples["octavo_runtime_http_responses_total", "400"] == 1
    for gauge in ("requests_running", "requests_waiting", "kv_cache_usage_ratio"):
        assert samples[f"octavo_runtime_{gauge}",] == 0
    for counter in ("preemptions", "prefix_cache_queried_tokens", "prefix_cache_hit_tokens"):
        assert samples[f"octavo_runtime_{counter}_total",] == 0


async def test_two_servers_in_one_process_count_apart(replica: Replica) -> None:
    from octavo_runtime.server.metrics import ServerMetrics

    other = ServerMetrics(replica.llm.as_async_llm())
    other.responded(418)

    assert b'"418"' in other.render()
    assert b'"418"' not in replica.state.metrics.render()


async def test_a_safe_request_id_comes_back_and_is_part_of_the_answers_id(
    replica: Replica,
) -> None:
    answer = await replica.http.post(
        "/v1/completions", json=_TEXT, headers={"x-request-id": "job-7:a"}
    )

    assert answer.headers["x-request-id"] == "job-7:a"
    assert answer.json()["id"] == "cmpl-job-7:a"


@pytest.mark.parametrize("given", ["a b", "a" * 129, "<script>", "ü".encode(), ""])
async def test_an_unsafe_request_id_is_replaced(replica: Replica, given: str | bytes) -> None:
    raw = given if isinstance(given, bytes) else given.encode()
    answer = await replica.http.get("/health", headers={b"x-request-id": raw})

    assert len(answer.headers["x-request-id"]) == 32


async def test_every_answer_has_a_request_id_errors_too(replica: Replica) -> None:
    answers = [
        await replica.http.get("/nothing"),
        await replica.http.post("/v1/completions", content=b"{"),
        await replica.http.post("/v1/completions", json=_TEXT | {"stream": True}),
    ]

    assert all(len(answer.headers["x-request-id"]) == 32 for answer in answers)


async def test_requests_that_share_an_id_are_both_served(replica: Replica) -> None:
    """A router's retry may arrive while the first attempt is still being aborted."""
    replica.llm.gate.clear()
    both = [
        asyncio.create_task(
            replica.http.post("/v1/completions", json=_TEXT, headers={"x-request-id": "same"})
        )
        for _ in range(2)
    ]
    await replica.until(lambda: replica.llm.num_unfinished == 2)
    replica.llm.gate.set()

    assert [(await each).status_code for each in both] == [200, 200]


async def test_no_log_line_repeats_the_prompt(
    replica: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="octavo_runtime")
    await replica.http.post("/v1/completions", json={"prompt": "my secret", "max_tokens": 2})
    await replica.http.post("/v1/completions", json={"prompt": "my secret", "n": -1})
    replica.llm.die()
    await replica.http.post("/v1/completions", json={"prompt": "my secret"})

    assert "secret" not in caplog.text
