"""PEFT adapters with seeded random matrices, in PEFT's files: nothing is trained."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

QKV = ("q_proj", "k_proj", "v_proj")
ALL_LINEAR = (*QKV, "o_proj", "gate_proj", "up_proj", "down_proj")


def write_adapter(
    folder: Path,
    model: Path | Mapping[str, Any],
    *,
    seed: int,
    rank: int = 8,
    alpha: float = 16,
    targets: Sequence[str] = ("q_proj", "v_proj"),
    layers: Iterable[int] | None = None,
    use_rslora: bool = False,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
    rank_pattern: Mapping[str, int] | None = None,
    key_suffix: str = "",
    **config: Any,
) -> Path:
    """Writes adapter_config.json and adapter_model.safetensors; returns `folder`.

    model: the folder of the base model, or its config.json. targets: last parts of module names;
    `embed_tokens` and `lm_head` too. layers: None: all. scale: of B; 1 makes a change about
    alpha / rank times as large as the layer's input. rank_pattern: by whole module names here.
    key_suffix: an adapter name inside the keys, such as ".default". config: more fields of
    adapter_config.json, or others in place of those written here.
    """
    raw = json.loads((model / "config.json").read_text()) if isinstance(model, Path) else model
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, (out_features, in_features) in module_shapes(raw, targets, layers).items():
        own = (rank_pattern or {}).get(name, rank)
        a = torch.randn(own, in_features, generator=generator) * in_features**-0.5
        b = torch.randn(out_features, own, generator=generator) * scale * own**-0.5
        is_embedding = name.endswith("embed_tokens")
        kind, end = ("lora_embedding_", "") if is_embedding else ("lora_", ".weight")
        for letter, tensor in (("A", a), ("B", b)):
            key = f"base_model.model.{name}.{kind}{letter}{key_suffix}{end}"
            tensors[key] = tensor.to(dtype).contiguous()
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "",
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(targets),
        "layers_to_transform": None if layers is None else list(layers),
        "use_rslora": use_rslora,
        "use_dora": False,
        "modules_to_save": None,
        "rank_pattern": dict(rank_pattern or {}),
        "alpha_pattern": {},
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(settings | config))
    return folder


def module_shapes(
    config: Mapping[str, Any], targets: Sequence[str], layers: Iterable[int] | None = None
) -> dict[str, tuple[int, int]]:
    """(out_features, in_features) of a Llama's or Qwen's modules whose last name is a target."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    key_value = config.get("num_key_value_heads", heads) * head_dim
    inner, vocab = config["intermediate_size"], config["vocab_size"]
    in_layer = {
        "self_attn.q_proj": (heads * head_dim, hidden),
        "self_attn.k_proj": (key_value, hidden),
        "self_attn.v_proj": (key_value, hidden),
        "self_attn.o_proj": (hidden, heads * head_dim),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    numbers = range(config["num_hidden_layers"]) if layers is None else layers
    shapes = {
        f"model.layers.{number}.{name}": shape
        for number in numbers
        for name, shape in in_layer.items()
    }
    shapes |= {"model.embed_tokens": (hidden, vocab), "lm_head": (vocab, hidden)}
    return {name: shape for name, shape in shapes.items() if name.rpartition(".")[2] in targets}
