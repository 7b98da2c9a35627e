"""Shapes of models that are measured with random weights: a config.json is all that they need."""

import json
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": {
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": 151936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 40960,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
        "eos_token_id": 151645,
        "dtype": "bfloat16",
    },
    "llama-3.1-8b": {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "rope_theta": 5e5,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": False,
        "eos_token_id": 128001,
        "dtype": "bfloat16",
    },
}


def write_model(name: str, folder: Path) -> Path:
    """A model folder of that shape, for load_format="dummy", with a tokenizer of one word."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SHAPES[name]))
    words = {"type": "WordLevel", "vocab": {"word": 0}, "unk_token": "word"}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": words}))
    return folder


def weight_bytes(name: str) -> int:
    """Bytes of the weights that a decode step reads, in bf16: all but the input embedding."""
    shape = SHAPES[name]
    hidden, head_dim = shape["hidden_size"], shape["head_dim"]
    heads = shape["num_attention_heads"] + 2 * shape["num_key_value_heads"]
    attention = heads * head_dim * hidden + shape["num_attention_heads"] * head_dim * hidden
    mlp = 3 * hidden * shape["intermediate_size"]
    layers = shape["num_hidden_layers"] * (attention + mlp)
    return 2 * int(layers + shape["vocab_size"] * hidden)


def kv_bytes_per_token(name: str) -> int:
    """Bytes of one token's keys and values over all layers, in bf16."""
    shape = SHAPES[name]
    elements = shape["num_key_value_heads"] * shape["head_dim"] * shape["num_hidden_layers"]
    return 2 * 2 * int(elements)


def prefill_flops(name: str, lengths: list[int]) -> float:
    """Floating-point operations of whole prompts: matrices, and causal attention."""
    shape = SHAPES[name]
    hidden, head_dim = shape["hidden_size"], shape["head_dim"]
    matrices = weight_bytes(name) / 2 - shape["vocab_size"] * hidden
    per_pair = 4 * shape["num_attention_heads"] * head_dim * shape["num_hidden_layers"]
    pairs = sum(length * (length + 1) / 2 for length in lengths)
    return float(2 * matrices * sum(lengths) + per_pair * pairs)
