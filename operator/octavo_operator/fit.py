"""Does a model fit the GPUs that its replicas ask for? Arithmetic over the model's own config.

    weights + room for adapters + KV cache of one sequence of the greatest length
        <=  GPUs x memory of one x gpuMemoryPercent

What a replica needs besides (activations, CUDA graphs) is measured by the replica itself when it
starts; the check here is about what cannot work at all.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from octavo_operator.children.replica import lora_room
from octavo_operator.observed import ModelFacts
from octavo_protocol.resources.model_deployment import ModelDeployment

_DEFAULT_PERCENT = 92
_DEFAULT_SEQUENCES = 256
_DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# Where a checkpoint does not say its bits; others count as the smallest, to refuse nothing wrongly.
_QUANTIZED_BYTES = {"fp8": 1.0, "fbgemm_fp8": 1.0}
_ENCODERS = frozenset({"bert", "camembert", "roberta", "xlm-roberta"})
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Fit:
    """message: the arithmetic."""

    fits: bool
    message: str


def check_fit(
    deployment: ModelDeployment, facts: ModelFacts | None, gpu_memory_mib: int | None
) -> Fit | None:
    """None where it cannot be said: on a CPU, or where model or GPU are not known."""
    spec = deployment.spec
    if facts is None or gpu_memory_mib is None or spec.num_gpus == 0:
        return None
    percent = spec.engine.gpu_memory_percent or _DEFAULT_PERCENT
    available = spec.num_gpus * gpu_memory_mib * 2**20 * percent // 100
    length = spec.engine.max_model_len or facts.max_model_len
    weights = int(facts.num_parameters * _weight_bytes(deployment, facts))
    adapters = _adapter_bytes(deployment, facts)
    sequence = int(_kv_bytes(deployment, facts) * length)
    offered = f"{spec.num_gpus} x {_gib(gpu_memory_mib * 2**20)} x {percent}% = {_gib(available)}"
    parts = f"weights {_gib(weights)}" + (f" + adapters {_gib(adapters)}" if adapters else "")
    if facts.is_encoder:
        return _fit_without_cache(parts, available - weights - adapters, offered)
    one = f"one sequence of {length} tokens {_gib(sequence)}"
    room = _room(deployment, available - weights - adapters)
    if sequence > room:
        return Fit(False, f"{parts} + {one} do not fit into {offered}: {_advice(room, sequence)}")
    most = spec.engine.max_num_seqs or _DEFAULT_SEQUENCES
    count = min(most, room // sequence) if sequence else most
    return Fit(
        True,
        f"{parts}, {_gib(room)} for the KV cache of {offered}: {count} of {most} sequences of "
        f"{length} tokens at once",
    )


def _fit_without_cache(parts: str, left: int, offered: str) -> Fit:
    """An encoder has weights only."""
    if left < 0:
        return Fit(
            False,
            f"{parts} do not fit into {offered}: {_gib(-left)} short; take larger GPUs, or "
            "float16 or bfloat16 as engine.dtype",
        )
    return Fit(True, f"{parts}, no KV cache, in {offered}")


def _room(deployment: ModelDeployment, left: int) -> int:
    """Bytes of the KV pool: what is left, or what the spec says if that much is left."""
    asked = deployment.spec.engine.kv_cache_memory_mib
    if asked is None:
        return left
    pool = asked * 2**20 * deployment.spec.num_gpus
    return pool if pool <= left else left - pool


def _advice(room: int, sequence: int) -> str:
    if room <= 0:
        return f"{_gib(-room)} short before any KV cache; take more or larger GPUs, or quantize"
    return f"{_gib(sequence - room)} short; lower engine.maxModelLen or take more GPUs"


def _weight_bytes(deployment: ModelDeployment, facts: ModelFacts) -> float:
    """Of one parameter. Checkpoints that are stored quantized stay as they are."""
    engine = deployment.spec.engine
    if facts.bytes_per_parameter < 2:
        return facts.bytes_per_parameter
    if engine.quantization == "fp8":
        return 1.0
    return _DTYPE_BYTES.get(engine.dtype, facts.bytes_per_parameter)


def _kv_bytes(deployment: ModelDeployment, facts: ModelFacts) -> float:
    """Of one token."""
    engine = deployment.spec.engine
    stored = max(2.0, facts.bytes_per_parameter)
    element = 1.0 if engine.kv_cache_dtype != "auto" else _DTYPE_BYTES.get(engine.dtype, stored)
    return facts.kv_bytes_per_token * element / stored


def _adapter_bytes(deployment: ModelDeployment, facts: ModelFacts) -> int:
    room = lora_room(deployment)
    return 0 if room is None else room.max_loras * room.max_lora_rank * facts.lora_bytes_per_rank


def _gib(count: int) -> str:
    return f"{count / _GIB:.1f} GiB"


def facts_from_config(
    config: Mapping[str, Any], index: Mapping[str, Any] | None = None
) -> ModelFacts | None:
    """What a config.json, and the index of its weight files, say of memory.

    For decoders that name their shapes as Llama does (Mistral, Qwen, Gemma, Phi, DeepSeek, mixtures
    of experts) and encoders that name them as BERT does. None where a shape is missing: nothing is
    guessed. Layers with a sliding window keep little; they count as keeping nothing.
    """
    text = config.get("text_config")
    config = {**config, **text} if isinstance(text, Mapping) else dict(config)
    shapes = _Shapes(config)
    try:
        parameters = shapes.num_parameters()
        stored = _stored_bytes(config)
        total = _positive(_nested(index, "metadata", "total_size"))
        return ModelFacts(
            num_parameters=int(total / stored) if total else parameters,
            bytes_per_parameter=stored,
            kv_bytes_per_token=int(shapes.kv_elements_per_token() * max(2.0, stored)),
            lora_bytes_per_rank=shapes.lora_elements_per_rank() * 2,
            max_model_len=shapes.size("max_position_embeddings"),
            is_encoder=shapes.is_encoder,
        )
    except KeyError:
        return None


class _Shapes:
    """Sizes of a model. Every method raises `KeyError` where the config lacks one."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config

    def size(self, *names: str) -> int:
        for name in names:
            if found := _positive(self._config.get(name)):
                return int(found)
        raise KeyError(names[0])

    def optional(self, default: int, *names: str) -> int:
        try:
            return self.size(*names)
        except KeyError:
            return default

    @property
    def is_encoder(self) -> bool:
        return self._config.get("model_type") in _ENCODERS

    @property
    def _heads(self) -> tuple[int, int, int]:
        """Query heads, key-value heads, their width."""
        heads, hidden = self.size("num_attention_heads"), self.size("hidden_size")
        width = self.optional(hidden // heads, "head_dim")
        return heads, self.optional(heads, "num_key_value_heads"), width

    @property
    def _widths(self) -> list[tuple[int, int]]:
        """(in, out) of the linear layers of one decoder layer, one expert's for a mixture."""
        heads, kv_heads, width = self._heads
        hidden = self.size("hidden_size")
        inner = self.optional(0, "moe_intermediate_size") or self.size("intermediate_size")
        attention = [(hidden, heads * width), (heads * width, hidden)]
        num_inner = 2 if self.is_encoder else 3  # without a gate
        return [*attention, *[(hidden, kv_heads * width)] * 2, *[(hidden, inner)] * num_inner]

    def num_parameters(self) -> int:
        experts = self.optional(1, "num_experts", "num_local_experts", "n_routed_experts")
        widths = self._widths
        attention = sum(a * b for a, b in widths[:4])
        mlp = sum(a * b for a, b in widths[4:])
        embeddings = self.size("vocab_size") * self.size("hidden_size")
        tied = self.is_encoder or self._config.get("tie_word_embeddings") is True
        layers = self.size("num_hidden_layers")
        return layers * (attention + experts * mlp) + embeddings * (1 if tied else 2)

    def kv_elements_per_token(self) -> int:
        if self.is_encoder:
            return 0
        latent = self.optional(0, "kv_lora_rank")
        _, kv_heads, width = self._heads
        one = latent + self.optional(0, "qk_rope_head_dim") if latent else 2 * kv_heads * width
        return self._full_layers() * one

    def _full_layers(self) -> int:
        layers, types = self.size("num_hidden_layers"), self._config.get("layer_types")
        if isinstance(types, list):
            return sum(each == "full_attention" for each in types)
        slides = _positive(self._config.get("sliding_window"))
        return 0 if slides and self._config.get("use_sliding_window") is not False else layers

    def lora_elements_per_rank(self) -> int:
        return self.size("num_hidden_layers") * sum(a + b for a, b in self._widths)


def _stored_bytes(config: Mapping[str, Any]) -> float:
    """Bytes of a parameter in the checkpoint."""
    quantized = config.get("quantization_config")
    if isinstance(quantized, Mapping):
        bits = _positive(quantized.get("bits"))
        return bits / 8 if bits else _QUANTIZED_BYTES.get(str(quantized.get("quant_method")), 0.5)
    return _DTYPE_BYTES.get(str(config.get("dtype") or config.get("torch_dtype")), 2)


def _nested(each: Any, *path: str) -> Any:
    for key in path:
        each = each.get(key) if isinstance(each, Mapping) else None
    return each


def _positive(value: Any) -> float:
    """The number; 0 for what is none."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and 0 < value < inf else 0
