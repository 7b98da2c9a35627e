"""The flags of `octavo serve`, by groups: one line for each. Defaults are those of the options.

A flag's name is that of the field which it sets, in `EngineArgs` or `ServeOptions`, but for
`RENAMED`.
"""

import dataclasses
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from octavo.cli.options import json_option, option, parse_length, size_option
from octavo_protocol.http_options import HttpOptions
from octavo_runtime.config import (
    ConvertName,
    DeviceName,
    EngineConfig,
    KVCacheDTypeName,
    LogprobsMode,
    LoRAConfig,
    RunnerName,
)
from octavo_runtime.server.options import ApiOptions, FingerprintMode, MetricsNames

RENAMED = {
    "threads": "num_threads",
    "drain_timeout": "drain_timeout_s",
    "emit_reasoning_content": "reasoning_content_field",
}
HTTP = "HTTP server"  # these the router has too
_JSON = "json"
_SIZE = "size"


@dataclass(frozen=True, slots=True)
class ServeFlag:
    """kind: a type, `_SIZE` or `_JSON`. settings: for `option`, and also `default`, the flag's own,
    and `aliases`, other spellings.
    """

    name: str
    kind: Any
    help: str
    settings: Mapping[str, Any]


def _flag(name: str, kind: Any, help: str, **settings: Any) -> ServeFlag:
    return ServeFlag(name, kind, help, settings)


GROUPS: dict[str, tuple[ServeFlag, ...]] = {
    "Model": (
        _flag("revision", str, "Branch, tag or commit of a hub model."),
        _flag("tokenizer", str, "Model or folder whose tokenizer to use. Default: MODEL's."),
        _flag("tokenizer_revision", str, "Branch, tag or commit of the tokenizer's hub model."),
        _flag(
            "served_model_name",
            list[str],
            "Name of the model in the API; several names may follow, or repeat the flag. "
            "Default: MODEL as given.",
        ),
        _flag(
            "dtype",
            Literal["auto", "bfloat16", "float16", "half", "float32", "float"],
            "Type of weights and activations; auto: the model's own.",
        ),
        _flag(
            "max_model_len",
            _SIZE,
            "Longest prompt plus output, in tokens; auto: what fits in memory. Default: the "
            "model's.",
            parser=parse_length,
        ),
        _flag(
            "runner",
            RunnerName,
            "Whether the model generates text or pools (embeds, classifies, scores); auto: what "
            "it is for.",
        ),
        _flag(
            "convert",
            ConvertName,
            "What a model that generates becomes in order to pool; auto: an embedder.",
        ),
        _flag(
            "pooler_config",
            _JSON,
            'How it pools, over its own files: {"pooling_type": "MEAN", "use_activation": false}.',
            default=None,
        ),
        _flag("seed", int, "Seed of requests without their own."),
        _flag("hf_overrides", _JSON, "Keys that replace those of the model's config.json."),
        _flag(
            "generation_config",
            str,
            "Where sampling defaults come from; auto: the model, vllm: nowhere, or a folder.",
            default="auto",
        ),
        _flag(
            "override_generation_config",
            _JSON,
            'Sampling defaults over those, as {"temperature": 0.5}.',
        ),
        _flag("max_logprobs", int, "Most logprobs a request may ask for; -1: no limit.", min=-1),
        _flag("logprobs_mode", LogprobsMode, "Which numbers logprobs are."),
        _flag(
            "logits_processors",
            list[str],
            "module:Class of a logits processor for every request; repeat for several.",
        ),
        _flag("enable_sleep_mode", bool, "The model's memory can be given back for a while."),
    ),
    "Load": (
        _flag(
            "load_format",
            Literal["auto", "hf", "safetensors", "dummy", "fastsafetensors", "runai_streamer"],
            "dummy: random weights, to measure without loading; the others: what the files are.",
        ),
    ),
    "Parallel": (
        _flag("device", DeviceName, "What computes; auto: a GPU where there is one."),
        _flag(
            "threads", int, "CPU threads of the model. Default: every core.", min=1, default=None
        ),
        _flag(
            "tensor_parallel_size",
            int,
            "GPUs of this machine that compute the model together, each with a part of it.",
            min=1,
            aliases=("-tp",),
        ),
    ),
    "Cache": (
        _flag("block_size", int, "Tokens per KV block.", min=1),
        _flag("enable_prefix_caching", bool, "Reuse KV blocks of equal prompt prefixes."),
        _flag(
            "kv_cache_dtype",
            KVCacheDTypeName,
            "Type of stored keys and values; auto: as --dtype. fp8 (fp8_e4m3, on a GPU): half the "
            "bytes of bfloat16.",
        ),
        _flag(
            "kv_cache_memory_bytes",
            _SIZE,
            "Size of the KV pool. Default: what --gpu-memory-utilization leaves, or on a CPU "
            "--kv-memory-fraction of the available memory.",
        ),
        _flag(
            "gpu_memory_utilization",
            float,
            "Share of the GPU's memory for weights, the largest step and the KV pool.",
            min=0.01,
            max=1.0,
            aliases=("--device-memory-utilization",),
        ),
        _flag(
            "kv_memory_fraction",
            float,
            "On a CPU: share of the available memory for the KV pool, as far as it can be used.",
            min=0.01,
            max=0.95,
        ),
        _flag(
            "num_gpu_blocks_override",
            int,
            "Number of KV blocks, whatever the memory (vLLM's name; on a CPU too).",
            min=1,
        ),
    ),
    "Scheduler": (
        _flag(
            "max_num_seqs",
            int,
            "Sequences in one step at most. Default: 64 on a CPU, 256 on a GPU.",
            min=1,
        ),
        _flag(
            "max_num_batched_tokens",
            _SIZE,
            "Token budget of one step. Default: 512 on a CPU, 8192 on a GPU.",
        ),
        _flag(
            "long_prefill_token_threshold",
            int,
            "Longest prefill chunk of one sequence; 0: the whole budget.",
            min=0,
        ),
        _flag("scheduling_policy", Literal["fcfs", "priority"], "Order of the waiting queue."),
    ),
    "LoRA": (
        _flag("enable_lora", bool, "Requests may use LoRA adapters.", default=False),
        _flag(
            "lora_modules",
            list[str],
            "Adapter to load at the start, as name=path or JSON with name, path and "
            "base_model_name; several may follow. path: folder, hub name or URL.",
            default=None,
        ),
        _flag("max_loras", int, "Adapters in one step, each in a slot of the device.", min=1),
        _flag(
            "max_lora_rank",
            int,
            "The largest rank of an adapter: 1, 8, 16, 32, 64, 128, 256, 320 or 512. Memory is set "
            "aside for it.",
        ),
        _flag(
            "max_cpu_loras",
            int,
            "Adapters in host memory; the least recently used ones make room. Default: "
            "--max-loras.",
            min=1,
        ),
        _flag(
            "lora_dtype",
            Literal["auto", "bfloat16", "float16", "half", "float32", "float"],
            "Type of the adapters' matrices; auto: the model's.",
        ),
        _flag(
            "lora_target_modules",
            list[str],
            "Ends of the names of the layers that adapters may change. Default: every linear one.",
        ),
        _flag(
            "allow_runtime_lora_updating",
            bool,
            "/v1/load_lora_adapter and /v1/unload_lora_adapter exist: whoever can call them "
            "chooses which adapters the server reads.",
        ),
    ),
    "CUDA graphs": (
        _flag("enforce_eager", bool, "No CUDA graphs: a quicker start, slower decoding."),
        _flag(
            "cudagraph_capture_sizes",
            list[int],
            "Batch sizes of decode steps that get a graph. Default: a ladder of them.",
        ),
        _flag(
            "max_cudagraph_capture_size",
            int,
            "The largest of them. Default: --max-num-seqs, at most 512.",
            min=0,
        ),
        _flag(
            "compilation_config",
            _JSON,
            "The same by vLLM's names: cudagraph_capture_sizes, max_cudagraph_capture_size, "
            "cudagraph_mode NONE. Other keys change nothing.",
            aliases=("-cc",),
        ),
    ),
    HTTP: (
        _flag(
            "host",
            str,
            "Address to listen on; 0.0.0.0 for every interface.",
            default="127.0.0.1",
        ),
        _flag("port", int, "Port to listen on; 0: any free one.", min=0, max=65535),
        _flag("uds", Path, "Unix socket to listen on, instead of host and port."),
        _flag(
            "otlp_traces_endpoint",
            str,
            "URL that takes OpenTelemetry traces over OTLP/HTTP, as http://collector:4318/v1/traces.",
            default=None,
        ),
        _flag("root_path", str, "Prefix under which a proxy in front publishes the server."),
        _flag("api_key", list[str], "Key that opens the server; several may follow."),
        _flag("allowed_origins", list[str], "Origins of web pages that may ask (CORS)."),
        _flag("allowed_methods", list[str], "Methods that they may use."),
        _flag("allowed_headers", list[str], "Headers that they may send."),
        _flag("allow_credentials", bool, "They may send credentials."),
        _flag("middleware", list[str], "Import path of ASGI middleware; repeat for several."),
        _flag("ssl_keyfile", Path, "Private key of the server's certificate (HTTPS)."),
        _flag("ssl_certfile", Path, "The server's certificate (HTTPS)."),
        _flag("ssl_ca_certs", Path, "Authorities that sign clients' certificates."),
        _flag("ssl_cert_reqs", int, "2: clients need a certificate.", min=0, max=2),
        _flag("ssl_ciphers", str, "OpenSSL's list of ciphers (TLS 1.2 and older)."),
        _flag("disable_fastapi_docs", bool, "No /docs, /redoc and /openapi.json."),
        _flag("disable_uvicorn_access_log", bool, "No line per HTTP request."),
        _flag("disable_access_log_for_endpoints", list[str], "No line for these paths."),
    ),
    "Frontend": (
        _flag(
            "chat_template",
            Path,
            "A Jinja file to use in place of the model's own chat template.",
            exists=True,
            dir_okay=False,
        ),
        _flag(
            "chat_template_content_format",
            Literal["auto", "string", "openai"],
            "How the template reads a message's content.",
        ),
        _flag("default_chat_template_kwargs", _JSON, "Variables of the template by default."),
        _flag("trust_request_chat_template", bool, "Requests may bring their own template."),
        _flag("tool_call_parser", str, "What finds tool calls in an answer."),
        _flag("enable_auto_tool_choice", bool, "The model decides when to call a tool."),
        _flag(
            "exclude_tools_when_tool_choice_none",
            bool,
            "With tool_choice none the prompt has no tools.",
            default=False,
        ),
        _flag("tool_parser_plugin", str, "Python file that registers more tool parsers."),
        _flag("reasoning_parser", str, "What splits reasoning from the answer."),
        _flag(
            "emit_reasoning_content",
            bool,
            "Reasoning also under its older name, reasoning_content.",
            default=False,
        ),
        _flag("response_role", str, "Role of answers."),
        _flag(
            "structured_outputs_config",
            _JSON,
            "Every constraint's disable_any_whitespace and disable_additional_properties.",
        ),
        _flag("override_max_tokens", int, "No answer gets more tokens than this.", min=1),
        _flag("return_tokens_as_token_ids", bool, "Tokens in logprobs are `token_id:N`."),
        _flag("enable_force_include_usage", bool, "Every stream ends with its usage."),
        _flag(
            "sse_keep_alive_interval",
            float,
            "Seconds after which a silent stream gets a comment; 0: never.",
            min=0,
        ),
        _flag("fingerprint_mode", FingerprintMode, "What system_fingerprint tells."),
        _flag("fingerprint_value", str, "system_fingerprint with --fingerprint-mode custom."),
        _flag("enable_tokenizer_info_endpoint", bool, "/tokenizer_info exists."),
        _flag("skip_model_name_validation", bool, "Requests may name any model."),
        _flag("dev_mode", bool, "Routes that stop, empty and inspect the engine exist."),
        _flag(
            "max_body_bytes",
            _SIZE,
            "Largest request body; larger ones get a 413.",
            default=16 * 2**20,
        ),
    ),
    "Observability": (
        _flag(
            "log_level",
            Literal["debug", "info", "warning", "error"],
            "How much to log.",
            default="info",
        ),
        _flag("enable_log_requests", bool, "A line per finished request: counts and times."),
        _flag("enable_log_outputs", bool, "With its prompt and outputs."),
        _flag("max_log_len", int, "Longest text of those, in characters.", min=0),
        _flag("enable_server_load_tracking", bool, "/load counts requests."),
        _flag("metrics_names", MetricsNames, "Prefixes under which metrics are shown."),
        _flag("show_old_metrics", bool, "Metrics also under names that vLLM has removed."),
        _flag("profiler_config", _JSON, "Profiles: profiler torch, torch_profiler_dir a folder."),
    ),
    "Octavo": (
        _flag("redis_url", str, "Redis to register at, for routers to find this replica."),
        _flag("namespace", str, "Namespace of the deployment in Redis.", default="default"),
        _flag("deployment", str, "Deployment that this replica belongs to.", default="default"),
        _flag("replica_id", str, "This replica's name. Default: host name, port, four letters."),
        _flag("advertise_url", str, "URL at which routers reach this replica. Default: host."),
        _flag(
            "drain_timeout",
            float,
            "Seconds that running requests get at shutdown.",
            min=0,
            default=30.0,
        ),
    ),
}

_OPTIONS = (EngineConfig, LoRAConfig, HttpOptions, ApiOptions)
_DEFAULTS = {
    each.name: each.default
    for options in _OPTIONS
    for each in dataclasses.fields(options)
    if each.default is not dataclasses.MISSING
}


def parameters(groups: Iterable[str] = tuple(GROUPS)) -> list[inspect.Parameter]:
    """The flags of `groups` as keyword parameters that typer reads."""
    return [
        inspect.Parameter(
            flag.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=_default(flag),
            annotation=_annotation(flag, group),
        )
        for group in groups
        for flag in GROUPS[group]
    ]


def given(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that flags set, lists as tuples. None: the flag was not given."""
    return {
        RENAMED.get(name, name): tuple(value) if isinstance(value, list) else value
        for name, value in flags.items()
        if value is not None
    }


def _default(flag: ServeFlag) -> Any:
    """None where only the options know: a parameter that is None is not passed on."""
    default = flag.settings.get("default", _DEFAULTS.get(flag.name))
    return list(default) or None if isinstance(default, tuple) else default


def _annotation(flag: ServeFlag, group: str) -> Any:
    settings = {name: value for name, value in flag.settings.items() if name != "default"}
    aliases = settings.pop("aliases", ())
    settings["rich_help_panel"] = group
    name = "--" + flag.name.replace("_", "-")
    default = _default(flag)
    settings["show_default"] = default not in (None, "") and flag.kind not in (bool, list[str])
    if flag.kind == _JSON:
        return Annotated[Any, json_option(name, *aliases, help=flag.help, **settings)]
    if flag.kind == _SIZE:
        return Annotated[Any, size_option(name, help=flag.help, **settings)]
    kind = flag.kind if default is not None else flag.kind | None
    if flag.kind is bool:
        name = f"{name}/--no-{flag.name.replace('_', '-')}"
    return Annotated[kind, option(name, *aliases, help=flag.help, **settings)]
