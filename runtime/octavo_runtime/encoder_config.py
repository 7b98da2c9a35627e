"""What config.json says of BERT and its kin, whatever names a family has for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from octavo_kernels.activation import GeluForm
from octavo_protocol.errors import ConfigError

_FAMILIES = ("Bert", "DistilBert", "ModernBert", "Roberta", "XLMRoberta")
_SUPPORTED = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}
_GELU_FORMS: dict[str, GeluForm] = {
    "gelu": "exact",
    "gelu_new": "tanh",
    "gelu_pytorch_tanh": "tanh",
}
# Families' own names of what BERT has, and what their files do not say.
_NAMES = {
    "DistilBert": {
        "dim": "hidden_size",
        "hidden_dim": "intermediate_size",
        "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads",
        "activation": "hidden_act",
    },
    "ModernBert": {"norm_eps": "layer_norm_eps", "hidden_activation": "hidden_act"},
}
_CONSTANTS: dict[str, dict[str, Any]] = {
    "DistilBert": {"layer_norm_eps": 1e-12, "type_vocab_size": 1},
    "ModernBert": {"type_vocab_size": 1},
}
_CLASSIFIER_POOLINGS: dict[str, Literal["CLS", "MEAN"]] = {"cls": "CLS", "mean": "MEAN"}


@dataclass(frozen=True, slots=True)
class ModernBertConfig:
    """is_global: of each layer, whether its tokens see all of a prompt; else those at most `window`
    positions away. The thetas are of the rotary embedding.
    """

    is_global: tuple[bool, ...]
    window: int
    global_theta: float
    local_theta: float
    norm_bias: bool
    classifier_bias: bool
    classifier_gelu: GeluForm


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """What BERT and its kin have besides. position_offset: of a prompt's first token in the table
    of positions, whose earlier rows are for padding. classifier_pooling: what the head of a
    classifier of sequences takes.
    """

    type_vocab_size: int
    position_offset: int
    gelu: GeluForm
    classifier_pooling: Literal["CLS", "MEAN"] = "CLS"
    modern: ModernBertConfig | None = None


def with_common_names(raw: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    """config.json's values under BERT's names, where the family has others."""
    for family, names in _NAMES.items():
        if architecture.startswith(family):
            return {names.get(key, key): value for key, value in raw.items()} | _CONSTANTS[family]
    return dict(raw)


def read_encoder(raw: Mapping[str, Any], architecture: str, path: Path) -> EncoderConfig | None:
    """None of a decoder. raw: of `with_common_names`, from the file `path`.

    Raises `ConfigError` for variants that are not supported.
    """
    if not architecture.startswith(_FAMILIES):
        return None
    for key, supported in _SUPPORTED.items():
        if (value := raw.get(key, supported)) != supported:
            raise ConfigError(
                f"{path}: {key} {value!r} of {architecture} is not supported, only {supported!r}"
            )
    # RoBERTa counts positions from behind the padding token's id.
    has_offset = architecture.startswith(("Roberta", "XLMRoberta"))
    return EncoderConfig(
        type_vocab_size=raw.get("type_vocab_size", 2),
        position_offset=raw.get("pad_token_id", 1) + 1 if has_offset else 0,
        gelu=_gelu(raw, "hidden_act", path),
        classifier_pooling=_classifier_pooling(raw, path),
        modern=_modern(raw, path) if architecture.startswith("ModernBert") else None,
    )


def _gelu(raw: Mapping[str, Any], key: str, path: Path) -> GeluForm:
    activation = raw.get(key, "gelu")
    if activation not in _GELU_FORMS:
        known = ", ".join(_GELU_FORMS)
        raise ConfigError(f"{path}: {key} {activation!r} is not supported; these are: {known}")
    return _GELU_FORMS[activation]


def _classifier_pooling(raw: Mapping[str, Any], path: Path) -> Literal["CLS", "MEAN"]:
    said = raw.get("classifier_pooling", "cls")
    if said not in _CLASSIFIER_POOLINGS:
        known = ", ".join(_CLASSIFIER_POOLINGS)
        raise ConfigError(f"{path}: classifier_pooling must be one of {known}, it is {said!r}")
    return _CLASSIFIER_POOLINGS[said]


def _modern(raw: Mapping[str, Any], path: Path) -> ModernBertConfig:
    num_layers, every = raw.get("num_hidden_layers", 0), raw.get("global_attn_every_n_layers", 3)
    kinds = raw.get("layer_types")
    is_global = [kind == "full_attention" for kind in kinds] if kinds else None
    return ModernBertConfig(
        is_global=tuple(is_global or (layer % every == 0 for layer in range(num_layers))),
        window=raw.get("local_attention", 128) // 2,
        global_theta=_theta(raw, "full_attention", "global_rope_theta", 160_000.0, path),
        local_theta=_theta(raw, "sliding_attention", "local_rope_theta", 10_000.0, path),
        norm_bias=raw.get("norm_bias", False),
        classifier_bias=raw.get("classifier_bias", False),
        classifier_gelu=_gelu(raw, "classifier_activation", path),
    )


def _theta(raw: Mapping[str, Any], kind: str, old_key: str, default: float, path: Path) -> float:
    """Of the layers of one kind; newer files have it among their `rope_parameters`."""
    rope = (raw.get("rope_parameters") or {}).get(kind) or {}
    if (rope_type := rope.get("rope_type", "default")) != "default":
        raise ConfigError(f"{path}: rope_type {rope_type!r} is not supported, only 'default'")
    return float(rope.get("rope_theta") or raw.get(old_key) or default)
