"""`EngineArgs`: every argument of an engine, as vLLM names them, with what it means here."""

# ruff: noqa: RUF009  # honoured, tuning and missing make fields

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from octavo.engine.argument_kinds import honoured, missing, tuning
from octavo.engine.command_line import add_arguments
from octavo.engine.vllm_config import VllmConfig
from octavo.old_arguments import EngineArgsMeta

DEFAULT_MODEL = "smollm2"
OFFLINE = "LLM_CLASS"  # vLLM's word for it


@dataclass
class EngineArgs(metaclass=EngineArgsMeta):
    """Arguments of an engine. `create_engine_config` checks them and finds the model.

    runner: "generate" or "pooling"; "auto" = what the model is for. convert: what a model that
    generates is turned into to pool: "embed", "classify", or "none"; "auto" = by its class.
    pooler_config: a `PoolerConfig`, or its fields as a dict.
    max_model_len: tokens; None = the model's own, -1 or "auto" = the most that fits in memory.
    hf_overrides: keys over config.json, or a function from the Hugging Face config to another.
    generation_config: "auto" = the model's own defaults, "vllm" = none, or a folder.
    logits_processors: classes or "module:Class", for every request.
    kv_memory_fraction: share of the free memory for KV blocks; Octavo's own.
    num_threads: threads of the model; Octavo's own.
    tensor_parallel_size: GPUs of this machine that compute the model together.
    device: "auto" = a GPU where there is one, "cpu" or "cuda".
    max_num_seqs, max_num_batched_tokens: None = 64 and 512 on a CPU, 256 and 8,192 (offline:
    16,384) on a GPU.
    max_loras: adapters in one step. max_lora_rank: the largest. max_cpu_loras: adapters in host
    memory; None = max_loras. All of `lora` only count with enable_lora.
    compilation_config: a `CompilationConfig`, its fields as a dict, or vLLM's level.

    A keyword that vLLM has removed is translated, with a DeprecationWarning; an unknown one is a
    TypeError that names the nearest.
    """

    model: str = honoured(DEFAULT_MODEL)
    # The model's files
    tokenizer: str | None = honoured(None)
    revision: str | None = honoured(None)
    tokenizer_revision: str | None = honoured(None)
    served_model_name: str | list[str] | None = honoured(None)
    skip_tokenizer_init: bool = honoured(False)
    hf_overrides: Mapping[str, Any] | Callable[[Any], Any] | None = honoured(None)
    load_format: str = honoured("auto")
    chat_template: str | None = honoured(None)
    tokenizer_mode: str = missing("auto", "hf")
    hf_token: bool | str | None = missing(None, False)
    hf_config_path: str | None = missing(None)
    config_format: str = missing("auto", "hf")
    code_revision: str | None = missing(None)
    download_dir: str | None = missing(None)
    model_loader_extra_config: dict[str, Any] | None = missing(None)
    trust_remote_code: bool = tuning(False)  # no repository's code is ever run
    ignore_patterns: str | list[str] | None = tuning(None)
    use_tqdm_on_load: bool = tuning(True)
    safetensors_load_strategy: str | None = tuning(None)
    pt_load_map_location: str = tuning("cpu")
    # What kind of model
    runner: str = honoured("auto")
    convert: str = honoured("auto")
    pooler_config: Any = honoured(None)
    model_impl: str = missing("auto", "vllm")
    io_processor_plugin: str | None = missing(None)
    enable_prompt_embeds: bool = missing(False)
    # Numbers
    dtype: Any = honoured("auto")
    seed: int | None = honoured(0)
    quantization: str | None = missing(None)
    quantization_config: Any = missing(None)
    allow_deprecated_quantization: bool = tuning(False)
    # Context, memory and scheduling
    max_model_len: int | str | None = honoured(None)
    max_num_seqs: int | None = honoured(None)
    max_num_batched_tokens: int | None = honoured(None)
    long_prefill_token_threshold: int = honoured(0)
    block_size: int | None = honoured(None)
    enable_prefix_caching: bool | None = honoured(True)
    kv_cache_memory_bytes: int | None = honoured(None)
    kv_memory_fraction: float = honoured(0.3)
    num_gpu_blocks_override: int | None = honoured(None)
    scheduling_policy: str = honoured("fcfs")
    num_threads: int | None = honoured(None)
    device: Any = honoured("auto")
    gpu_memory_utilization: float = honoured(0.92)
    kv_cache_dtype: str = honoured("auto")
    enable_chunked_prefill: bool | None = tuning(True)
    scheduler_cls: Any = missing(None)
    prefix_caching_hash_algo: str = tuning("sha256")
    max_num_partial_prefills: int = tuning(1)
    max_long_partial_prefills: int = tuning(1)
    disable_sliding_window: bool = missing(False)
    async_scheduling: bool | None = tuning(None)
    stream_interval: int = tuning(1)
    disable_chunked_mm_input: bool = tuning(False)
    disable_hybrid_kv_cache_manager: bool | None = tuning(None)
    watermark: float = tuning(0.0)
    cpu_offload_gb: float = tuning(0)
    offload_backend: str = tuning("auto")
    offload_group_size: int = tuning(0)
    offload_num_in_group: int = tuning(1)
    offload_prefetch_step: int = tuning(1)
    offload_params: Any = tuning(None)
    kv_offloading_size: float | None = tuning(None)
    kv_offloading_backend: str = tuning("native")
    # Sampling
    generation_config: str = honoured("auto")
    override_generation_config: dict[str, Any] = honoured({})
    logits_processors: list[Any] | None = honoured(None)
    max_logprobs: int = honoured(20)
    logprobs_mode: str = honoured("raw_logprobs")
    structured_outputs_config: Any = honoured(None)
    reasoning_parser: str = honoured("")
    reasoning_parser_plugin: str = missing("")
    reasoning_config: Any = missing(None)
    enable_return_routed_experts: bool = missing(False)
    return_sampling_mask: bool = missing(False)
    enable_trace_replay: bool = missing(False)
    watermark_config: Any = missing(None)
    speculative_config: Any = missing(None)
    spec_method: str | None = missing(None)
    spec_model: str | None = missing(None)
    spec_tokens: int | None = missing(None)
    # Adapters
    enable_lora: bool = honoured(False)
    max_loras: int = honoured(1)
    max_lora_rank: int = honoured(16)
    max_cpu_loras: int | None = honoured(None)
    lora_dtype: Any = honoured("auto")
    lora_target_modules: list[str] | None = honoured(None)
    fully_sharded_loras: bool = tuning(False)
    default_mm_loras: dict[str, str] | None = missing(None)
    # Images, audio, video
    limit_mm_per_prompt: dict[str, Any] | None = tuning(None)
    mm_processor_kwargs: dict[str, Any] | None = tuning(None)
    media_io_kwargs: dict[str, Any] | None = tuning(None)
    mm_processor_cache_gb: float = tuning(4)
    mm_processor_cache_type: str = tuning("lru")
    mm_encoder_tp_mode: str = tuning("weights")
    mm_encoder_only: bool = missing(False)
    enable_mm_embeds: bool = missing(False)
    language_model_only: bool = tuning(False)
    interleave_mm_strings: bool = tuning(False)
    skip_mm_profiling: bool = tuning(False)
    allowed_local_media_path: str = tuning("")
    allowed_media_domains: list[str] | None = tuning(None)
    # More than one device
    tensor_parallel_size: int = honoured(1)
    pipeline_parallel_size: int = missing(1)
    data_parallel_size: int = missing(1)
    data_parallel_size_local: int | None = missing(None, 1)
    data_parallel_rank: int | None = missing(None, 0)
    data_parallel_backend: str = tuning("mp")
    decode_context_parallel_size: int = missing(1)
    prefill_context_parallel_size: int = missing(1)
    distributed_executor_backend: Any = missing(None, "uni", "mp")
    nnodes: int = missing(1)
    node_rank: int = missing(0)
    master_addr: str = tuning("127.0.0.1")
    master_port: int = tuning(29501)
    distributed_timeout_seconds: int | None = tuning(None)
    device_ids: Any = tuning(None)
    numa_bind: bool = tuning(False)
    enable_expert_parallel: bool = tuning(False)
    enable_eplb: bool = tuning(False)
    eplb_config: Any = tuning(None)
    all2all_backend: str = tuning("allgather_reducescatter")
    expert_placement_strategy: str = tuning("linear")
    enable_dbo: bool = tuning(False)
    disable_custom_all_reduce: bool = tuning(False)
    max_parallel_loading_workers: int | None = tuning(None)
    worker_cls: str = missing("auto")
    worker_extension_cls: str = missing("")
    # Kernels
    enforce_eager: bool = honoured(False)
    compilation_config: Any = honoured(None)
    optimization_level: int = tuning(2)
    performance_mode: str = tuning("balanced")
    attention_config: Any = tuning(None)
    attention_backend: str | None = tuning(None)
    moe_backend: str = tuning("auto")
    linear_backend: str = tuning("auto")
    cudagraph_capture_sizes: list[int] | None = honoured(None)
    max_cudagraph_capture_size: int | None = honoured(None)
    # Operation
    enable_sleep_mode: bool = honoured(False)
    sleep_mode_backend: str = tuning("cumem")
    profiler_config: Any = honoured(None)
    disable_log_stats: bool = tuning(False)
    kv_transfer_config: Any = missing(None)
    ec_transfer_config: Any = missing(None)
    kv_events_config: Any = missing(None)
    weight_transfer_config: Any = missing(None)
    additional_config: Any = tuning(None)
    otlp_traces_endpoint: str | None = missing(None)
    collect_detailed_traces: Any = missing(None)
    show_hidden_metrics_for_version: str | None = tuning(None)
    kv_cache_metrics: bool = tuning(False)
    kv_cache_metrics_sample: float = tuning(0.01)
    cudagraph_metrics: bool = tuning(False)
    enable_mfu_metrics: bool = tuning(False)
    enable_logging_iteration_details: bool = tuning(False)
    shutdown_timeout: int = tuning(0)
    fail_on_environ_validation: bool = tuning(False)

    def create_engine_config(self, usage_context: Any = None) -> VllmConfig:
        """Finds the model and checks every argument.

        usage_context: "LLM_CLASS" where all requests are there from the start; larger steps are
        then the default on a GPU.
        Raises `ValidationError` for an argument, `ConfigError` for a model that is not there.
        """
        return VllmConfig.resolve(self, is_offline=usage_context == OFFLINE)

    @staticmethod
    def add_cli_args(parser: Any) -> Any:
        """Adds a flag per argument to an `argparse` parser, and returns the parser."""
        return add_arguments(parser, EngineArgs)

    @classmethod
    def from_cli_args(cls, args: argparse.Namespace) -> Self:
        """From what a parser with these flags has read. Other names are left alone."""
        names = {each.name for each in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in vars(args).items() if name in names})


@dataclass
class AsyncEngineArgs(EngineArgs):
    """Arguments of an engine that serves."""

    enable_log_requests: bool = tuning(False)

    @staticmethod
    def add_cli_args(parser: Any, async_args_only: bool = False) -> Any:
        """As for `EngineArgs`; `async_args_only`: without those."""
        if not async_args_only:
            EngineArgs.add_cli_args(parser)
        parser.add_argument(
            "--enable-log-requests", action=argparse.BooleanOptionalAction, default=False
        )
        return parser
