"""A checkpoint's config.json as a typed value.

Read without transformers, whose import costs seconds of start-up.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch

from octavo_kernels.kv_cache import FP8
from octavo_protocol.errors import ConfigError
from octavo_runtime.encoder_config import EncoderConfig, read_encoder, with_common_names

_DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding. `scaling` is the checkpoint's rope_scaling (type under `rope_type`)."""

    theta: float
    scaling: dict[str, Any]


@dataclass(frozen=True, slots=True)
class PoolingHints:
    """What config.json says of pooling.

    labels: names of the classes, in order. activation: torch's name of what a cross-encoder does
    with its logits. matryoshka_dimensions: lengths that vectors may be cut to; () = any.
    classifier_token_ids: a decoder's score is of these tokens' logits, not of a head of its own:
    where is_token_difference, the second's less the first's.
    """

    labels: tuple[str, ...]
    problem_type: str | None
    activation: str | None
    is_matryoshka: bool
    matryoshka_dimensions: tuple[int, ...]
    classifier_token_ids: tuple[int, ...] = ()
    is_token_difference: bool = False


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What a model definition needs to know. Sizes in elements, lengths in tokens.

    norm_eps: of RMSNorm or LayerNorm. encoder: None for a decoder.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    max_position_embeddings: int
    rope: RopeConfig
    tie_word_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    sliding_window: int | None
    dtype: torch.dtype
    eos_token_ids: tuple[int, ...]
    encoder: EncoderConfig | None
    pooling: PoolingHints

    @classmethod
    def from_folder(cls, folder: Path, overrides: Mapping[str, Any] | None = None) -> "ModelConfig":
        """Reads config.json, under `overrides`, and the end tokens of generation_config.json.

        Raises `ConfigError` that names the file and the key.
        """
        raw = _read_json(folder / "config.json")
        if raw is None:
            raise ConfigError(f"{folder} has no config.json: it is not a model folder")
        raw = _overridden(raw, overrides or {})
        architectures = raw.get("architectures") or []
        if len(architectures) != 1:
            raise ConfigError(
                f"{folder / 'config.json'}: architectures must name one class, it has "
                f"{architectures!r}"
            )
        raw = with_common_names(raw, architectures[0])

        def need(key: str) -> Any:
            if raw.get(key) is None:
                raise ConfigError(f"{folder / 'config.json'} lacks {key!r}")
            return raw[key]

        encoder = read_encoder(raw, architectures[0], folder / "config.json")
        num_heads = need("num_attention_heads")
        hidden_size = need("hidden_size")
        scaling = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
        theta = scaling.pop("rope_theta", None) or raw.get("rope_theta") or 10000.0
        scaling.setdefault("rope_type", scaling.pop("type", "default"))
        dtype_name = str(raw.get("dtype") or raw.get("torch_dtype") or "float32")
        if dtype_name not in _DTYPES:
            raise ConfigError(f"{folder / 'config.json'}: dtype {dtype_name!r} is not supported")
        return cls(
            architecture=architectures[0],
            vocab_size=need("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=need("intermediate_size"),
            num_layers=need("num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=raw.get("num_key_value_heads") or num_heads,
            head_dim=raw.get("head_dim") or hidden_size // num_heads,
            norm_eps=need("layer_norm_eps" if encoder else "rms_norm_eps"),
            max_position_embeddings=(
                need("max_position_embeddings") - (encoder.position_offset if encoder else 0)
            ),
            rope=RopeConfig(float(theta), scaling),
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            attention_bias=bool(raw.get("attention_bias", False)),
            mlp_bias=bool(raw.get("mlp_bias", False)),
            sliding_window=raw.get("sliding_window"),
            dtype=_DTYPES[dtype_name],
            eos_token_ids=_eos_token_ids(folder, raw),
            encoder=encoder,
            pooling=_pooling_hints(raw, folder),
        )


def resolve_dtype(name: str, checkpoint: torch.dtype, device: str) -> torch.dtype:
    """The compute dtype. auto is the checkpoint's; on a CPU float16 is too slow: bfloat16 then."""
    if name != "auto":
        return _DTYPES[name]
    if device == "cpu" and checkpoint is torch.float16:
        return torch.bfloat16
    return checkpoint


def resolve_kv_cache_dtype(name: str, dtype: torch.dtype, device: str) -> torch.dtype:
    """What keys and values are stored in; auto is the compute dtype.

    Raises `ConfigError` where the device has no arithmetic for fp8.
    """
    if name == "auto":
        return dtype
    if device == "cpu":
        raise ConfigError(
            f"kv_cache_dtype is {name}, but a CPU keeps keys and values in --dtype: set "
            "kv_cache_dtype to auto, or run on an NVIDIA GPU"
        )
    capability = torch.cuda.get_device_capability()
    if capability < (8, 9):
        raise ConfigError(
            f"kv_cache_dtype is {name}, which takes a GPU of compute capability 8.9 or newer; this "
            f"one has {capability[0]}.{capability[1]}: set kv_cache_dtype to auto"
        )
    return FP8


def kv_identity(model: str, kv_dtype: torch.dtype) -> str:
    """`HashIdentity.model` of blocks: those of another dtype never match."""
    return f"{model}+{kv_dtype}".replace("torch.", "")


def cache_identity(folder: Path, overrides: Mapping[str, Any] | None = None) -> str:
    """`name@digest` that is equal for equal checkpoints on any machine, without reading weights."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    if overrides:
        digest.update(json.dumps(dict(overrides), sort_keys=True).encode())
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(f"{path.name}:{path.stat().st_size}".encode())
    return f"{folder.name}@{digest.hexdigest()[:12]}"


def _pooling_hints(raw: Mapping[str, Any], folder: Path) -> PoolingHints:
    path = folder / "config.json"
    token_ids = _classifier_token_ids(raw, folder)
    is_difference = bool(token_ids and raw.get("is_original_qwen3_reranker", False))
    if token_ids:
        raw = {"num_labels": 1 if is_difference else len(token_ids)}
    names = raw.get("id2label") or {i: f"LABEL_{i}" for i in range(raw.get("num_labels", 2))}
    try:
        ordered = {int(index): str(name) for index, name in names.items()}
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{path}: id2label must map numbers to names: {error}") from error
    if sorted(ordered) != list(range(len(ordered))):
        raise ConfigError(f"{path}: id2label must name classes 0, 1, …; it has {sorted(ordered)}")
    cross_encoder = raw.get("sentence_transformers") or {}
    lengths = tuple(raw.get("matryoshka_dimensions") or ())
    return PoolingHints(
        labels=tuple(ordered[index] for index in sorted(ordered)),
        problem_type=raw.get("problem_type"),
        activation=cross_encoder.get("activation_fn")
        or raw.get("sbert_ce_default_activation_function"),
        is_matryoshka=bool(lengths or raw.get("is_matryoshka", False)),
        matryoshka_dimensions=lengths,
        classifier_token_ids=token_ids,
        is_token_difference=is_difference,
    )


def _classifier_token_ids(raw: Mapping[str, Any], folder: Path) -> tuple[int, ...]:
    """Of `classifier_from_token`, which vLLM's users set by hf_overrides."""
    tokens = raw.get("classifier_from_token") or []
    if not tokens:
        return ()
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ConfigError(f"classifier_from_token needs {file}, which is not there")
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    token_ids = []
    for token in tokens:
        token_id = tokenizer.token_to_id(token)
        if token_id is None:
            raise ConfigError(f"classifier_from_token: {token!r} is no token of this model")
        token_ids.append(token_id)
    if raw.get("is_original_qwen3_reranker") and len(token_ids) != 2:
        raise ConfigError(
            f"classifier_from_token must name two tokens, the second for a match; it has {tokens}"
        )
    return tuple(token_ids)


def _overridden(raw: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings also replace what the file has under their newer name, rope_parameters."""
    merged = {**raw, **overrides}
    if raw.get("rope_parameters") and "rope_parameters" not in overrides:
        rope = dict(raw["rope_parameters"])
        if "rope_scaling" in overrides:
            theta = {name: rope[name] for name in ("rope_theta",) if name in rope}
            rope = theta | dict(overrides["rope_scaling"] or {})
        if "rope_theta" in overrides:
            rope["rope_theta"] = overrides["rope_theta"]
        merged["rope_parameters"] = rope
    return merged


def _eos_token_ids(folder: Path, raw: dict[str, Any]) -> tuple[int, ...]:
    """The model's own end token first, then further ones of its generation config."""
    ids: list[int] = []
    for source in (raw, _read_json(folder / "generation_config.json") or {}):
        value = source.get("eos_token_id")
        for token_id in value if isinstance(value, list) else [value]:
            if token_id is not None and token_id not in ids:
                ids.append(token_id)
    return tuple(ids)


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold a JSON object")
    return value
