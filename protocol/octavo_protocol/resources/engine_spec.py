"""Settings of a replica's engine in manifests, and the `octavo serve` flags that they become."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field

from octavo_protocol.resources.base import ResourceModel, Rule

# Parsers are named by words; a value that looks like a flag would be read as one.
_FLAG_VALUE = r"^[A-Za-z0-9_][A-Za-z0-9_-]*$"
# Flags of `octavo serve` that decide how replicas are reached and told apart, in any spelling.
_PLATFORM_FLAG = (
    "^--(host|port|uds|advertise[-_]url|replica[-_]id|redis[-_]url"
    "|namespace|deployment|served[-_]model[-_]name|config)(=|$)"
)

DType = Literal["auto", "bfloat16", "float16", "float32"]
KVCacheDType = Literal["auto", "fp8", "fp8_e4m3"]
SchedulingPolicy = Literal["fcfs", "priority"]
Runner = Literal["auto", "generate", "pooling"]


class SpeculativeSpec(ResourceModel):
    method: Annotated[
        Literal["ngram", "draft_model", "eagle", "mtp"],
        Field(description="How tokens are proposed: by n-grams of the prompt or by a model."),
    ]
    num_speculative_tokens: Annotated[
        int, Field(ge=1, le=32, description="Tokens proposed per step. Default 4.")
    ] = 4
    model: Annotated[
        str | None,
        Field(
            max_length=2048,
            description="Source of the proposing model, as of `model.source`. Default: none "
            "(ngram, mtp).",
        ),
    ] = None

    rules = (
        Rule(
            "!(self.method in ['draft_model', 'eagle']) || has(self.model)",
            lambda self: self.method not in ("draft_model", "eagle") or self.model is not None,
            "model",
            "draft_model and eagle need the source of the proposing model",
        ),
    )


class EngineSpec(ResourceModel):
    runner: Annotated[
        Runner,
        Field(
            description="Whether replicas generate text or pool: embed, classify, score. Default "
            "auto: what the model is for."
        ),
    ] = "auto"
    dtype: Annotated[
        DType,
        Field(description="Weights and activations. Default auto: what the checkpoint says."),
    ] = "auto"
    max_model_len: Annotated[
        int | None,
        Field(ge=2, description="Longest prompt plus output, in tokens. Default: the model's own."),
    ] = None
    max_num_seqs: Annotated[
        int | None,
        Field(
            ge=1,
            description="Sequences that run in one step at most. Default: 64 on a CPU, 256 on a "
            "GPU.",
        ),
    ] = None
    max_num_batched_tokens: Annotated[
        int | None,
        Field(
            ge=1,
            description="Token budget of one step; larger makes long prompts faster and other "
            "requests' tokens later. Default: 512 on a CPU, 8192 on a GPU.",
        ),
    ] = None
    block_size: Annotated[
        int, Field(ge=1, le=512, description="Tokens per KV block. Default 16.")
    ] = 16
    tensor_parallel_size: Annotated[
        int, Field(ge=1, le=64, description="GPUs that one layer is split over. Default 1.")
    ] = 1
    pipeline_parallel_size: Annotated[
        int, Field(ge=1, le=64, description="Groups of GPUs that share the layers. Default 1.")
    ] = 1
    gpu_memory_percent: Annotated[
        int | None,
        Field(
            ge=1,
            le=100,
            description="Share of the GPU's memory that weights, activations and KV cache may "
            "take, in percent. Default 92.",
        ),
    ] = None
    kv_cache_memory_mib: Annotated[
        int | None,
        Field(
            ge=1,
            description="KV cache of each replica, in MiB. Default: what gpuMemoryPercent leaves; "
            "on a CPU a share of free memory.",
        ),
    ] = None
    kv_cache_dtype: Annotated[
        KVCacheDType,
        Field(description="Keys and values. fp8 halves the cache. Default auto: as dtype."),
    ] = "auto"
    kv_offload_mib: Annotated[
        int | None,
        Field(
            ge=1,
            description="Host memory for KV blocks that the GPU has no room for, in MiB. "
            "Default: none.",
        ),
    ] = None
    quantization: Annotated[
        str | None,
        Field(
            pattern=_FLAG_VALUE,
            max_length=63,
            description="Quantization of the weights (`fp8`, `awq`, `gptq`). Default: what the "
            "checkpoint says.",
        ),
    ] = None
    enable_prefix_caching: Annotated[
        bool, Field(description="Reuse KV blocks of equal prefixes. Default true.")
    ] = True
    scheduling_policy: Annotated[
        SchedulingPolicy,
        Field(description="Order of the waiting queue: arrival or priority. Default fcfs."),
    ] = "fcfs"
    speculative: Annotated[
        SpeculativeSpec | None, Field(description="Speculative decoding. Default: none.")
    ] = None
    tool_call_parser: Annotated[
        str | None,
        Field(
            pattern=_FLAG_VALUE,
            max_length=63,
            description="How this model writes tool calls (`hermes`, `llama3_json`, …). With it, "
            "tools may be used with tool_choice auto. Default: none.",
        ),
    ] = None
    reasoning_parser: Annotated[
        str | None,
        Field(
            pattern=_FLAG_VALUE,
            max_length=63,
            description="How this model marks its reasoning (`qwen3`, `deepseek_r1`, …). "
            "Default: none; the answer is then one text.",
        ),
    ] = None
    extra_args: Annotated[
        list[Annotated[str, Field(max_length=4096)]],
        Field(
            max_length=128,
            description="Further flags of `octavo serve`, one word each, after those above. "
            "Addresses, names and Redis are set by the platform and refused here. Default: none.",
        ),
    ] = []

    rules = (
        Rule(
            "!has(self.maxModelLen) || self.maxModelLen >= self.blockSize",
            lambda self: self.max_model_len is None or self.max_model_len >= self.block_size,
            "maxModelLen",
            "a sequence must be able to fill one KV block: at least blockSize tokens",
        ),
        Rule(
            "!has(self.extraArgs) || "
            f"!self.extraArgs.exists(word, word.matches('{_PLATFORM_FLAG}'))",
            lambda self: not any(re.search(_PLATFORM_FLAG, word) for word in self.extra_args),
            "extraArgs",
            "leave out what is set by the platform: --host, --port, --uds, --advertise-url, "
            "--replica-id, --redis-url, --namespace, --deployment, --served-model-name, --config",
        ),
    )

    @property
    def num_gpus(self) -> int:
        """GPUs that one replica computes on."""
        return self.tensor_parallel_size * self.pipeline_parallel_size


def serve_flags(engine: EngineSpec) -> list[str]:
    """The flags of `octavo serve` that say what `engine` says, and nothing that is by default."""
    flags: dict[str, Any] = {
        "--dtype": engine.dtype,
        "--block-size": engine.block_size,
        "--scheduling-policy": engine.scheduling_policy,
    }
    optional = {
        "--runner": _unless("auto", engine.runner),
        "--max-num-seqs": engine.max_num_seqs,
        "--max-num-batched-tokens": engine.max_num_batched_tokens,
        "--max-model-len": engine.max_model_len,
        "--tensor-parallel-size": _unless(1, engine.tensor_parallel_size),
        "--pipeline-parallel-size": _unless(1, engine.pipeline_parallel_size),
        "--gpu-memory-utilization": _fraction(engine.gpu_memory_percent),
        "--kv-cache-memory-bytes": _mib(engine.kv_cache_memory_mib),
        "--kv-cache-dtype": _unless("auto", engine.kv_cache_dtype),
        "--quantization": engine.quantization,
        "--tool-call-parser": engine.tool_call_parser,
        "--reasoning-parser": engine.reasoning_parser,
        "--speculative-config": _speculative(engine.speculative),
        "--kv-offloading-size": _gib(engine.kv_offload_mib),
    }
    flags.update({name: value for name, value in optional.items() if value is not None})
    listed = [part for name, value in flags.items() for part in (name, str(value))]
    if engine.tool_call_parser is not None:
        listed.append("--enable-auto-tool-choice")
    caching = "" if engine.enable_prefix_caching else "no-"
    return [*listed, f"--{caching}enable-prefix-caching", *engine.extra_args]


def _unless(default: Any, value: Any) -> Any:
    return None if value == default else value


def _mib(value: int | None) -> int | None:
    return None if value is None else value * 2**20


def _gib(value: int | None) -> str | None:
    return None if value is None else f"{value / 1024:g}"


def _fraction(percent: int | None) -> str | None:
    return None if percent is None else f"{percent / 100:g}"


def _speculative(spec: SpeculativeSpec | None) -> str | None:
    if spec is None:
        return None
    return spec.model_dump_json(exclude_none=True)
