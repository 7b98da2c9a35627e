"""`VllmConfig`: checked engine arguments, with the model's folder found."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.chat_templates import load_chat_template
from octavo.engine.argument_kinds import check_arguments
from octavo.engine.hf_overrides import as_overrides
from octavo_protocol.errors import ValidationError
from octavo_protocol.sampling_params import SamplingParams
from octavo_protocol.tokenizer import Tokenizer
from octavo_runtime.config import EngineConfig, LoRAConfig
from octavo_runtime.engine.default_params import generation_defaults
from octavo_runtime.models.source import resolve_model

if TYPE_CHECKING:
    from octavo.config import StructuredOutputsConfig
    from octavo.engine.arg_utils import EngineArgs

_DTYPES = {
    "auto": "auto",
    "bfloat16": "bfloat16",
    "float16": "float16",
    "half": "float16",
    "float32": "float32",
    "float": "float32",
}
_RUNNERS = {"auto": "auto", "generate": "generate", "pooling": "pooling"}
_CONVERSIONS = {name: name for name in ("auto", "none", "embed", "classify")}
_POLICIES = {"fcfs": "fcfs", "priority": "priority"}
_DEVICES = {"auto": "auto", "cpu": "cpu", "cuda": "cuda"}
# The last two are names of loaders that read the same files in parallel, as the one here does.
_LOAD_FORMATS = {
    "auto": "auto",
    "hf": "auto",
    "safetensors": "auto",
    "dummy": "dummy",
    "fastsafetensors": "auto",
    "runai_streamer": "auto",
}
_KV_CACHE_DTYPES = {"auto": "auto", "fp8": "fp8", "fp8_e4m3": "fp8_e4m3"}
_LOGPROBS_MODES = {
    name: name for name in ("raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits")
}


@dataclass(frozen=True)
class ModelConfig:
    """What users of vLLM read from `llm.model_config`. max_model_len: tokens."""

    model: str
    tokenizer: str
    served_model_name: str
    max_model_len: int
    dtype: str
    seed: int
    vocab_size: int
    runner_type: str = "generate"
    skip_tokenizer_init: bool = False

    def get_vocab_size(self) -> int:
        return self.vocab_size

    @cached_property
    def hf_config(self) -> Any:
        """The Hugging Face configuration of the model."""
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.model)

    @property
    def hf_text_config(self) -> Any:
        """Of the part that reads text."""
        return self.hf_config.get_text_config()


@dataclass(frozen=True)
class VllmConfig:
    """Everything that starting an engine needs.

    tokenizer_folder: None for token ids in and out only. chat_template: None = the model's own.
    max_tokens_cap: a server gives no request more output tokens; None = the context is the limit.
    """

    engine_config: EngineConfig
    tokenizer_folder: Path | None
    served_model_name: str
    default_sampling_params: SamplingParams
    max_tokens_cap: int | None
    chat_template: str | None
    structured_outputs_config: "StructuredOutputsConfig"

    @classmethod
    def resolve(cls, args: "EngineArgs", *, is_offline: bool = False) -> "VllmConfig":
        """is_offline: see `EngineConfig`.

        Raises `ValidationError` for an argument, `ConfigError` for a model that is not there.
        """
        from octavo.config import StructuredOutputsConfig, as_config

        check_arguments(args)
        chat_template = load_chat_template(args.chat_template)
        structured = as_config(
            StructuredOutputsConfig, "structured_outputs_config", args.structured_outputs_config
        )
        if args.reasoning_parser:
            structured = dataclasses.replace(structured, reasoning_parser=args.reasoning_parser)
        choices = _choices(args)
        folder = resolve_model(args.model, revision=args.revision)
        tokenizer_folder = None
        if not args.skip_tokenizer_init:
            tokenizer_folder = (
                resolve_model(args.tokenizer, revision=args.tokenizer_revision)
                if args.tokenizer
                else folder
            )
        names = args.served_model_name
        generation = generation_defaults(
            folder, args.generation_config, args.override_generation_config
        )
        return cls(
            engine_config=EngineConfig(
                model=folder,
                hf_overrides=as_overrides(folder, args.hf_overrides),
                is_offline=is_offline,
                **choices,
            ),
            tokenizer_folder=tokenizer_folder,
            served_model_name=(names if isinstance(names, str) else (names or [args.model])[0]),
            default_sampling_params=generation.params,
            max_tokens_cap=generation.max_tokens_cap,
            chat_template=chat_template,
            structured_outputs_config=structured,
        )

    def tokenizer(self) -> Tokenizer | None:
        """A new tokenizer; None with skip_tokenizer_init."""
        folder = self.tokenizer_folder
        return None if folder is None else Tokenizer.from_folder(folder)

    @cached_property
    def hf_tokenizer(self) -> Any:
        """The Hugging Face tokenizer. Raises `ValidationError` with skip_tokenizer_init."""
        if self.tokenizer_folder is None:
            raise ValidationError("skip_tokenizer_init=True leaves no tokenizer")
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.tokenizer_folder)


def _choices(args: "EngineArgs") -> dict[str, Any]:
    """The engine's settings that need no model folder."""
    from octavo.config import PoolerConfig, ProfilerConfig, as_config

    defaults = EngineConfig(model=Path())
    return {
        "runner": _choice("runner", args.runner, _RUNNERS),
        "convert": _choice("convert", args.convert, _CONVERSIONS),
        "pooler_config": as_config(PoolerConfig, "pooler_config", args.pooler_config),
        "dtype": _choice("dtype", str(args.dtype).removeprefix("torch."), _DTYPES),
        "seed": args.seed or 0,
        "max_model_len": _max_model_len(args.max_model_len),
        "device": _choice("device", str(args.device), _DEVICES),
        "max_num_seqs": _at_least("max_num_seqs", args.max_num_seqs, 1),
        "max_num_batched_tokens": _at_least(
            "max_num_batched_tokens", args.max_num_batched_tokens, 1
        ),
        "block_size": _at_least("block_size", args.block_size, 1) or defaults.block_size,
        "enable_prefix_caching": args.enable_prefix_caching is not False,
        "kv_cache_dtype": _choice("kv_cache_dtype", args.kv_cache_dtype, _KV_CACHE_DTYPES),
        "kv_cache_memory_bytes": _at_least("kv_cache_memory_bytes", args.kv_cache_memory_bytes, 1),
        "kv_memory_fraction": _share("kv_memory_fraction", args.kv_memory_fraction),
        "gpu_memory_utilization": _share("gpu_memory_utilization", args.gpu_memory_utilization),
        **_graph_choices(args),
        "num_gpu_blocks_override": _at_least(
            "num_gpu_blocks_override", args.num_gpu_blocks_override, 1
        ),
        "long_prefill_token_threshold": _at_least(
            "long_prefill_token_threshold", args.long_prefill_token_threshold, 0
        ),
        "scheduling_policy": _choice("scheduling_policy", args.scheduling_policy, _POLICIES),
        "load_format": _choice("load_format", args.load_format, _LOAD_FORMATS),
        "num_threads": _at_least("num_threads", args.num_threads, 1),
        "tensor_parallel_size": _at_least("tensor_parallel_size", args.tensor_parallel_size, 1),
        "max_logprobs": _at_least("max_logprobs", args.max_logprobs, -1),
        "logprobs_mode": _choice("logprobs_mode", args.logprobs_mode, _LOGPROBS_MODES),
        "logits_processors": _references(args.logits_processors),
        "enable_sleep_mode": args.enable_sleep_mode,
        "lora": _lora(args),
        "profiler_dir": as_config(ProfilerConfig, "profiler_config", args.profiler_config).folder,
    }


def _lora(args: "EngineArgs") -> LoRAConfig | None:
    """Room for adapters, if any is wanted."""
    if not args.enable_lora:
        return None
    targets = args.lora_target_modules
    return LoRAConfig(
        max_loras=args.max_loras,
        max_lora_rank=args.max_lora_rank,
        max_cpu_loras=args.max_cpu_loras,
        lora_dtype=_choice("lora_dtype", str(args.lora_dtype).removeprefix("torch."), _DTYPES),
        target_modules=None if targets is None else tuple(targets),
    )


def _choice(name: str, value: Any, choices: Mapping[str, Any]) -> Any:
    if value not in choices:
        raise ValidationError(
            f"{name} must be one of {', '.join(choices)}, got {value!r}", parameter=name
        )
    return choices[value]


def _at_least(name: str, value: Any, low: int) -> Any:
    if value is not None and value < low:
        raise ValidationError(f"{name} must be at least {low}, got {value}", parameter=name)
    return value


def _share(name: str, value: float) -> float:
    if not 0 < value <= 1:
        raise ValidationError(f"{name} must be above 0 and at most 1, got {value}", parameter=name)
    return value


def _graph_choices(args: "EngineArgs") -> dict[str, Any]:
    """CUDA graphs, by arguments or by compilation_config."""
    from octavo.config import CompilationConfig

    compilation = CompilationConfig.of(args.compilation_config)
    chosen = {}
    for name in ("cudagraph_capture_sizes", "max_cudagraph_capture_size"):
        values = [getattr(args, name), getattr(compilation, name)]
        if None not in values:
            raise ValidationError(
                f"give {name} either as an argument or in compilation_config", parameter=name
            )
        chosen[name] = next((value for value in values if value is not None), None)
    return {
        "enforce_eager": args.enforce_eager or not compilation.has_graphs,
        "cuda_graph_sizes": _graph_sizes(chosen["cudagraph_capture_sizes"]),
        "max_cuda_graph_size": _at_least(
            "max_cudagraph_capture_size", chosen["max_cudagraph_capture_size"], 0
        ),
    }


def _graph_sizes(sizes: Sequence[Any] | None) -> tuple[int, ...] | None:
    if sizes is not None and not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValidationError(
            f"cudagraph_capture_sizes must be batch sizes of at least 1, got {sizes}",
            parameter="cudagraph_capture_sizes",
        )
    return None if sizes is None else tuple(sizes)


def _max_model_len(value: int | str | None) -> int | None:
    """-1: as many tokens as fit in memory."""
    if value in (-1, "auto"):
        return -1
    if isinstance(value, str):
        raise ValidationError(
            f"max_model_len must be a number of tokens, -1 or 'auto', got {value!r}",
            parameter="max_model_len",
        )
    return _at_least("max_model_len", value, 1)  # type: ignore[no-any-return]


def _references(processors: Sequence[Any] | None) -> tuple[str, ...]:
    """Each logits processor as "module:Class", which another process can import."""
    references = []
    for each in processors or ():
        if isinstance(each, type):
            each = f"{each.__module__}:{each.__qualname__}"
        if not isinstance(each, str) or each.count(":") != 1:
            raise ValidationError(
                f"logits_processors takes classes and 'module:Class', got {each!r}",
                parameter="logits_processors",
            )
        references.append(each)
    return tuple(references)
