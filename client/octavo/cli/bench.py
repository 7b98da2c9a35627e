"""`octavo bench throughput | latency | serve`."""

import inspect
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from octavo.cli import bench_serve, serve_flags
from octavo.cli.bench_dataset import PARAMETERS, Workload, parse_range
from octavo.cli.command import FlexibleCommand, ServeCommand
from octavo.cli.serve import engine_settings
from octavo_protocol.errors import ConfigError

if TYPE_CHECKING:
    from octavo.engine.vllm_config import VllmConfig
    from octavo_runtime.engine.engine_core import EngineCore

app = typer.Typer(
    help="Measure the engine here, or a running server.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
_KEYWORD = inspect.Parameter.KEYWORD_ONLY
_ENGINE_GROUPS = ("Model", "Load", "Parallel", "Cache", "Scheduler", "CUDA graphs")

Model = Annotated[str, typer.Option("--model", help="Model name, folder or .gguf file.")]
OutputJson = Annotated[
    Path | None, typer.Option("--output-json", help="Also write the result to this file.")
]
Backend = Annotated[
    Literal["vllm"], typer.Option(help="vLLM's name for the engine in this process.", hidden=True)
]
Lengths = Annotated[str, typer.Option(help="Tokens: a number, or a range as 64-256.")]


def throughput(*, model: str, backend: str, output_json: Path | None, **flags: Any) -> None:
    """Run all requests at once, in this process, and print tokens per second."""
    from tqdm import tqdm

    from octavo.bench.offline import check_lengths, run_requests

    workload = Workload({each.name: flags.pop(each.name) for each in PARAMETERS}, flags["seed"])
    config, core = _engine(model, flags)
    requests = workload.requests(config.tokenizer(), core.info.vocab_size)
    check_lengths(requests, core.info.max_model_len)
    with tqdm(total=len(requests), desc="Requests", unit="req", file=sys.stderr) as bar:
        result = run_requests(core, requests, progress=bar.update).as_json()
    print(
        f"Throughput: {result['requests_per_second']:.2f} requests/s, "
        f"{result['tokens_per_second']:.2f} total tokens/s, "
        f"{result['output_tokens_per_second']:.2f} output tokens/s"
    )
    _report(result, output_json)


def latency(
    *,
    model: str,
    batch_size: int,
    input_len: str,
    output_len: str,
    num_iters: int,
    num_iters_warmup: int,
    output_json: Path | None,
    **flags: Any,
) -> None:
    """Time one batch from start to end, repeatedly, with an empty prefix cache."""
    from octavo.bench.offline import check_lengths, measure_latency
    from octavo.bench.workload import RandomWorkload

    bounds = parse_range(input_len), parse_range(output_len)
    _, core = _engine(model, flags)
    workload = RandomWorkload(batch_size, *bounds, seed=flags["seed"])
    requests = workload.requests(core.info.vocab_size)
    check_lengths(requests, core.info.max_model_len)
    result = measure_latency(
        core,
        requests,
        num_warm_up=num_iters_warmup,
        num_iterations=num_iters,
    )
    print(f"Avg latency: {result['avg_latency']} seconds")
    for percent, seconds in result["percentiles"].items():
        print(f"{percent}% percentile latency: {seconds} seconds")
    _write(result, output_json)


def _engine(model: str, flags: dict[str, Any]) -> "tuple[VllmConfig, EngineCore]":
    from octavo.engine.arg_utils import OFFLINE
    from octavo_runtime.engine.engine_core import EngineCore

    config = engine_settings(model, flags, OFFLINE)
    return config, EngineCore(config.engine_config)


def _report(result: dict[str, Any], output_json: Path | None) -> None:
    for name, value in result.items():
        print(f"{name:<28} {value:.3f}" if isinstance(value, float) else f"{name:<28} {value}")
    _write(result, output_json)


def _write(result: dict[str, Any], output_json: Path | None) -> None:
    """Raises `ConfigError` for a place that cannot be written."""
    if output_json is None:
        return
    try:
        output_json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {output_json}: {error.strerror}") from error


def _parameter(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, _KEYWORD, default=default, annotation=annotation)


def _number(help: str, minimum: int) -> Any:
    return Annotated[int, typer.Option(min=minimum, help=help)]


_SHARED = (
    _parameter("model", "smollm2", Model),
    _parameter("output_json", None, OutputJson),
)
_ENGINE = [
    each for each in serve_flags.parameters(_ENGINE_GROUPS) if each.name != "served_model_name"
]
throughput.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [*_SHARED, _parameter("backend", "vllm", Backend), *PARAMETERS, *_ENGINE]
)
latency.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        *_SHARED,
        _parameter("batch_size", 8, _number("Requests at once.", 1)),
        _parameter("input_len", "32", Lengths),
        _parameter("output_len", "128", Lengths),
        _parameter("num_iters", 10, _number("Timed runs.", 1)),
        _parameter("num_iters_warmup", 2, _number("Runs before them.", 0)),
        *_ENGINE,
    ]
)
app.command("throughput", cls=ServeCommand)(throughput)
app.command("latency", cls=ServeCommand)(latency)
app.command("serve", cls=FlexibleCommand)(bench_serve.serve)
