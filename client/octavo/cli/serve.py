"""`octavo serve`: one replica of one model, with the flags that users of `vllm serve` know."""

import dataclasses
import secrets
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from octavo.cli.options import option, size_option
from octavo_runtime.config import DTypeName, EngineConfig

_SERVED_NAMES = "--served-model-name"
_ENGINE: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(EngineConfig)}
LogLevel = Literal["debug", "info", "warning", "error"]


def serve(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="What to serve: a catalogue name (`smollm2`), a model folder, a .gguf file, or a "
            "hub name (org/name). Fetched first if it is not in the cache.",
        ),
    ],
    revision: Annotated[
        str | None, option("--revision", help="Branch, tag or commit of a hub model.")
    ] = None,
    host: Annotated[
        str, option("--host", help="Address to listen on; 0.0.0.0 for every interface.")
    ] = "127.0.0.1",
    port: Annotated[
        int, option("--port", help="Port to listen on; 0: any free one.", min=0, max=65535)
    ] = 8000,
    served_model_name: Annotated[
        list[str] | None,
        option(
            _SERVED_NAMES,
            help="Name of the model in the API; several names may follow, or repeat the flag. "
            "Default: MODEL as given.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        DTypeName, option("--dtype", help="Type of weights and activations; auto: the model's own.")
    ] = _ENGINE["dtype"],
    max_model_len: Annotated[
        Any,
        size_option(
            "--max-model-len", help="Longest prompt plus output, in tokens. Default: the model's."
        ),
    ] = None,
    max_num_seqs: Annotated[
        int, option("--max-num-seqs", help="Sequences in one step at most.", min=1)
    ] = _ENGINE["max_num_seqs"],
    max_num_batched_tokens: Annotated[
        Any, size_option("--max-num-batched-tokens", help="Token budget of one step.")
    ] = _ENGINE["max_num_batched_tokens"],
    long_prefill_token_threshold: Annotated[
        int,
        option(
            "--long-prefill-token-threshold",
            help="Longest prefill chunk of one sequence; 0: the whole budget.",
            min=0,
        ),
    ] = _ENGINE["long_prefill_token_threshold"],
    block_size: Annotated[int, option("--block-size", help="Tokens per KV block.", min=1)] = (
        _ENGINE["block_size"]
    ),
    enable_prefix_caching: Annotated[
        bool,
        option(
            "--enable-prefix-caching/--no-enable-prefix-caching",
            help="Reuse KV blocks of equal prompt prefixes.",
        ),
    ] = _ENGINE["enable_prefix_caching"],
    scheduling_policy: Annotated[
        Literal["fcfs", "priority"],
        option("--scheduling-policy", help="Order of the waiting queue."),
    ] = _ENGINE["scheduling_policy"],
    kv_cache_memory_bytes: Annotated[
        Any,
        size_option(
            "--kv-cache-memory-bytes",
            help="Size of the KV pool. Default: --kv-memory-fraction of the available memory.",
        ),
    ] = None,
    kv_memory_fraction: Annotated[
        float,
        option(
            "--kv-memory-fraction",
            help="Share of the available memory for the KV pool, as far as it can be used.",
            min=0.01,
            max=0.95,
        ),
    ] = _ENGINE["kv_memory_fraction"],
    num_gpu_blocks_override: Annotated[
        int | None,
        option(
            "--num-gpu-blocks-override",
            help="Number of KV blocks, whatever the memory (vLLM's name; on a CPU too).",
            min=1,
        ),
    ] = None,
    load_format: Annotated[
        Literal["auto", "dummy"],
        option("--load-format", help="dummy: random weights, to measure without loading."),
    ] = _ENGINE["load_format"],
    seed: Annotated[int, option("--seed", help="Seed of requests without their own.")] = (
        _ENGINE["seed"]
    ),
    threads: Annotated[
        int | None,
        option("--threads", help="CPU threads of the model. Default: every core.", min=1),
    ] = None,
    chat_template: Annotated[
        Path | None,
        option(
            "--chat-template",
            help="A Jinja file to use in place of the model's own chat template.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    max_body_bytes: Annotated[
        Any, size_option("--max-body-bytes", help="Largest request body; larger ones get a 413.")
    ] = 16 * 2**20,
    drain_timeout: Annotated[
        float,
        option("--drain-timeout", help="Seconds that running requests get at shutdown.", min=0),
    ] = 30.0,
    redis_url: Annotated[
        str | None,
        option("--redis-url", help="Redis to register at, for routers to find this replica."),
    ] = None,
    namespace: Annotated[
        str, option("--namespace", help="Namespace of the deployment in Redis.")
    ] = "default",
    deployment: Annotated[
        str, option("--deployment", help="Deployment that this replica belongs to.")
    ] = "default",
    replica_id: Annotated[
        str | None,
        option("--replica-id", help="This replica's name. Default: host name, port, four letters."),
    ] = None,
    advertise_url: Annotated[
        str | None,
        option("--advertise-url", help="URL at which routers reach this replica. Default: host."),
    ] = None,
    log_level: Annotated[LogLevel, option("--log-level", help="How much to log.")] = "info",
) -> None:
    """Serve one model over an OpenAI-compatible HTTP API.

    Every flag can also be set in the environment as OCTAVO_<FLAG> (OCTAVO_MAX_MODEL_LEN=4k).
    Sizes may be written as 4096, 4k (4000), 4K or 4Ki (4096), 1.5G.
    """
    from octavo.cli.console import ByteProgress
    from octavo_runtime.models.source import resolve_model
    from octavo_runtime.server.serve import ServeOptions, run_replica

    with ByteProgress() as progress:
        folder = resolve_model(model, revision=revision, progress=progress)
    engine = EngineConfig(
        model=folder,
        dtype=dtype,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        long_prefill_token_threshold=long_prefill_token_threshold,
        block_size=block_size,
        kv_cache_memory_bytes=kv_cache_memory_bytes,
        kv_memory_fraction=kv_memory_fraction,
        num_gpu_blocks_override=num_gpu_blocks_override,
        enable_prefix_caching=enable_prefix_caching,
        scheduling_policy=scheduling_policy,
        load_format=load_format,
        seed=seed,
        num_threads=threads,
    )
    run_replica(
        ServeOptions(
            model=folder,
            served_names=tuple(served_model_name or [model]),
            host=host,
            port=port,
            engine=engine,
            redis_url=redis_url,
            namespace=namespace,
            deployment=deployment,
            replica_id=replica_id or f"{socket.gethostname()}-{port}-{secrets.token_hex(2)}",
            advertise_url=advertise_url,
            drain_timeout_s=drain_timeout,
            max_body_bytes=max_body_bytes,
            chat_template=chat_template,
            log_level=log_level,
        )
    )


def spread_served_names(arguments: Sequence[str]) -> list[str]:
    """`serve MODEL --served-model-name a b` as `… --served-model-name a --served-model-name b`.

    Only where MODEL stands before the flag: after it, a bare word could be MODEL itself.
    """
    if not arguments or arguments[0] != "serve" or len(arguments) < 2:
        return list(arguments)
    if arguments[1].startswith("-"):
        return list(arguments)
    spread: list[str] = []
    is_open = False
    for argument in arguments:
        if argument.startswith("-"):
            is_open = argument == _SERVED_NAMES
            if not is_open:
                spread.append(argument)
        elif is_open:
            spread += [_SERVED_NAMES, argument]
        else:
            spread.append(argument)
    return spread
