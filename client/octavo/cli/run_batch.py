"""`octavo run-batch`: a file of requests in OpenAI's batch format, answered without a server."""

import dataclasses
import inspect
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from octavo.cli import serve_flags
from octavo.cli.serve import serve_options
from octavo_protocol.http_options import HttpOptions

_KEYWORD = inspect.Parameter.KEYWORD_ONLY
_ENGINE_GROUPS = ("Model", "Load", "Parallel", "Cache", "Scheduler", "CUDA graphs")
_GROUPS = (*_ENGINE_GROUPS, "LoRA", "Frontend", "Observability")
# There is no HTTP server, so what concerns one is left out.
_LEFT_OUT = {each.name for each in dataclasses.fields(HttpOptions)} | {
    *("sse_keep_alive_interval", "enable_tokenizer_info_endpoint", "dev_mode"),
    *(
        "allow_runtime_lora_updating",
        "enable_server_load_tracking",
        "metrics_names",
        "show_old_metrics",
    ),
}

InputFile = Annotated[
    str,
    typer.Option("--input-file", "-i", metavar="FILE", help="Requests, a line each: file or URL."),
]
OutputFile = Annotated[
    str,
    typer.Option("--output-file", "-o", metavar="FILE", help="Where answers go: file or URL."),
]
Model = Annotated[str, typer.Option("--model", help="Catalogue name, folder, .gguf or hub name.")]
MaxInFlight = Annotated[
    int, typer.Option("--max-inflight", min=1, help="Requests in the engine at once.")
]
TemporaryFolder = Annotated[
    Path | None,
    typer.Option("--output-tmp-dir", help="Where the answers lie until all are there."),
]


def run_batch(
    *,
    input_file: str,
    output_file: str,
    model: str,
    max_inflight: int,
    output_tmp_dir: Path | None,
    **flags: Any,
) -> None:
    """Answer a file of requests in OpenAI's batch format.

    Each line is {"custom_id": …, "method": "POST", "url": "/v1/chat/completions", "body": {…}};
    the answers come in the same order. A line that is no request, and one that fails, get an
    error there and do not disturb the others. The output appears when all is done.
    """
    import asyncio

    from tqdm import tqdm

    from octavo.run_batch import run_batch as run
    from octavo.run_batch_files import read_lines, writing

    lines = read_lines(input_file)
    with writing(output_file, temporary_folder=output_tmp_dir) as file:
        options = serve_options(model, flags)
        with tqdm(total=len(lines), desc="Requests", unit="req", file=sys.stderr) as bar:
            answers = asyncio.run(
                run(options, lines, max_in_flight=max_inflight, progress=bar.update)
            )
        file.writelines(answers)


def _signature() -> inspect.Signature:
    own = (
        inspect.Parameter("input_file", _KEYWORD, annotation=InputFile),
        inspect.Parameter("output_file", _KEYWORD, annotation=OutputFile),
        inspect.Parameter("model", _KEYWORD, annotation=Model),
        inspect.Parameter("max_inflight", _KEYWORD, default=256, annotation=MaxInFlight),
        inspect.Parameter("output_tmp_dir", _KEYWORD, default=None, annotation=TemporaryFolder),
    )
    shared = serve_flags.parameters(_GROUPS)
    return inspect.Signature([*own, *(each for each in shared if each.name not in _LEFT_OUT)])


run_batch.__signature__ = _signature()  # type: ignore[attr-defined]  # typer reads it
