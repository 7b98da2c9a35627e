"""Configuration of one replica's engine: what the user asked for, and what it resolved to."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from octavo_protocol.errors import ValidationError
from octavo_protocol.pooling import POOLING_TASKS

LogprobsMode = Literal["raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"]
DeviceName = Literal["auto", "cpu", "cuda"]
DTypeName = Literal["auto", "bfloat16", "float16", "float32"]
KVCacheDTypeName = Literal["auto", "fp8", "fp8_e4m3"]
RunnerName = Literal["auto", "generate", "pooling"]
ConvertName = Literal["auto", "none", "embed", "classify"]

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_SEQUENCE_POOLING = ("CLS", "LAST", "MEAN")
_TOKEN_POOLING = ("ALL", "STEP")


@dataclass(frozen=True, kw_only=True)
class PoolerConfig:
    """What the user says about pooling, over the model's own files; None leaves it to them.

    task: the only task of the model. pooling_type: of either kind; seq_pooling_type: CLS, LAST or
    MEAN, for embed and classify; tok_pooling_type: ALL or STEP, for token_embed and token_classify.
    use_activation: whether requests get normalised vectors and probabilities by default.
    dimensions: length of vectors by default. logit_mean, logit_sigma: classify gives
    activation((logits - mean) / sigma). step_tag_id, returned_token_ids: defaults of requests.
    max_embed_len, enable_chunked_processing: longer prompts than the model's are embedded in
    pieces; not supported. enable_flash_late_interaction: changes nothing.

    Raises `ValidationError` that names the field.
    """

    task: str | None = None
    pooling_type: str | None = None
    seq_pooling_type: str | None = None
    tok_pooling_type: str | None = None
    use_activation: bool | None = None
    dimensions: int | None = None
    enable_chunked_processing: bool = False
    max_embed_len: int | None = None
    logit_mean: float | None = None
    logit_sigma: float | None = None
    step_tag_id: int | None = None
    returned_token_ids: list[int] | None = None
    enable_flash_late_interaction: bool = True

    def __post_init__(self) -> None:
        _check_one_of("task", self.task, POOLING_TASKS)
        _check_one_of("pooling_type", self.pooling_type, (*_SEQUENCE_POOLING, *_TOKEN_POOLING))
        _check_one_of("seq_pooling_type", self.seq_pooling_type, _SEQUENCE_POOLING)
        _check_one_of("tok_pooling_type", self.tok_pooling_type, _TOKEN_POOLING)
        for name in ("seq_pooling_type", "tok_pooling_type"):
            if self.pooling_type is not None and getattr(self, name) is not None:
                raise _pooler_error(f"pooling_type and {name} say the same: give one of them")
        if self.enable_chunked_processing or self.max_embed_len is not None:
            raise _pooler_error(
                "enable_chunked_processing and max_embed_len are not supported: set "
                "truncate_prompt_tokens in the requests, or split their texts"
            )
        if self.logit_sigma == 0:
            raise _pooler_error("logit_sigma must not be 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRAConfig:
    """Room for adapters.

    max_loras: in one step, each in a slot of the device. max_lora_rank: of the largest; slots are
    made for it. max_cpu_loras: in host memory, those in slots counted; None = max_loras.
    lora_dtype: of the adapters' matrices; auto = the model's. target_modules: the only ones that
    adapters may change, by the ends of their names; None = every linear layer.

    Raises `ValidationError` that names the field.
    """

    max_loras: int = 1
    max_lora_rank: int = 16
    max_cpu_loras: int | None = None
    lora_dtype: DTypeName = "auto"
    target_modules: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.max_loras < 1:
            raise ValidationError(
                f"max_loras must be at least 1, got {self.max_loras}", parameter="max_loras"
            )
        if self.max_lora_rank not in LORA_RANKS:
            ranks = ", ".join(map(str, LORA_RANKS))
            raise ValidationError(
                f"max_lora_rank must be one of {ranks}, got {self.max_lora_rank}",
                parameter="max_lora_rank",
            )
        if self.max_cpu_loras is not None and self.max_cpu_loras < self.max_loras:
            raise ValidationError(
                f"max_cpu_loras={self.max_cpu_loras} must be at least max_loras={self.max_loras}: "
                "every adapter on the device is in host memory too",
                parameter="max_cpu_loras",
            )

    @property
    def num_host_adapters(self) -> int:
        return self.max_loras if self.max_cpu_loras is None else self.max_cpu_loras


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What the user asked for. "auto" and None are resolved when the engine starts; those that
    depend on the device by `worker/device.py`.

    model: a local model folder (see `models/source.py` for how names become folders).
    runner: whether it generates or pools; auto: what the model is for. convert: what a model that
    generates is turned into where it is to pool. pooler_config: see there.
    hf_overrides: keys that replace those of the folder's config.json.
    cache_model: `HashIdentity.model` for block hashes, before the KV cache's dtype; None = the
    folder's resolved name.
    device: auto = a GPU where torch sees one.
    max_num_seqs, max_num_batched_tokens: sequences and tokens of a step; None = by device.
    is_offline: all requests are there from the start, so that larger steps are better by default.
    kv_cache_dtype: of keys and values; auto = as `dtype`, fp8 = fp8_e4m3 with scale 1 (a GPU's).
    kv_cache_memory_bytes: size of the KV pool; None = on a CPU `kv_memory_fraction` of available
    memory; on a GPU what weights and the largest step leave of `gpu_memory_utilization` of its
    memory. Never more than `max_num_seqs` sequences of `max_model_len` could use.
    enforce_eager: no CUDA graphs. cuda_graph_sizes: batch sizes that get one; None = a ladder.
    max_cuda_graph_size: larger ones get none; None = up to `max_num_seqs`, but at most 512.
    max_model_len: longest prompt plus output in tokens; None = the model's, -1 = what fits.
    num_gpu_blocks_override: number of KV blocks, over everything else.
    long_prefill_token_threshold: longest prefill chunk of one sequence; 0 = the whole budget.
    max_logprobs: most log-probabilities per token that a request may ask for; -1 = no limit.
    tokenizer: folder of the tokenizer.json that grammars are matched with; None = `model`.
    enable_sleep_mode: sleep may free memory (levels 1 and 2), not only pause.
    logits_processors: `module:Class` of each engine-wide logits processor.
    profiler_dir: where profiles are written; None = profiling is refused.
    num_threads: of a CPU, of all ranks together; None = torch's.
    tensor_parallel_size: ranks that compute the model together: GPUs, or a CPU's processes.
    lora: room for adapters; None = requests with one are refused.
    """

    model: Path
    runner: RunnerName = "auto"
    convert: ConvertName = "auto"
    pooler_config: PoolerConfig = field(default_factory=PoolerConfig)
    hf_overrides: dict[str, Any] = field(default_factory=dict)
    cache_model: str | None = None
    device: DeviceName = "auto"
    dtype: DTypeName = "auto"
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    is_offline: bool = False
    long_prefill_token_threshold: int = 0
    block_size: int = 16
    kv_cache_dtype: KVCacheDTypeName = "auto"
    kv_cache_memory_bytes: int | None = None
    kv_memory_fraction: float = 0.3
    gpu_memory_utilization: float = 0.92
    num_gpu_blocks_override: int | None = None
    enforce_eager: bool = False
    cuda_graph_sizes: tuple[int, ...] | None = None
    max_cuda_graph_size: int | None = None
    enable_prefix_caching: bool = True
    scheduling_policy: Literal["fcfs", "priority"] = "fcfs"
    load_format: Literal["auto", "dummy"] = "auto"
    max_logprobs: int = 20
    logprobs_mode: LogprobsMode = "raw_logprobs"
    logits_processors: tuple[str, ...] = ()
    tokenizer: Path | None = None
    enable_sleep_mode: bool = False
    profiler_dir: Path | None = None
    seed: int = 0
    num_threads: int | None = None
    tensor_parallel_size: int = 1
    lora: LoRAConfig | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedConfig(EngineConfig):
    """Settings of which none waits for the device any more. cuda_graph_sizes: () = no graphs."""

    device: Literal["cpu", "cuda"]
    max_num_seqs: int
    max_num_batched_tokens: int
    cuda_graph_sizes: tuple[int, ...]


def _check_one_of(name: str, value: str | None, known: tuple[str, ...]) -> None:
    if value is not None and value not in known:
        raise _pooler_error(f"{name} must be one of {', '.join(known)}, got {value!r}")


def _pooler_error(message: str) -> ValidationError:
    return ValidationError(f"pooler_config: {message}", parameter="pooler_config")
