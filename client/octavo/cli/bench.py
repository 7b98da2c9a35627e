"""`octavo bench throughput | latency | serve`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from octavo.bench.workload import RandomWorkload
    from octavo_runtime.engine.engine_core import EngineCore

app = typer.Typer(
    help="Measure the engine here, or a running server.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Model = Annotated[str, typer.Option("--model", help="Model name, folder or .gguf file.")]
NumPrompts = Annotated[int, typer.Option("--num-prompts", min=1, help="Requests in all.")]
InputLen = Annotated[
    str, typer.Option("--input-len", help="Prompt tokens: a number, or a range as 64-256.")
]
OutputLen = Annotated[
    str, typer.Option("--output-len", help="Output tokens: a number, or a range as 64-128.")
]
PrefixLen = Annotated[
    int, typer.Option("--prefix-len", min=0, help="Tokens that all prompts share at their start.")
]
Seed = Annotated[int, typer.Option("--seed", help="Of the random prompts and arrivals.")]
OutputJson = Annotated[
    Path | None, typer.Option("--output-json", help="Also write the result to this file.")
]
DType = Annotated[str, typer.Option("--dtype", help="auto, bfloat16 or float32.")]


@app.command("throughput")
def throughput(
    model: Model = "smollm2",
    num_prompts: NumPrompts = 32,
    input_len: InputLen = "64-256",
    output_len: OutputLen = "64-128",
    prefix_len: PrefixLen = 0,
    dtype: DType = "auto",
    seed: Seed = 0,
    output_json: OutputJson = None,
) -> None:
    """Run all requests at once, in this process, and print tokens per second."""
    from tqdm import tqdm

    from octavo.bench.offline import run_requests

    core = _engine(model, dtype)
    requests = _workload(num_prompts, input_len, output_len, prefix_len, seed).requests(
        core.info.vocab_size
    )
    with tqdm(total=len(requests), desc="Requests", unit="req") as bar:
        result = run_requests(core, requests, progress=bar.update)
    _report(result.as_json(), output_json)


@app.command("latency")
def latency(
    model: Model = "smollm2",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Requests at once.")] = 8,
    input_len: InputLen = "32",
    output_len: OutputLen = "128",
    num_iters: Annotated[int, typer.Option("--num-iters", min=1, help="Timed runs.")] = 10,
    num_iters_warmup: Annotated[
        int, typer.Option("--num-iters-warmup", min=0, help="Runs before them.")
    ] = 2,
    dtype: DType = "auto",
    seed: Seed = 0,
    output_json: OutputJson = None,
) -> None:
    """Time one batch from start to end, repeatedly, with an empty prefix cache."""
    from octavo.bench.offline import measure_latency

    core = _engine(model, dtype)
    requests = _workload(batch_size, input_len, output_len, 0, seed).requests(core.info.vocab_size)
    result = measure_latency(core, requests, num_warm_up=num_iters_warmup, num_iterations=num_iters)
    _report(result, output_json)


@app.command("serve")
def serve(
    base_url: Annotated[
        str, typer.Option("--base-url", help="Server or router, without /v1.")
    ] = "http://127.0.0.1:8000",
    model: Annotated[
        str | None, typer.Option("--model", help="Served name. Default: the first one listed.")
    ] = None,
    num_prompts: NumPrompts = 100,
    input_len: InputLen = "64-256",
    output_len: OutputLen = "64-128",
    prefix_len: PrefixLen = 0,
    request_rate: Annotated[
        float, typer.Option("--request-rate", help="Arrivals per second (Poisson); inf = at once.")
    ] = float("inf"),
    max_concurrency: Annotated[
        int | None, typer.Option("--max-concurrency", min=1, help="Requests in flight at most.")
    ] = None,
    vocab_size: Annotated[
        int, typer.Option("--vocab-size", min=2, help="Token ids of the prompts lie below it.")
    ] = 32000,
    api_key: Annotated[
        str | None, typer.Option("--api-key", envvar="OCTAVO_API_KEY", help="Bearer token.")
    ] = None,
    seed: Seed = 0,
    output_json: OutputJson = None,
) -> None:
    """Send streaming completions to a running server and print its times."""
    import asyncio

    from tqdm import tqdm

    from octavo.bench.online import run_load, summarise
    from octavo.chat_client import ChatClient

    if model is None:
        client = ChatClient(base_url, api_key=api_key)
        model = client.models()[0]
        client.close()
    requests = _workload(num_prompts, input_len, output_len, prefix_len, seed).requests(vocab_size)
    with tqdm(total=len(requests), desc="Requests", unit="req") as bar:
        seconds, results = asyncio.run(
            run_load(
                base_url.rstrip("/"),
                model,
                requests,
                request_rate=request_rate,
                max_concurrency=max_concurrency,
                api_key=api_key,
                seed=seed,
                progress=bar.update,
            )
        )
    _report(summarise(seconds, requests, results), output_json)


def parse_range(text: str) -> tuple[int, int]:
    """`64` is (64, 64), `64-256` is (64, 256). Raises `typer.BadParameter`."""
    low, _, high = text.partition("-")
    try:
        bounds = int(low), int(high or low)
    except ValueError:
        bounds = 0, 0
    if not 1 <= bounds[0] <= bounds[1]:
        raise typer.BadParameter(f"{text!r} is not a length; write a number, or a range as 64-256")
    return bounds


def _workload(
    num_prompts: int, input_len: str, output_len: str, prefix_len: int, seed: int
) -> "RandomWorkload":
    from octavo.bench.workload import RandomWorkload

    return RandomWorkload(
        num_prompts, parse_range(input_len), parse_range(output_len), prefix_len, seed
    )


def _engine(model: str, dtype: str) -> "EngineCore":
    from octavo_runtime.config import EngineConfig
    from octavo_runtime.engine.engine_core import EngineCore
    from octavo_runtime.models.source import resolve_model

    if dtype not in ("auto", "bfloat16", "float16", "float32"):
        raise typer.BadParameter(f"{dtype!r} is none of auto, bfloat16, float16, float32")
    return EngineCore(EngineConfig(model=resolve_model(model), dtype=dtype))  # type: ignore[arg-type]


def _report(result: dict[str, Any], output_json: Path | None) -> None:
    for name, value in result.items():
        print(f"{name:<28} {value:.3f}" if isinstance(value, float) else f"{name:<28} {value}")
    if output_json is not None:
        output_json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
