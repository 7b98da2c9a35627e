"""The parts of `octavo bench` that need no server: datasets, arrivals, streams, figures, table."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scipy import stats
from tests.fakes.tiny_model import tiny_tokenizer

from octavo.bench.arrivals import Arrivals
from octavo.bench.backends import BACKENDS, Event
from octavo.bench.datasets import DatasetFile, FileDataset
from octavo.bench.online import StreamTimes, Target
from octavo.bench.report import table
from octavo.bench.results import (
    details,
    parse_goals,
    parse_metrics,
    parse_percents,
    summarise,
)
from octavo.bench.workload import (
    Assignment,
    BenchRequest,
    PrefixRepetitionWorkload,
    as_text,
    with_adapters,
)
from octavo_protocol.errors import ConfigError

# Datasets and adapters


def write(folder: Path, text: str) -> Path:
    path = folder / "data"
    path.write_text(text)
    return path


def test_prefixes_are_shared_evenly() -> None:
    requests = PrefixRepetitionWorkload(12, 8, 4, 3, 5, seed=1).requests(32_000)
    prefixes = [tuple(each.prompt_token_ids[:8]) for each in requests]
    assert sorted(prefixes.count(each) for each in set(prefixes)) == [4, 4, 4]
    assert {len(each.prompt_token_ids) for each in requests} == {12}
    assert len({tuple(each.prompt_token_ids) for each in requests}) == 12
    assert {each.output_len for each in requests} == {5}


def test_conversations_give_question_and_length_of_the_answer(tmp_path: Path) -> None:
    turns = [{"value": "the quick brown fox jumps"}, {"value": "over the lazy dog and sleeps"}]
    short = [{"value": "the"}, {"value": "dog"}]
    records = [{"conversations": each} for each in (turns, short, turns[:1])]
    path = write(tmp_path, json.dumps(records))
    requests = DatasetFile("sharegpt", path, 9).requests(tiny_tokenizer(), 352)
    answer = tiny_tokenizer().encode(turns[1]["value"])
    prompt = tiny_tokenizer().encode(turns[0]["value"])
    assert requests == [BenchRequest(prompt, len(answer), turns[0]["value"])]


def test_own_prompts_may_say_how_long_answers_are(tmp_path: Path) -> None:
    path = write(tmp_path, '{"prompt": "a dog", "output_tokens": 7}\n\n{"prompt": "a fox"}\n')
    requests = DatasetFile("custom", path, 9).requests(tiny_tokenizer(), 352)
    assert {each.text: each.output_len for each in requests} == {"a dog": 7, "a fox": 256}
    limited = DatasetFile("custom", path, 1, output_len=3).requests(tiny_tokenizer(), 352)
    assert [each.output_len for each in limited] == [3]


def test_a_recorded_table_gives_lengths(tmp_path: Path) -> None:
    text = "Timestamp,Model,Request tokens,Response tokens\n0,x,5,3\n2.5,x,6,0\n4,x,7,2\n"
    path = write(tmp_path, text)
    requests = DatasetFile("burstgpt", path, 9, keeps_times=True).requests(None, 32_000)
    assert [(len(r.prompt_token_ids), r.output_len, r.arrival_s) for r in requests] == [
        (5, 3, 0.0),
        (7, 2, 4.0),
    ]


def test_a_trace_keeps_times_and_shared_blocks(tmp_path: Path) -> None:
    records = [
        {"timestamp": 0, "input_length": 600, "output_length": 4, "hash_ids": [1, 2]},
        {"timestamp": 1500, "input_length": 515, "output_length": 5, "hash_ids": [1, 3]},
    ]
    path = write(tmp_path, "\n".join(map(json.dumps, records)))
    one, two = DatasetFile("timed_trace", path, 9, keeps_times=True).requests(None, 32_000)
    assert (len(one.prompt_token_ids), len(two.prompt_token_ids)) == (600, 515)
    assert one.prompt_token_ids[:512] == two.prompt_token_ids[:512]
    assert one.prompt_token_ids[512:515] != two.prompt_token_ids[512:]
    assert (one.arrival_s, two.arrival_s) == (0.0, 1.5)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("sharegpt", "{", "is not JSON"),
        ("sharegpt", "[3]", "record 1 is not of the form sharegpt"),
        ("sharegpt", "[]", "has no requests of the form sharegpt"),
        ("custom", '{"text": "x"}', "record 1 is not of the form custom: KeyError"),
        ("custom", '{"prompt": "x"}\njunk', "line 2 is not JSON"),
        ("timed_trace", '{"input_length": "x"}', "record 1 is not of the form timed_trace"),
        ("burstgpt", "a,b\n1,2\n", "record 2 is not of the form burstgpt"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, kind: FileDataset, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as raised:
        DatasetFile(kind, path, 9).requests(tiny_tokenizer(), 352)
    assert message in raised.value.message
    assert str(path) in raised.value.message


def test_text_needs_a_tokenizer(tmp_path: Path) -> None:
    path = write(tmp_path, '{"prompt": "x"}')
    with pytest.raises(ConfigError, match="custom needs --tokenizer"):
        DatasetFile("custom", path, 1).requests(None, 352)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the dataset"):
        DatasetFile("custom", tmp_path / "no", 1).requests(tiny_tokenizer(), 352)


# Arrivals


def test_without_a_rate_all_are_sent_at_once() -> None:
    assert Arrivals().times(4, seed=0) == [0.0] * 4
    assert Arrivals().times(0, seed=0) == []


@pytest.mark.parametrize("burstiness", [1.0, 4.0])
def test_gaps_have_the_distribution_that_burstiness_says(burstiness: float) -> None:
    times = Arrivals(10.0, burstiness).times(4000, seed=3)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    wanted: Callable[[float], float] = stats.gamma(burstiness, scale=1 / (10 * burstiness)).cdf
    assert stats.kstest(gaps, wanted).pvalue > 0.001
    assert times[-1] == pytest.approx(3999 / 10)


def test_a_rate_can_grow() -> None:
    arrivals = Arrivals(ramp_up="linear", start_rate=1.0, end_rate=100.0, burstiness=1000)
    times = arrivals.times(200, seed=0)
    assert times[20] - times[0] > 3 * (times[-1] - times[-21])


@pytest.mark.parametrize(
    "settings", [{"rate": 0.0}, {"burstiness": -1.0}, {"ramp_up": "linear", "start_rate": 1.0}]
)
def test_rates_that_cannot_be_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--"):
        Arrivals(**settings)


def test_each_request_asks_one_of_the_adapters_and_a_seed_says_which() -> None:
    requests = [BenchRequest([number], 1) for number in range(90)]
    names = ["a", "b", "c"]

    def adapters(assignment: Assignment, seed: int = 0) -> list[str | None]:
        return [each.adapter for each in with_adapters(requests, names, assignment, seed)]

    assert adapters("random") == adapters("random") != adapters("random", 1)
    assert {name: adapters("random").count(name) > 20 for name in names} == dict.fromkeys(
        names, True
    )
    assert adapters("round-robin") == names * 30
    assert with_adapters(requests, [], "random", 0) == requests
    [asked] = with_adapters(requests[:1], ["a"], "random", 0)
    assert Target("http://x", "m", "openai-chat").request(asked)["model"] == "a"


# What is sent, and what comes back


def test_token_ids_are_sent_where_the_api_takes_them_and_words_elsewhere() -> None:
    request = BenchRequest([5, 6], 3)
    assert Target("http://x", "m").request(request) == {
        "model": "m",
        "prompt": [5, 6],
        "max_tokens": 3,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    chat = Target("http://x/", "m", "openai-chat", body={"temperature": 0})
    assert chat.url == "http://x/v1/chat/completions"
    body = chat.request(request)
    assert body["messages"] == [{"role": "user", "content": as_text([5, 6], None)}]
    assert (body["max_completion_tokens"], body["temperature"]) == (3, 0)
    responses = Target("http://x", "m", "openai-responses", tokenizer=tiny_tokenizer())
    assert responses.request(request) == {
        "model": "m",
        "input": tiny_tokenizer().decode([5, 6]),
        "max_output_tokens": 3,
        "stream": True,
    }


def test_a_prompt_to_rerank_asks_with_its_first_words() -> None:
    body = BACKENDS["vllm-rerank"].body("m", "a b c d e f g h i j k l", 8)

    assert body == {"model": "m", "query": "a b", "documents": ["c d e f g h i j k l"]}


@pytest.mark.parametrize(
    ("backend", "event", "wanted"),
    [
        ("openai", {"choices": [{"text": "a"}]}, Event("a")),
        ("openai", {"choices": [{"text": ""}]}, Event("")),
        (
            "openai",
            {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}},
            Event(None, 3, 2),
        ),
        ("openai", {"error": {"message": "no"}}, Event(error="no")),
        ("openai-chat", {"choices": [{"delta": {"role": "assistant", "content": ""}}]}, Event()),
        ("openai-chat", {"choices": [{"delta": {"content": "a"}}]}, Event("a")),
        ("openai-chat", {"choices": [{"delta": {"reasoning": "r"}}]}, Event("r")),
        ("openai-responses", {"type": "response.created"}, Event()),
        ("openai-responses", {"type": "response.output_text.delta", "delta": "a"}, Event("a")),
        (
            "openai-responses",
            {"type": "response.completed", "response": {"usage": {"input_tokens": 4}}},
            Event(None, 4, None),
        ),
        ("openai-responses", {"type": "error", "message": "no"}, Event(error="no")),
    ],
)
def test_events_are_read(backend: Any, event: dict[str, Any], wanted: Event) -> None:
    assert BACKENDS[backend].read(event) == wanted


# Figures

RESULTS = [
    StreamTimes(0.0, 0.1, 0.5, [0.2, 0.2], 10, 3, "abc"),
    StreamTimes(0.2, 0.3, 1.1, [0.4, 0.4], 20, 3, "def"),
    StreamTimes(0.3, error="503: full"),
]


def test_figures_have_vllms_names() -> None:
    summary = summarise(2.0, RESULTS, percents=(90, 99.9), goals={"ttft": 200, "e2el": 600})
    metrics = {
        f"{kind}_{name}_ms": summary[f"{kind}_{name}_ms"]
        for name in ("ttft", "tpot", "itl", "e2el")
        for kind in ("mean", "median", "std", "p90", "p99.9")
    }
    figures = {name: value for name, value in summary.items() if name not in metrics}
    assert figures == {
        "duration": 2.0,
        "completed": 2,
        "failed": 1,
        "total_input_tokens": 30,
        "total_output_tokens": 6,
        "request_throughput": 1.0,
        "request_goodput": 0.5,
        "output_throughput": 3.0,
        "total_token_throughput": 18.0,
        "max_output_tokens_per_s": 5.0,
        "max_concurrent_requests": 2,
        "rtfx": 0.0,
    }
    assert metrics["mean_ttft_ms"] == pytest.approx(200)
    assert metrics["std_ttft_ms"] == pytest.approx(100)
    assert metrics["p90_ttft_ms"] == pytest.approx(280)
    assert metrics["mean_tpot_ms"] == pytest.approx(300)
    assert metrics["median_itl_ms"] == pytest.approx(300)
    assert metrics["mean_e2el_ms"] == pytest.approx(800)


def test_details_are_in_the_order_of_the_requests() -> None:
    assert details(RESULTS) == {
        "input_lens": [10, 20, 0],
        "output_lens": [3, 3, 0],
        "ttfts": [0.1, 0.3, 0.0],
        "itls": [[0.2, 0.2], [0.4, 0.4], []],
        "latencies": [0.5, 1.1, 0.0],
        "start_times": [0.0, 0.2, 0.3],
        "generated_texts": ["abc", "def", ""],
        "errors": ["", "", "503: full"],
    }


def test_a_run_without_success_has_zeroes() -> None:
    summary = summarise(1.0, RESULTS[2:])
    assert (summary["completed"], summary["mean_ttft_ms"], summary["p99_itl_ms"]) == (0, 0.0, 0.0)
    assert summary["request_goodput"] is None


def test_the_table_has_labels_of_forty_columns() -> None:
    result = {**summarise(2.0, RESULTS), "request_rate": "inf", "max_concurrency": 4}
    lines = table(result, ["ttft", "itl"], [99]).splitlines()
    assert lines[0] == "============ Serving Benchmark Result ============"
    assert lines[1] == "Successful requests:                     2         "
    assert "Maximum request concurrency:             4         " in lines
    assert "Benchmark duration (s):                  2.00      " in lines
    assert "---------------Time to First Token----------------" in lines
    assert "Mean TTFT (ms):                          200.00    " in lines
    assert "P99 ITL (ms):                            400.00    " in lines
    assert not [line for line in lines if "TPOT" in line or "rate configured" in line]
    assert lines[-1] == "=" * 50


def test_lists_of_words_are_read() -> None:
    assert parse_goals(["ttft:200", "e2el:3000"]) == {"ttft": 200.0, "e2el": 3000.0}
    assert parse_percents("50,99.9") == [50.0, 99.9]
    assert parse_metrics("ttft, e2el") == ["ttft", "e2el"]


@pytest.mark.parametrize(
    ("parse", "value"),
    [
        (parse_goals, ["itl:3"]),
        (parse_goals, ["ttft"]),
        (parse_goals, ["ttft:-1"]),
        (parse_percents, "50,x"),
        (parse_percents, "101"),
        (parse_metrics, "ttft,foo"),
    ],
)
def test_words_that_mean_nothing_are_refused(parse: Callable[[Any], object], value: Any) -> None:
    with pytest.raises(ConfigError, match="--"):
        parse(value)
