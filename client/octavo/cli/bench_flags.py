"""The flags of `octavo bench serve`, by groups: one line for each. Names are vLLM's."""

import inspect
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from octavo.bench.backends import BackendName
from octavo.bench.workload import Assignment
from octavo.cli.options import JSON_METAVAR, parse_table

SAMPLING = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "frequency_penalty": float,
    "presence_penalty": float,
    "repetition_penalty": float,
}


def _option(*names: str, group: str, help: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=group, **settings)


def _server(*names: str, help: str, **settings: Any) -> Any:
    return _option(*names, group="Server", help=help, **settings)


def _load(*names: str, help: str, **settings: Any) -> Any:
    return _option(*names, group="Load", help=help, **settings)


def _output(*names: str, help: str, **settings: Any) -> Any:
    return _option(*names, group="Result", help=help, **settings)


# name -> (type, default, option)
_FLAGS: dict[str, tuple[Any, Any, Any]] = {
    "backend": (
        BackendName,
        "openai",
        _server("--backend", "--endpoint-type", help="Which API is asked."),
    ),
    "base_url": (
        str | None,
        None,
        _server("--base-url", help="Server or router, without /v1; before --host and --port."),
    ),
    "host": (str, "127.0.0.1", _server("--host", help="Where the server listens.")),
    "port": (int, 8000, _server("--port", min=1, max=65535, help="Its port.")),
    "endpoint": (str | None, None, _server("--endpoint", help="Path. Default: the API's own.")),
    "model": (
        str | None,
        None,
        _server("--model", "-m", help="Model. Default: the first one that the server lists."),
    ),
    "served_model_name": (
        str | None,
        None,
        _server("--served-model-name", help="Its name in the API, where that is another."),
    ),
    "lora_modules": (
        list[str] | None,
        None,
        _server(
            "--lora-modules",
            help="Adapters by their names in the API; each request asks one of them in place of "
            "the model. Several may follow.",
        ),
    ),
    "lora_assignment": (
        Assignment,
        "random",
        _server("--lora-assignment", help="Which of --lora-modules a request asks."),
    ),
    "tokenizer": (
        str | None,
        None,
        _server("--tokenizer", help="Model or folder whose tokenizer counts and writes prompts."),
    ),
    "api_key": (
        str | None,
        None,
        _server("--api-key", envvar=["OCTAVO_API_KEY", "OPENAI_API_KEY"], help="Bearer token."),
    ),
    "header": (list[str] | None, None, _server("--header", help="KEY=VALUE; several may follow.")),
    "extra_body": (
        Any,
        None,
        _server(
            "--extra-body", parser=parse_table, metavar=JSON_METAVAR, help="Fields of every body."
        ),
    ),
    "ready_check_timeout_sec": (
        int,
        0,
        _server("--ready-check-timeout-sec", min=0, help="Wait so long for a first answer."),
    ),
    "request_rate": (
        float,
        float("inf"),
        _load("--request-rate", help="Arrivals per second; inf: all at once."),
    ),
    "burstiness": (
        float,
        1.0,
        _load("--burstiness", help="1: Poisson; less: in bursts; more: evenly."),
    ),
    "ramp_up_strategy": (
        Literal["linear", "exponential"] | None,
        None,
        _load("--ramp-up-strategy", help="How the rate grows over the requests."),
    ),
    "ramp_up_start_rps": (
        float | None,
        None,
        _load("--ramp-up-start-rps", help="Rate of the first requests."),
    ),
    "ramp_up_end_rps": (
        float | None,
        None,
        _load("--ramp-up-end-rps", help="Rate of the last requests."),
    ),
    "max_concurrency": (
        int | None,
        None,
        _load("--max-concurrency", min=1, help="Requests in flight at most."),
    ),
    "num_warmups": (int, 0, _load("--num-warmups", min=0, help="Requests before the measured.")),
    "seed": (int, 0, _load("--seed", help="Of random prompts and arrivals.")),
    "vocab_size": (
        int | None,
        None,
        _load(
            "--vocab-size", min=2, help="Random token ids lie below it. Default: the tokenizer's."
        ),
    ),
    "ignore_eos": (
        bool | None,
        None,
        _load("--ignore-eos/--no-ignore-eos", help="Default: for random prompts."),
    ),
    **{
        name: (kind | None, None, _load(f"--{name.replace('_', '-')}", help="Of every request."))
        for name, kind in SAMPLING.items()
    },
    "disable_tqdm": (bool, False, _output("--disable-tqdm/--tqdm", help="No progress bar.")),
    "percentile_metrics": (
        str | None,
        None,
        _output(
            "--percentile-metrics",
            help="What is printed, of ttft, tpot, itl, e2el. Default: the first three; e2el where "
            "answers are not streams.",
        ),
    ),
    "metric_percentiles": (
        str,
        "99",
        _output("--metric-percentiles", help="Percentiles, as 50,90,99."),
    ),
    "goodput": (
        list[str] | None,
        None,
        _output("--goodput", help="Limits in ms, as ttft:200 tpot:50; several may follow."),
    ),
    "save_result": (bool, False, _output("--save-result/--no-save-result", help="Write a file.")),
    "save_detailed": (
        bool,
        False,
        _output("--save-detailed/--no-save-detailed", help="With what was measured per request."),
    ),
    "append_result": (
        bool,
        False,
        _output("--append-result/--no-append-result", help="Add a line to the file."),
    ),
    "result_dir": (Path | None, None, _output("--result-dir", help="Folder of the file.")),
    "result_filename": (str | None, None, _output("--result-filename", help="Name of the file.")),
    "output_json": (
        Path | None,
        None,
        _output("--output-json", help="Also write the result here, as text that people read."),
    ),
    "metadata": (
        list[str] | None,
        None,
        _output("--metadata", help="KEY=VALUE for the result; several may follow."),
    ),
    "label": (str | None, None, _output("--label", help="Begins the file's name.")),
}


PARAMETERS = [
    inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )
    for name, (kind, default, option) in _FLAGS.items()
]
