"""LoRA adapters over HTTP: a model name each, loaded and unloaded by routes of their own."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.unit.server.conftest import Replica, running_replica

from octavo.run_batch import answer_lines
from octavo_protocol.errors import ConfigError, UnavailableError, ValidationError
from octavo_protocol.records import AdapterError
from octavo_runtime.engine.messages import LoRAInfo, PoolingInfo
from octavo_runtime.server.app import create_app
from octavo_runtime.server.lora_modules import LoRAModule, adapters_of_record, load_modules
from octavo_runtime.server.options import ApiOptions

ROOM = LoRAInfo(max_loras=2, max_cpu_loras=2, max_lora_rank=16)
OPTIONS = ApiOptions(allow_runtime_lora_updating=True, metrics_names="both")
HELLO = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def replica() -> AsyncIterator[Replica]:
    async with running_replica(OPTIONS, lora=ROOM) as replica:
        yield replica


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "adapter_config.json").write_text("{}")
    return str(tmp_path)


async def load(replica: Replica, **body: object) -> tuple[int, str]:
    answer = await replica.http.post("/v1/load_lora_adapter", json=body)
    return answer.status_code, answer.text


async def test_adapter_is_loaded_used_and_unloaded_by_its_name(
    replica: Replica, folder: str
) -> None:
    loaded = await load(replica, lora_name="sql", lora_path=folder)
    chat = await replica.client.chat.completions.create(model="sql", messages=HELLO)  # type: ignore[arg-type]
    text = await replica.client.completions.create(model="sql", prompt="a", max_tokens=10)
    plain = await replica.client.completions.create(model="first", prompt="ab", max_tokens=2)
    gone = await replica.http.post("/v1/unload_lora_adapter", json={"lora_name": "sql"})

    assert loaded == (200, "Success: LoRA adapter 'sql' added successfully.")
    assert (chat.model, chat.choices[0].message.content) == ("sql", "sql@v1")
    assert (text.model, text.choices[0].text) == ("sql", "sql@v1")
    assert (plain.model, plain.choices[0].text) == ("first", "ab")
    assert (gone.status_code, gone.text) == (
        200,
        "Success: LoRA adapter 'sql' removed successfully.",
    )
    with pytest.raises(openai.NotFoundError, match="'sql' does not exist"):
        await replica.client.completions.create(model="sql", prompt="a")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"input": "hi"}),
        ("/v1/messages", {"messages": HELLO, "max_tokens": 10}),
        ("/invocations", {"messages": HELLO}),
        ("/v1/chat/completions", {"messages": HELLO, "n": 2, "temperature": 1}),
        ("/v1/completions", {"prompt": ["a", "b"]}),
        ("/v1/completions", {"prompt": "a", "use_beam_search": True, "n": 2}),
        ("/v1/completions", {"prompt": "a", "stream": True}),
    ],
)
async def test_every_route_that_generates_takes_an_adapter(
    replica: Replica, folder: str, path: str, body: dict[str, object]
) -> None:
    await load(replica, lora_name="sql", lora_path=folder)
    answer = await replica.http.post(path, json=body | {"model": "sql"})

    assert answer.status_code == 200, answer.text
    assert {request.adapter for request in replica.llm.requests} == {"sql@v1"}


async def test_pooling_takes_an_adapter(folder: str) -> None:
    pooling = PoolingInfo(["embed"], is_encoder=False, embedding_size=4)
    async with running_replica(OPTIONS, pooling=pooling, lora=ROOM) as replica:
        await load(replica, lora_name="sql", lora_path=folder)
        for model in ("sql", "first"):
            await replica.client.embeddings.create(model=model, input="a")

        assert [request.adapter for request in replica.llm.pooled] == ["sql@v1", ""]


async def test_stream_that_goes_on_here_keeps_its_adapter(replica: Replica, folder: str) -> None:
    await load(replica, lora_name="sql", lora_path=folder)
    request = {"model": "sql", "prompt": "a", "stream": True, "max_tokens": 10}
    begun = replica.llm.tokenizer.encode("sq")
    body = {"head": "1700000000-" + "0" * 32, "trace": [[0, begun]], "request": request}
    answer = await replica.http.post("/octavo/continue/v1/completions", json=body)

    assert answer.status_code == 200
    [continued] = replica.llm.requests
    assert (continued.adapter, continued.output_token_ids) == ("sql@v1", begun)


async def test_lines_of_a_batch_may_name_an_adapter(replica: Replica, folder: str) -> None:
    await load(replica, lora_name="sql", lora_path=folder)
    lines = [
        json.dumps(
            {
                "custom_id": model,
                "method": "POST",
                "url": "/v1/completions",
                "body": {"model": model, "prompt": "ab", "max_tokens": 6},
            }
        ).encode()
        for model in ("sql", "first", "nobody")
    ]
    answers = await answer_lines(
        create_app(replica.state), list(enumerate(lines, 1)), max_in_flight=2, progress=print
    )
    bodies = [json.loads(answer)["response"]["body"] for answer in answers]

    assert [body["choices"][0]["text"] for body in bodies[:2]] == ["sql@v1", "ababab"]
    assert bodies[2]["error"]["code"] == "model_not_found"


async def test_models_are_listed_with_root_and_parent(replica: Replica, folder: str) -> None:
    await load(replica, lora_name="sql", lora_path=folder)
    listed = (await replica.http.get("/v1/models")).json()["data"]
    one = (await replica.http.get("/v1/models/sql")).json()

    assert [(each["id"], each["root"], each["parent"]) for each in listed] == [
        ("first", "first", None),
        ("second/alias", "first", None),
        ("sql", folder, "first"),
    ]
    assert one == listed[-1]


async def test_unknown_model_is_a_404_that_lists_adapters_too(
    replica: Replica, folder: str
) -> None:
    await load(replica, lora_name="sql", lora_path=folder)
    answer = await replica.http.post("/v1/completions", json={"model": "sqi", "prompt": "a"})

    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert error["message"].endswith("this server has 'first', 'second/alias', 'sql'")


@pytest.mark.parametrize(
    ("body", "status", "kind", "message"),
    [
        ({"lora_name": "sql"}, 400, "InvalidUserInput", "both lora_name and lora_path"),
        ({"lora_path": "/a"}, 400, "InvalidUserInput", "both lora_name and lora_path"),
        (
            {"lora_name": "first", "lora_path": "/a"},
            *(400, "InvalidUserInput", "is a name of the model itself"),
        ),
        ({"lora_name": "a", "lora_path": "/a/b"}, 404, "not_found_error", "no such folder"),
        ({"lora_name": "a", "lora_path": "a:b"}, 404, "not_found_error", "no LoRA adapter at a:b"),
        ({"lora_name": "a", "path": "/a"}, 400, "invalid_request_error", "unknown field 'path'"),
        (
            {"lora_name": "a", "lora_path": "/a", "is_3d_lora_weight": True},
            *(400, "InvalidUserInput", "leave it out"),
        ),
    ],
)
async def test_load_that_cannot_be_done_says_why(
    replica: Replica, body: dict[str, object], status: int, kind: str, message: str
) -> None:
    answer = await replica.http.post("/v1/load_lora_adapter", json=body)

    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (status, kind)
    assert message in error["message"]
    assert replica.llm.engine_adapters.calls == []


async def test_known_name_is_loaded_again_only_in_place(replica: Replica, folder: str) -> None:
    await load(replica, lora_name="sql", lora_path=folder)
    again = await load(replica, lora_name="sql", lora_path=folder)
    inplace = await load(replica, lora_name="sql", lora_path=folder, load_inplace=True)
    text = await replica.client.completions.create(model="sql", prompt="a", max_tokens=10)

    assert again[0] == 400
    assert "has already been loaded" in again[1]
    assert inplace[0] == 200
    assert text.choices[0].text == "sql@v2"


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValidationError("rank 64 is too large"), 400), (UnavailableError("no room"), 503)],
)
async def test_what_the_engine_refuses_is_told_and_disturbs_nobody(
    replica: Replica, folder: str, error: Exception, status: int
) -> None:
    replica.llm.engine_adapters.refuse = [error] * 2
    refused = await load(replica, lora_name="sql", lora_path=folder)
    plain = await replica.client.completions.create(model="first", prompt="ab", max_tokens=2)

    assert refused[0] == status
    assert str(error) in refused[1]
    assert plain.choices[0].text == "ab"


async def test_unload_of_what_is_not_there(replica: Replica) -> None:
    unknown = await replica.http.post("/v1/unload_lora_adapter", json={"lora_name": "sql"})
    missing = await replica.http.post("/v1/unload_lora_adapter", json={})

    assert (unknown.status_code, missing.status_code) == (404, 400)
    assert unknown.json()["error"]["type"] == "not_found_error"
    assert missing.json()["error"]["type"] == "InvalidUserInput"


async def test_routes_are_there_only_where_they_are_switched_on(folder: str) -> None:
    async with running_replica(ApiOptions(), lora=ROOM) as replica:
        assert (await load(replica, lora_name="sql", lora_path=folder))[0] == 404
    async with running_replica(OPTIONS) as replica:
        status, text = await load(replica, lora_name="sql", lora_path=folder)
        assert status == 400
        assert "enable_lora=True (--enable-lora)" in text


async def test_modules_of_the_start_are_loaded_in_order(replica: Replica, folder: str) -> None:
    replica.state.has_adapters = False
    assert replica.state.stage == "loading adapters"
    modules = [LoRAModule("b", folder), LoRAModule("a", folder, "org/base")]
    await load_modules(replica.state, modules)

    assert replica.state.stage == "ready"
    listed = (await replica.http.get("/v1/models")).json()["data"]
    assert [(each["id"], each["parent"]) for each in listed[2:]] == [
        ("b", "first"),
        ("a", "org/base"),
    ]
    with pytest.raises(ConfigError, match="--lora-modules first: 'first' is a name of the model"):
        await load_modules(replica.state, [LoRAModule("first", folder)])
    with pytest.raises(ConfigError, match="--lora-modules c: there is no LoRA adapter at /nowhere"):
        await load_modules(replica.state, [LoRAModule("c", "/nowhere")])


async def test_record_has_the_names_it_answers_to_evicted_ones_too(
    replica: Replica, folder: str
) -> None:
    for name in ("a", "b", "c"):
        await load(replica, lora_name=name, lora_path=folder)

    assert adapters_of_record(replica.llm.as_async_llm()) == {
        "adapters": ["a", "b", "c"],
        "loaded_adapters": ["b", "c"],
        "adapter_versions": {"a": "v1", "b": "v1", "c": "v1"},
        "adapter_sources": {"a": folder, "b": folder, "c": folder},
        "adapter_errors": {},
        "max_adapters": 2,
        "adapter_load_s": 0.5,
    }


async def test_record_tells_why_a_load_failed_until_one_succeeds(
    replica: Replica, folder: str
) -> None:
    def errors() -> dict[str, AdapterError]:
        return replica.llm.as_async_llm().adapters.book.errors

    await load(replica, lora_name="a", lora_path="/nowhere")
    [(name, error)] = errors().items()
    assert (name, error.origin) == ("a", "/nowhere")
    assert error.message.startswith("there is no LoRA adapter at /nowhere")
    await load(replica, lora_name="a", lora_path=folder)
    assert errors() == adapters_of_record(replica.llm.as_async_llm())["adapter_errors"] == {}


async def test_metrics_of_adapters_have_no_series_per_adapter(
    replica: Replica, folder: str
) -> None:
    for name in ("a", "b", "c"):
        await load(replica, lora_name=name, lora_path=folder)
    text = (await replica.http.get("/metrics")).text
    found = {
        sample.name: (sample.value, sample.labels)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "adapter" in sample.name or "lora" in sample.name
    }

    value, labels = found.pop("vllm:lora_requests_info")
    assert value > 1.7e9
    assert labels == {"max_lora": "2", "waiting_lora_adapters": "", "running_lora_adapters": ""}
    assert found == {
        "octavo_runtime_adapters_known": (3, {}),
        "octavo_runtime_adapters_loaded": (2, {}),
        "octavo_runtime_adapter_loads_total": (3, {}),
        "octavo_runtime_adapter_load_seconds_total": (1.5, {}),
        "octavo_runtime_adapter_evictions_total": (1, {}),
    }
