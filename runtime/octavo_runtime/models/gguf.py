"""A GGUF file as a Hugging Face model folder: configuration, tokenizer, dequantised weights.

Weights are dequantised a few thousand rows at a time straight into model.safetensors, so that the
conversion needs little memory whatever the model's size. A matrix that the file quantises becomes
bfloat16; a file of pure float32 or float16 keeps its type.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import dequantize
from numpy.typing import NDArray

from octavo_protocol.errors import ConfigError
from octavo_runtime.models.cache import Progress, silent
from octavo_runtime.models.gguf_tokenizer import build_tokenizer
from octavo_runtime.models.safetensors_writer import TensorPlan, write_safetensors

# Part of the cache key: raise it when the same GGUF file would give another folder.
CONVERTER_VERSION = 1

_ROWS_PER_PIECE = 4096
_WHOLE_MODEL = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_PER_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ROPE_FACTORS = "rope_freqs.weight"
_SUPPORTED = ("llama",)


@dataclass(frozen=True)
class _Llama3Rope:
    """The constants of Llama 3's frequency scaling; GGUF keeps only the factors they lead to."""

    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def factors(self, theta: float, head_dim: int, factor: float) -> NDArray[np.float64]:
        """By what each rotary frequency is divided, [head_dim / 2]."""
        frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim)
        turns = self.original_max_position_embeddings * frequencies / (2 * np.pi)
        span = self.high_freq_factor - self.low_freq_factor
        smooth = np.clip((turns - self.low_freq_factor) / span, 0.0, 1.0)
        return np.asarray(1 / ((1 - smooth) / factor + smooth))


def convert_gguf(source: Path, folder: Path, *, progress: Progress = silent) -> str:
    """Writes the model in `source` into the empty `folder`; returns model.safetensors' SHA-256.

    Raises `ConfigError` when the file is not GGUF or holds something that is not supported.
    """
    try:
        reader = gguf.GGUFReader(source)
    except (ValueError, IndexError, OSError) as error:
        raise ConfigError(f"{source} is not a readable GGUF file: {error}") from error
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    architecture = metadata.get("general.architecture")
    if architecture not in _SUPPORTED or metadata.get("llama.expert_count", 0):
        kind = f"{architecture} with experts" if architecture in _SUPPORTED else architecture
        raise ConfigError(
            f"{source.name} holds a model of architecture {kind!r}; GGUF files are supported for "
            f"{', '.join(_SUPPORTED)}. Use the model's Hugging Face folder (safetensors) instead."
        )
    try:
        plans = _plan_folder(reader, metadata, folder)
    except KeyError as error:
        raise ConfigError(f"{source.name} lacks the metadata field {error}") from error

    total = sum(plan.num_bytes for plan in plans)
    done = 0

    def advance(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        progress("converting weights", done, total)

    return write_safetensors(folder / "model.safetensors", plans, advance=advance)


def converted_bytes(source: Path) -> int:
    """A bound on the disk space that `convert_gguf(source)` takes."""
    # The densest common quantisation has about 2.6 bits a weight; bfloat16 has 16.
    return source.stat().st_size * 7


def _plan_folder(reader: Any, metadata: Mapping[str, Any], folder: Path) -> list[TensorPlan]:
    """Writes everything but the weights; returns what weights to write."""
    tokenizer = build_tokenizer(metadata)
    dtype = _dtype(reader)
    plans = _plan_tensors(reader, metadata, dtype)
    special = _special_tokens(metadata)
    _write_json(folder / "config.json", _config(reader, metadata, dtype))
    _write_json(folder / "generation_config.json", _generation_config(metadata))
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(metadata, special))
    tokenizer.save(str(folder / "tokenizer.json"))
    return plans


def _dtype(reader: Any) -> str:
    kinds = {tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1}
    if kinds == {"F32"}:
        return "F32"
    return "F16" if kinds <= {"F16", "F32"} else "BF16"


def _plan_tensors(reader: Any, metadata: Mapping[str, Any], dtype: str) -> list[TensorPlan]:
    heads = {
        "attn_q": metadata["llama.attention.head_count"],
        "attn_k": metadata.get(
            "llama.attention.head_count_kv", metadata["llama.attention.head_count"]
        ),
    }
    plans = []
    for tensor in reader.tensors:
        if tensor.name == _ROPE_FACTORS:
            continue  # enters config.json as rope_scaling
        name, part = _hugging_face_name(tensor.name)
        shape = tuple(int(size) for size in reversed(tensor.shape))
        plans.append(
            TensorPlan(name, dtype, shape, partial(_pieces, tensor, dtype, heads.get(part)))
        )
    return plans


def _hugging_face_name(name: str) -> tuple[str, str]:
    """The parameter's name in Hugging Face's Llama, and the part of the layer that it is."""
    stem, _, leaf = name.rpartition(".")
    if leaf == "weight":
        if stem in _WHOLE_MODEL:
            return f"{_WHOLE_MODEL[stem]}.weight", stem
        match stem.split("."):
            case ["blk", layer, part] if part in _PER_LAYER:
                return f"model.layers.{layer}.{_PER_LAYER[part]}.weight", part
    raise ConfigError(f"the GGUF file has a tensor that Llama models do not have: {name}")


def _pieces(tensor: Any, dtype: str, num_heads: int | None) -> Iterable[bytes]:
    """The tensor's bytes in `dtype`. With `num_heads`, rows go back into Hugging Face's order."""
    encode = _ENCODERS[dtype]
    data = tensor.data
    if data.ndim == 1:
        yield encode(dequantize(data, tensor.tensor_type))
        return
    # Quantisation works along rows, so rows can change places before they are dequantised.
    order = np.arange(len(data))
    if num_heads is not None:
        order = order.reshape(num_heads, -1, 2).swapaxes(1, 2).reshape(-1)
    for start in range(0, len(data), _ROWS_PER_PIECE):
        rows = data[order[start : start + _ROWS_PER_PIECE]]
        yield encode(dequantize(rows, tensor.tensor_type))


def _to_float32(values: NDArray[Any]) -> bytes:
    return values.astype("<f4").tobytes()


def _to_float16(values: NDArray[Any]) -> bytes:
    return values.astype("<f2").tobytes()


def _to_bfloat16(values: NDArray[Any]) -> bytes:
    """The upper half of each float32, rounded to nearest, ties to even; NaN stays NaN."""
    bits = values.astype(np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet_nan = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.where(np.isnan(values), quiet_nan, rounded).astype("<u2").tobytes()


_ENCODERS: Mapping[str, Callable[[NDArray[Any]], bytes]] = {
    "F32": _to_float32,
    "F16": _to_float16,
    "BF16": _to_bfloat16,
}


def _config(reader: Any, metadata: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    heads = metadata["llama.attention.head_count"]
    hidden = metadata["llama.embedding_length"]
    head_dim = metadata.get("llama.attention.key_length", hidden // heads)
    theta = float(metadata.get("llama.rope.freq_base", 10000.0))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_size": hidden,
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.get("llama.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": metadata["llama.context_length"],
        # Stored as float32: 1e-5 reads back as 9.99999974e-06.
        "rms_norm_eps": float(f"{metadata['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": theta,
        "rope_scaling": _rope_scaling(reader, metadata, theta, head_dim),
        "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in reader.tensors),
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "torch_dtype": {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[dtype],
        **_generation_config(metadata),
    }


def _rope_scaling(
    reader: Any, metadata: Mapping[str, Any], theta: float, head_dim: int
) -> dict[str, Any] | None:
    stored = next((t.data for t in reader.tensors if t.name == _ROPE_FACTORS), None)
    if stored is not None:
        constants, factor = _Llama3Rope(), float(np.max(stored))
        if not np.allclose(stored, constants.factors(theta, head_dim, factor), rtol=1e-3):
            raise ConfigError(
                "the GGUF file scales its rotary frequencies in a way that is not Llama 3's; "
                "use the model's Hugging Face folder instead"
            )
        return {"rope_type": "llama3", "factor": factor, **vars(constants)}
    kind = metadata.get("llama.rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": float(metadata["llama.rope.scaling.factor"])}
    raise ConfigError(
        f"the GGUF file scales its rotary embedding by {kind!r}; supported are none, linear and "
        "Llama 3's. Use the model's Hugging Face folder instead."
    )


def _generation_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    ids: dict[str, Any] = {
        f"{name}_token_id": metadata[key]
        for name, key in (
            ("bos", "tokenizer.ggml.bos_token_id"),
            ("eos", "tokenizer.ggml.eos_token_id"),
            ("pad", "tokenizer.ggml.padding_token_id"),
        )
        if key in metadata
    }
    end_of_turn = metadata.get("tokenizer.ggml.eot_token_id")
    if end_of_turn is not None and end_of_turn != ids.get("eos_token_id"):
        eos = ids.get("eos_token_id")
        ids["eos_token_id"] = end_of_turn if eos is None else [eos, end_of_turn]
    return ids


def _special_tokens(metadata: Mapping[str, Any]) -> dict[str, str]:
    tokens = metadata["tokenizer.ggml.tokens"]
    return {
        f"{name}_token": tokens[metadata[key]]
        for name, key in (
            ("bos", "tokenizer.ggml.bos_token_id"),
            ("eos", "tokenizer.ggml.eos_token_id"),
            ("pad", "tokenizer.ggml.padding_token_id"),
            ("unk", "tokenizer.ggml.unknown_token_id"),
        )
        if key in metadata
    }


def _tokenizer_config(metadata: Mapping[str, Any], special: dict[str, str]) -> dict[str, Any]:
    config: dict[str, Any] = {
        **special,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": metadata["llama.context_length"],
        "clean_up_tokenization_spaces": False,
    }
    if "tokenizer.chat_template" in metadata:
        config["chat_template"] = metadata["tokenizer.chat_template"]
    return config


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
