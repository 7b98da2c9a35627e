"""What operators use: control routes, load, metrics, logs, keep-alive comments."""

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.fakes.fake_llm import FakeLLM
from tests.unit.server.conftest import Replica, make_state, running_replica

from octavo_protocol.errors import ConfigError
from octavo_runtime.config import EngineConfig
from octavo_runtime.server.options import ApiOptions, FingerprintMode
from octavo_runtime.server.serve import ServeOptions

_TEXT = {"prompt": "ab", "max_tokens": 4}
_CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
_DEV = ApiOptions(dev_mode=True)


class _Samples:
    """The values of a scrape, by name and labels; vLLM's own two labels need not be written."""

    def __init__(self, text: str) -> None:
        self._values = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    @classmethod
    async def of(cls, replica: Replica) -> "_Samples":
        return cls((await replica.http.get("/metrics")).text)

    def octavo(self, name: str) -> float | None:
        return self._values.get((f"octavo_runtime_{name}", frozenset()))

    def vllm(self, name: str, **labels: str) -> float | None:
        labels = {"model_name": "first", "engine": "0"} | labels
        return self._values.get((f"vllm:{name}", frozenset(labels.items())))


async def test_control_routes_exist_in_development_mode_only(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = ("/sleep", "/wake_up", "/reset_prefix_cache", "/pause", "/resume", "/start_profile")
    for path in paths:
        assert (await replica.http.post(path)).status_code == 404
    assert replica.llm.controls == []

    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    async with running_replica(ApiOptions()) as by_environment:
        assert (await by_environment.http.get("/is_sleeping")).json() == {"is_sleeping": False}


async def test_sleep_and_wake_up_reach_the_engine_and_stop_the_traffic() -> None:
    async with running_replica(_DEV) as replica:
        asleep = await replica.http.post("/sleep", params={"level": 2})
        is_asleep = await replica.http.get("/is_sleeping")
        refused = await replica.http.post("/v1/completions", json=_TEXT)
        awake = await replica.http.post("/wake_up", params={"tags": ["weights", "kv_cache"]})
        served = await replica.http.post("/v1/completions", json=_TEXT)

    assert asleep.json() == {"status": "sleeping", "level": 2}
    assert is_asleep.json() == {"is_sleeping": True}
    assert refused.status_code == 503
    assert awake.json() == {"status": "awake", "tags": ["weights", "kv_cache"]}
    assert served.status_code == 200
    assert replica.llm.controls == [
        ("sleep", {"level": 2, "mode": "abort"}),
        ("wake_up", {"tags": ["weights", "kv_cache"]}),
    ]


@pytest.mark.parametrize("mode", ["abort", "wait"])
async def test_pause_ends_or_awaits_what_runs_and_resume_takes_work_again(mode: str) -> None:
    async with running_replica(_DEV) as replica:
        replica.llm.gate.clear()
        running = asyncio.create_task(replica.http.post("/v1/completions", json=_TEXT))
        await replica.until(lambda: replica.llm.num_unfinished == 1)
        pausing = asyncio.create_task(replica.http.post("/pause", params={"mode": mode}))
        await replica.until(lambda: replica.state.is_paused)
        if mode == "wait":
            replica.llm.gate.set()
        paused, ended = await pausing, await running
        replica.llm.gate.set()
        refused = await replica.http.post("/v1/completions", json=_TEXT)
        ready = await replica.http.get("/ready")
        is_paused = await replica.http.get("/is_paused")
        await replica.http.post("/resume")
        served = await replica.http.post("/v1/completions", json=_TEXT)

    assert paused.json() == {"status": "paused"}
    reason = ended.json()["choices"][0]["finish_reason"]
    assert reason == ("abort" if mode == "abort" else "length")
    assert refused.status_code == 503
    assert ready.json()["stage"] == "paused"
    assert is_paused.json() == {"is_paused": True}
    assert served.status_code == 200


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/sleep", {"level": "9"}),
        ("/sleep", {"mode": "x"}),
        ("/pause", {"mode": "x"}),
        ("/pause", {"clear_cache": "maybe"}),
        ("/reset_prefix_cache", {"reset_external": "x"}),
        ("/start_profile", {}),
    ],
)
async def test_a_control_call_that_makes_no_sense_is_a_400(path: str, query: Any) -> None:
    async with running_replica(_DEV) as replica:
        answer = await replica.http.post(path, params=query)
        served = await replica.http.post("/v1/completions", json=_TEXT)

    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert served.status_code == 200


async def test_the_cache_is_reset_and_the_settings_are_shown() -> None:
    async with running_replica(_DEV) as replica:
        reset = await replica.http.post("/reset_prefix_cache")
        text = await replica.http.get("/server_info")
        shown = await replica.http.get("/server_info", params={"config_format": "json"})

    assert reset.json() == {"success": True}
    assert text.headers["content-type"].startswith("text/plain")
    assert shown.json()["api"]["dev_mode"] is True
    assert shown.json()["engine"]["max_model_len"] == 64


async def test_the_settings_that_are_shown_hold_no_keys(tmp_path: Path) -> None:
    options = ServeOptions(
        model=tmp_path,
        served_names=("first",),
        engine=EngineConfig(model=tmp_path),
        api_key=("sesame",),
        redis_url="redis://:sesame@redis:6379",
        dev_mode=True,
    )
    async with running_replica(options) as replica:
        text = await replica.http.get("/server_info")
        shown = await replica.http.get("/server_info", params={"config_format": "json"})

    assert "sesame" not in text.text + shown.text
    assert "dev_mode" in text.text


async def test_load_counts_what_generates_where_it_is_tracked(replica: Replica) -> None:
    async with running_replica(ApiOptions(enable_server_load_tracking=True)) as tracked:
        loads = []
        for each in (replica, tracked):
            each.llm.gate.clear()
            running = asyncio.create_task(each.http.post("/v1/completions", json=_TEXT))
            await each.until(lambda each=each: each.llm.num_unfinished == 1)  # type: ignore[misc]
            loads.append((await each.http.get("/load")).json())
            each.llm.gate.set()
            await running
        after = (await tracked.http.get("/load")).json()

    assert loads == [{"server_load": 0}, {"server_load": 1}]
    assert after == {"server_load": 0}


async def test_small_routes_of_sagemaker(replica: Replica) -> None:
    chat = await replica.http.post("/invocations", json=_CHAT)
    text = await replica.http.post("/invocations", json=_TEXT)
    neither = await replica.http.post("/invocations", json={})

    assert chat.json()["object"] == "chat.completion"
    assert text.json()["object"] == "text_completion"
    assert neither.status_code == 400
    for method in ("GET", "POST"):
        assert (await replica.http.request(method, "/ping")).status_code == 200
    replica.llm.die()
    assert (await replica.http.get("/ping")).status_code == 503


async def test_the_tokenizers_settings_are_shown_only_where_switched_on(replica: Replica) -> None:
    async with running_replica(ApiOptions(enable_tokenizer_info_endpoint=True)) as shown:
        answer = (await shown.http.get("/tokenizer_info")).json()

    assert answer["eos_token"] == "<eos>"
    assert (await replica.http.get("/tokenizer_info")).status_code == 404


async def test_any_model_name_is_served_where_names_are_not_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLLM_SKIP_MODEL_NAME_VALIDATION", "1")
    async with running_replica(ApiOptions()) as replica:
        answer = await replica.http.post("/v1/completions", json=_TEXT | {"model": "other"})

    assert answer.json()["model"] == "other"


async def test_vllms_metrics_have_its_names_labels_and_counts(replica: Replica) -> None:
    await replica.http.post("/v1/completions", json=_TEXT | {"n": 2})
    samples = await _Samples.of(replica)

    for name, value in {
        "num_requests_running": 0,
        "num_requests_waiting": 0,
        "kv_cache_usage_perc": 0,
        "prompt_tokens_total": 2,
        "generation_tokens_total": 8,
        "prefix_cache_queries_total": 0,
        "prefix_cache_hits_total": 0,
        "num_preemptions_total": 0,
        "time_to_first_token_seconds_count": 2,
        "inter_token_latency_seconds_count": 6,
        "e2e_request_latency_seconds_count": 1,
        "request_time_per_output_token_seconds_count": 1,
        "request_prompt_tokens_sum": 2,
        "request_generation_tokens_sum": 8,
        "request_params_n_sum": 2,
        "request_params_max_tokens_sum": 4,
        "request_decode_time_seconds_count": 1,
    }.items():
        assert samples.vllm(name) == value, name
    assert samples.vllm("request_success_total", finished_reason="length") == 2
    cache = {"block_size": "16", "num_gpu_blocks": "100", "cache_dtype": "float32"}
    cache["enable_prefix_caching"] = "True"
    assert samples.vllm("cache_config_info", **cache) == 1
    assert samples.vllm("request_prompt_tokens_bucket", le="50.0") == 1
    assert samples.vllm("request_prompt_tokens_bucket", le="100.0") is None
    assert samples.vllm("gpu_cache_usage_perc") is None


async def test_output_tokens_count_as_they_come(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica.llm.gate.clear()
    steps = iter((True, True))
    monkeypatch.setattr(replica.llm.gate, "is_set", lambda: next(steps, False))
    running = asyncio.create_task(replica.http.post("/v1/completions", json=_TEXT))
    async with asyncio.timeout(5):
        while (samples := await _Samples.of(replica)).vllm("generation_tokens_total") != 2:
            await asyncio.sleep(0.01)
    assert samples.octavo("generation_tokens_total") == 2

    running.cancel()
    await replica.idle()
    samples = await _Samples.of(replica)
    assert samples.vllm("generation_tokens_total") == 2
    assert samples.vllm("request_generation_tokens_count") == 0


async def test_an_aborted_request_counts_as_vllm_counts_it(replica: Replica) -> None:
    replica.llm.gate.clear()
    running = asyncio.create_task(replica.http.post("/v1/completions", json=_TEXT))
    await replica.until(lambda: replica.llm.num_unfinished == 1)
    running.cancel()
    await replica.idle()

    samples = await _Samples.of(replica)
    assert samples.vllm("request_success_total", finished_reason="abort") == 1
    assert samples.octavo("requests_aborted_total") == 1


@pytest.mark.parametrize(
    ("names", "prefixes"),
    [("both", {"octavo", "vllm"}), ("octavo", {"octavo"}), ("vllm", {"octavo_http", "vllm"})],
)
async def test_sets_of_names_can_be_chosen(names: Any, prefixes: set[str]) -> None:
    async with running_replica(ApiOptions(metrics_names=names)) as replica:
        await replica.http.post("/v1/completions", json=_TEXT)
        text = (await replica.http.get("/metrics")).text

    assert ("vllm:" in text) == ("vllm" in prefixes)
    assert ("octavo_runtime_requests_total" in text) == ("octavo" in prefixes)
    assert "octavo_runtime_http_responses_total" in text


async def test_removed_names_come_back_on_demand() -> None:
    async with running_replica(ApiOptions(show_old_metrics=True)) as replica:
        await replica.http.post("/v1/completions", json=_TEXT)
        samples = await _Samples.of(replica)

    assert samples.vllm("gpu_cache_usage_perc") == 0
    assert samples.vllm("time_per_output_token_seconds_count") == 3


async def test_a_finished_request_is_a_line_and_texts_need_a_switch_of_their_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="octavo_runtime.server.request_log")
    body = {"prompt": "secret", "max_tokens": 6, "stream": True}
    async with running_replica(ApiOptions(enable_log_requests=True)) as replica:
        await replica.http.post("/v1/completions", json=body)
    assert "finished: length, 6 prompt tokens (0 cached), 6 output tokens" in caplog.text
    assert "secret" not in caplog.text

    options = ApiOptions(enable_log_requests=True, enable_log_outputs=True, max_log_len=3)
    async with running_replica(options) as replica:
        await replica.http.post("/v1/completions", json=body)
    assert "prompt: 'sec', outputs: ['sec']" in caplog.text


async def test_a_silent_stream_is_kept_alive_by_comments() -> None:
    async with running_replica(ApiOptions(sse_keep_alive_interval=0.02)) as replica:
        replica.llm.gate.clear()
        lines = []
        async with replica.http.stream(
            "POST", "/v1/completions", json=_TEXT | {"stream": True}
        ) as answer:
            async for line in answer.aiter_lines():
                lines.append(line)
                if line == ": keep-alive":
                    replica.llm.gate.set()

    assert ": keep-alive" in lines
    said = [line.removeprefix("data: ") for line in lines if line.startswith("data: {")]
    assert "".join(json.loads(each)["choices"][0]["text"] for each in said) == "abab"
    assert lines[-2:] == ["data: [DONE]", ""]


async def test_a_kept_alive_stream_is_aborted_when_its_client_leaves() -> None:
    async with running_replica(ApiOptions(sse_keep_alive_interval=0.02)) as replica:
        replica.llm.gate.clear()
        async with replica.http.stream(
            "POST", "/v1/completions", json=_TEXT | {"stream": True}
        ) as answer:
            async for line in answer.aiter_lines():
                assert line == ": keep-alive"
                break
        await replica.idle()

    assert len(replica.llm.aborted) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"enable_auto_tool_choice": True}, "--tool-call-parser"),
        ({"enable_log_outputs": True}, "--enable-log-requests"),
        ({"fingerprint_mode": "custom"}, "--fingerprint-value"),
    ],
)
def test_options_that_contradict_each_other_are_named(options: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        ApiOptions(**options)


@pytest.mark.parametrize(
    "options", [ApiOptions(tool_call_parser="nonsense"), ApiOptions(reasoning_parser="nonsense")]
)
async def test_a_parser_that_does_not_exist_is_named(options: ApiOptions) -> None:
    with pytest.raises(ConfigError, match="nonsense"):
        make_state(FakeLLM(), options)


async def test_fingerprints_by_mode() -> None:
    shown = []
    modes: tuple[FingerprintMode, ...] = ("full", "hash", "none")
    for mode in modes:
        async with running_replica(ApiOptions(fingerprint_mode=mode)) as replica:
            answer = await replica.http.post("/v1/completions", json=_TEXT)
            shown.append(answer.json()["system_fingerprint"])

    full, digest, none = shown
    assert full.startswith("octavo-")
    assert full.endswith("-first-float32")
    assert digest.startswith("fp_")
    assert none is None
