"""`octavo serve`: one replica of one model, with the flags that users of `vllm serve` know."""

import dataclasses
import inspect
import os
import secrets
import socket
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octavo.cli import serve_flags
from octavo.cli.environment import warnings_about
from octavo_protocol.errors import ConfigError

if TYPE_CHECKING:
    from octavo.engine.vllm_config import VllmConfig
    from octavo_runtime.server.serve import ServeOptions


Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="What to serve: a catalogue name (`smollm2`), a model folder, a .gguf file, or a "
        "hub name (org/name). Fetched first if it is not in the cache.",
        show_default=False,
    ),
]
ModelFlag = Annotated[str | None, typer.Option("--model", help="MODEL, as a flag.", hidden=True)]


def serve(*, model: str | None, model_flag: str | None, **flags: Any) -> None:
    """Serve one model over an OpenAI-compatible HTTP API.

    Every flag can also be set in the environment as OCTAVO_<FLAG> (OCTAVO_MAX_MODEL_LEN=4k), or in
    a YAML file that --config names (`max-model-len: 4k`). Sizes may be written as 4096, 4k (4000),
    4K or 4Ki (4096), 1.5G. --help=WORD shows one group of flags, or those that mention WORD.
    """
    from octavo_runtime.server.serve import run_replica

    name = model or model_flag
    if name is None:
        raise ConfigError("name the model to serve, for example: octavo serve smollm2")
    for warning in warnings_about(os.environ):
        print(f"octavo: warning: {warning}", file=sys.stderr)
    run_replica(serve_options(name, flags))


def serve_options(model: str, flags: dict[str, Any]) -> "ServeOptions":
    """What the flags ask for; the model is fetched if needed. None: the flag was not given.

    Raises `OctavoError` for what cannot be done.
    """
    from octavo_runtime.server.lora_modules import LoRAModule
    from octavo_runtime.server.serve import ServeOptions

    engine = engine_settings(model, flags)
    engine_arguments = _engine_arguments()
    given: dict[str, Any] = {
        name: value
        for name, value in serve_flags.given(flags).items()
        if name not in engine_arguments
    }
    structured = engine.structured_outputs_config
    if structured.enable_in_reasoning:
        raise ConfigError(
            "--structured-outputs-config.enable_in_reasoning is not supported by a server: "
            "constraints begin where reasoning ends; leave it out"
        )
    if structured.reasoning_parser:
        given.setdefault("reasoning_parser", structured.reasoning_parser)
    modules = tuple(LoRAModule.parse(each) for each in given.pop("lora_modules", ()))
    if modules and engine.engine_config.lora is None:
        raise ConfigError("--lora-modules needs --enable-lora")
    names = given.pop("served_model_name", None) or [model]
    limits = (given.pop("override_max_tokens", None), engine.max_tokens_cap)
    caps = [limit for limit in limits if limit is not None]
    given.setdefault(
        "replica_id", f"{socket.gethostname()}-{given.get('port')}-{secrets.token_hex(2)}"
    )
    return ServeOptions(
        model=engine.engine_config.model,
        served_names=tuple(names),
        engine=engine.engine_config,
        tokenizer=engine.tokenizer_folder,
        lora_modules=modules,
        default_sampling_params=engine.default_sampling_params,
        override_max_tokens=min(caps, default=None),
        structured_outputs_config=dataclasses.asdict(structured),
        **given,
    )


def engine_settings(
    model: str, flags: dict[str, Any], usage_context: str | None = None
) -> "VllmConfig":
    """The engine that the flags ask for; the model is fetched if needed. Raises `OctavoError`."""
    from octavo.cli.console import ByteProgress
    from octavo.engine.arg_utils import EngineArgs
    from octavo_runtime.models.source import resolve_model

    given = serve_flags.given(flags)
    with ByteProgress() as progress:
        folder = resolve_model(model, revision=given.get("revision"), progress=progress)
    known = _engine_arguments() - {"revision"}
    arguments: dict[str, Any] = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in given.items()
        if name in known
    }
    return EngineArgs(model=str(folder), **arguments).create_engine_config(usage_context)


def _engine_arguments() -> set[str]:
    from octavo.engine.arg_utils import EngineArgs

    # Templates belong to the server, and so do the names that it answers to.
    of_server = {"chat_template", "reasoning_parser", "served_model_name"}
    return {each.name for each in dataclasses.fields(EngineArgs)} - of_server


def _signature() -> inspect.Signature:
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Signature(
        [
            inspect.Parameter("model", keyword, default=None, annotation=Model),
            inspect.Parameter("model_flag", keyword, default=None, annotation=ModelFlag),
            *serve_flags.parameters(),
        ]
    )


serve.__signature__ = _signature()  # type: ignore[attr-defined]  # typer reads the table from it
